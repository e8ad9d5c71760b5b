//! Puts a master together, runs it, and takes it apart.

use crate::config::MasterConfig;
use crate::raft::{Group, GroupConfig, Presence, Proposer};
use crate::service::{
    AdminService, ControllerGrpc, ControllerMachine, ControllerService, FrameService, Listener,
    MetadataMachine, MetadataService, Opens, Placement, Sessions,
};
use crate::superblock::Superblock;
use anyhow::{Context as _, Result, bail};
use lumeofs_base::{ClusterMap, RaftGroupId};
use lumeofs_meta::controller::ControllerCommand;
use lumeofs_proto::auth::Credentials;
use lumeofs_proto::control::admin_server::AdminServer;
use lumeofs_proto::control::controller_server::ControllerServer;
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{MapReply, MapRequest};
use lumeofs_proto::nonblocking::connect;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Threads of the runtime: two groups and their clients seldom have more to do at once.
const WORKER_THREADS: usize = 2;
/// How long the end of open connections and tasks is waited for.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long another master may take to say whether the cluster exists.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a master until `shutdown` becomes true or its sender is dropped.
///
/// # Errors
/// The data directory belongs to something else or is in use, the port is taken, a log or store is
/// damaged. A disk that fails later ends the process.
pub fn run(config: MasterConfig, mut shutdown: watch::Receiver<bool>) -> Result<()> {
    let superblock = Superblock::open(&config.data_dir, &config.identity)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_name("master")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let done = runtime.block_on(async {
        let master = Master::start(config).await?;
        // An error means that nobody can ask any more: the same.
        let _ = shutdown.wait_for(|stop| *stop).await;
        master.stop().await
    });
    runtime.shutdown_timeout(STOP_TIMEOUT);
    drop(superblock);
    done
}

/// A running master.
pub(crate) struct Master {
    controller: Arc<Group>,
    metadata: Arc<Group>,
    /// Everything that serves or works in the background. Dropped: it ends.
    tasks: JoinSet<()>,
}

impl Master {
    /// Binds the port, opens logs and stores, starts to serve.
    pub(crate) async fn start(config: MasterConfig) -> Result<Self> {
        let listener = Listener::bind(&config.listen).await?;
        let masters = Arc::new(config.masters.clone());
        let presence = Arc::new(Presence::watch(&config.identity, &masters));
        let controller_store = Group::open_store(&config.data_dir, "controller")?;
        let metadata_store = Group::open_store(&config.data_dir, "metadata")?;
        let opens = Arc::new(Opens::default());
        let group_config = |group, name| GroupConfig {
            group,
            name,
            identity: config.identity.clone(),
            masters: masters.clone(),
            rank: config.rank(),
        };
        let controller_machine = Arc::new(ControllerMachine);
        let controller = Group::start(
            group_config(RaftGroupId::CONTROLLER, "controller"),
            &config.data_dir,
            controller_store.clone(),
            controller_machine.clone(),
            presence.clone(),
        )
        .await
        .context("start the controller group")?;
        let metadata_machine = Arc::new(MetadataMachine {
            me: config.id(),
            opens: opens.clone(),
            placement: Placement::new(controller_store),
        });
        let metadata = Group::start(
            group_config(RaftGroupId::METADATA, "metadata"),
            &config.data_dir,
            metadata_store,
            metadata_machine.clone(),
            presence,
        )
        .await
        .context("start the metadata group")?;
        let mut tasks = JoinSet::new();
        let service = Arc::new(MetadataService {
            group: metadata.clone(),
            controller: controller.clone(),
            proposer: Proposer::start(metadata.clone(), metadata_machine),
            opens,
            sessions: Sessions::default(),
            identity: config.identity.clone(),
        });
        service.start_tasks(&mut tasks);
        let controller_service = Arc::new(ControllerService::new(
            controller.clone(),
            Proposer::start(controller.clone(), controller_machine),
            masters.clone(),
        ));
        let init = ControllerCommand::Init {
            chunk_size: config.chunk_size,
            replicas: config.replicas,
            always_durable: config.always_durable,
        };
        tasks.spawn(controller_service.clone().found_cluster(init));
        let frames = Arc::new(FrameService {
            identity: config.identity.clone(),
            masters: masters.clone(),
            controller: controller.clone(),
            metadata: service.clone(),
        });
        let admin = AdminService {
            controller: controller_service.clone(),
            controller_group: controller.clone(),
            metadata: service,
            masters,
        };
        let grpc = listener.serve(frames, &mut tasks);
        let token = Token(config.identity.credentials.clone());
        tasks.spawn(serve_grpc(
            grpc,
            ControllerGrpc(controller_service),
            admin,
            token,
        ));
        let master = Self {
            controller,
            metadata,
            tasks,
        };
        if config.bootstrap {
            master.bootstrap(&config).await?;
        }
        tracing::info!(
            id = config.id(),
            listen = config.listen,
            "master is running"
        );
        Ok(master)
    }

    /// Makes the first membership of a new cluster.
    async fn bootstrap(&self, config: &MasterConfig) -> Result<()> {
        if !self.controller.is_pristine().await? && !self.metadata.is_pristine().await? {
            return Ok(());
        }
        // Whoever is up already would have been initialised by us: if it was, we are not new but
        // wiped, and must not vote under the old id (rule R4).
        for (id, address) in config.masters.iter().filter(|(id, _)| **id != config.id()) {
            let probe = timeout(PROBE_TIMEOUT, map_version(config, address)).await;
            if self.controller.is_pristine().await?
                && matches!(probe, Ok(Ok(version)) if version > 0)
            {
                bail!(
                    "data directory {} is empty, but master {id} at {address} belongs to a running cluster: \
                     a master that lost its data must come back under a new id",
                    config.data_dir.display()
                );
            }
        }
        self.controller.initialize(&config.masters).await?;
        self.metadata.initialize(&config.masters).await
    }

    #[cfg(test)]
    pub(crate) fn metadata_group(&self) -> &Group {
        &self.metadata
    }

    /// Stops serving, then Raft, and leaves checkpoints behind.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.tasks.shutdown().await;
        let (controller, metadata) = tokio::join!(self.controller.stop(), self.metadata.stop());
        controller.context("stop the controller group")?;
        metadata.context("stop the metadata group")?;
        tracing::info!("master has stopped");
        Ok(())
    }
}

async fn map_version(config: &MasterConfig, address: &str) -> Result<u64> {
    let (mut reader, mut writer, _) = connect(address, &config.identity).await?;
    writer
        .request(Op::Map, 0, &MapRequest::default(), &[])
        .await?;
    let reply: MapReply = reader.receive().await?.decode()?;
    let map: ClusterMap = postcard::from_bytes(&reply.map)?;
    Ok(map.version)
}

/// Lets calls through that know the cluster's secret.
#[derive(Clone)]
struct Token(Credentials);

impl Interceptor for Token {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        match request.metadata().get("authorization") {
            Some(token) if self.0.accepts_grpc(token.as_bytes()) => Ok(request),
            _ => Err(Status::unauthenticated(
                "wrong cluster secret: both ends need the same secret file",
            )),
        }
    }
}

async fn serve_grpc(
    incoming: mpsc::Receiver<TcpStream>,
    controller: ControllerGrpc,
    admin: AdminService,
    token: Token,
) {
    let incoming = ReceiverStream::new(incoming).map(Ok::<_, std::io::Error>);
    let served = tonic::transport::Server::builder()
        .max_frame_size(1 << 20)
        .add_service(ControllerServer::with_interceptor(
            controller,
            token.clone(),
        ))
        .add_service(AdminServer::with_interceptor(admin, token))
        .serve_with_incoming(incoming)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "gRPC server ended");
    }
}
