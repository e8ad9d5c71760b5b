//! Puts a master together, runs it, and takes it apart.

use crate::config::MasterConfig;
use crate::join::{Admission, has_log};
use crate::keeper::Keeper;
use crate::masters::Masters;
use crate::metrics::{Metrics, Requests};
use crate::raft::{Group, GroupConfig, Presence, Proposer};
use crate::room::Room;
use crate::service::{
    AdminService, ControllerGrpc, ControllerMachine, ControllerService, FrameService, Health,
    Leases, Listener, Locks, MetadataMachine, MetadataService, Opens, Placement, Sessions, repair,
};
use crate::standing::Standing;
use crate::superblock::Superblock;
use anyhow::{Context as _, Result};
use lumeofs_base::RaftGroupId;
use lumeofs_meta::controller::ControllerCommand;
use lumeofs_proto::auth::Credentials;
use lumeofs_proto::control::admin_server::AdminServer;
use lumeofs_proto::control::controller_server::ControllerServer;
use lumeofs_proto::nonblocking::{Encrypted, Stream};
use lumeofs_proto::tls::plain_refused;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};
use tonic_health::pb::health_server::HealthServer;

/// Threads of the runtime: two groups and their clients seldom have more to do at once. A single thread would
/// spend 5 % less on a command, but answer queries 15 % later.
const WORKER_THREADS: usize = 2;
/// How long the end of open connections and tasks is waited for.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs a master until `shutdown` becomes true or its sender is dropped. `running` gets what it counts once it serves.
///
/// # Errors
/// The data directory belongs to something else or is in use, the port is taken, a log or store is
/// damaged, all other masters refuse this one. A disk that fails later ends the process.
pub fn run(
    config: MasterConfig,
    mut shutdown: watch::Receiver<bool>,
    running: impl FnOnce(Metrics),
) -> Result<()> {
    let superblock = Superblock::open(&config.data_dir, &config.identity)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .thread_name("master")
        .enable_all()
        .build()
        .context("start the runtime")?;
    let done = runtime.block_on(async {
        let master = Master::start(config).await?;
        running(master.metrics());
        let failure = tokio::select! {
            // An error means that nobody can ask any more: the same.
            _ = shutdown.wait_for(|stop| *stop) => None,
            error = master.failed() => Some(error),
        };
        master.stop().await?;
        failure.map_or(Ok(()), Err)
    });
    runtime.shutdown_timeout(STOP_TIMEOUT);
    drop(superblock);
    done
}

/// A running master.
pub(crate) struct Master {
    controller: Arc<Group>,
    metadata: Arc<Group>,
    presence: Arc<Presence>,
    #[cfg(test)]
    service: Arc<MetadataService>,
    requests: Arc<Requests>,
    metadata_service: Weak<MetadataService>,
    controller_service: Weak<ControllerService>,
    /// Why this master may not take part.
    failure: tokio::sync::Mutex<mpsc::Receiver<anyhow::Error>>,
    /// Everything that serves or works in the background. Dropped: it ends.
    tasks: JoinSet<()>,
}

impl Master {
    /// Binds the port, opens logs and stores, starts to serve.
    pub(crate) async fn start(config: MasterConfig) -> Result<Self> {
        let listener = Listener::bind(&config.listen).await?;
        // Before they are made.
        let had_logs = ["controller", "metadata"]
            .iter()
            .all(|group| has_log(&config.data_dir, group));
        let controller_store = Group::open_store(&config.data_dir, "controller")?;
        let metadata_store = Group::open_store(&config.data_dir, "metadata")?;
        let masters = Arc::new(Masters::new(&config, &controller_store));
        let presence = Arc::new(Presence::watch(&config.identity, &masters));
        let rank = masters.rank();
        let opens = Arc::new(Opens::default());
        let leases = Arc::new(Leases::new(opens.clone()));
        let locks = Arc::new(Locks::default());
        let group_config = |group, name| GroupConfig {
            group,
            name,
            identity: config.identity.clone(),
            masters: masters.clone(),
            rank,
        };
        let followed = controller_store.clone();
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
            leases: leases.clone(),
            locks: locks.clone(),
            placement: Placement::new(controller_store),
        });
        let metadata = Group::start(
            group_config(RaftGroupId::METADATA, "metadata"),
            &config.data_dir,
            metadata_store,
            metadata_machine.clone(),
            presence.clone(),
        )
        .await
        .context("start the metadata group")?;
        let mut tasks = JoinSet::new();
        tasks.spawn(masters.clone().follow(followed));
        let service = Arc::new(MetadataService {
            group: metadata.clone(),
            controller: controller.clone(),
            proposer: Proposer::start(metadata.clone(), metadata_machine),
            opens,
            leases,
            locks,
            sessions: Sessions::default(),
            identity: config.identity.clone(),
            room: Room::of(&config.data_dir),
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
        tasks.spawn(repair(controller_service.clone()));
        let admission = Admission::default();
        let requests = Arc::new(Requests::default());
        let controller_weak = Arc::downgrade(&controller_service);
        let frames = Arc::new(FrameService {
            identity: config.identity.clone(),
            admission: admission.clone(),
            masters: masters.clone(),
            controller: controller.clone(),
            metadata: service.clone(),
            requests: requests.clone(),
            work: lumeofs_base::in_work::Board::default(),
        });
        let keeper = Keeper {
            identity: config.identity.clone(),
            masters: masters.clone(),
            controller: controller.clone(),
            metadata: metadata.clone(),
            service: controller_service.clone(),
        };
        tasks.spawn(keeper.run());
        let standing = Standing {
            config: config.clone(),
            masters: masters.clone(),
            controller: controller.clone(),
            metadata: metadata.clone(),
            service: controller_service.clone(),
        };
        let admin = AdminService {
            controller: controller_service.clone(),
            controller_group: controller.clone(),
            metadata: service.clone(),
            masters: masters.clone(),
            fsck: Arc::new(Semaphore::new(1)),
            dumps: Arc::new(Semaphore::new(1)),
        };
        let (reporter, health_server) = tonic_health::server::health_reporter();
        let health = Health {
            reporter,
            admission: admission.clone(),
            groups: [controller.clone(), metadata.clone()],
        };
        // It begins with a yes of its own.
        health.look().await;
        tasks.spawn(health.watch());
        let grpc = listener.serve(frames, &mut tasks);
        let token = Token(config.identity.credentials.clone());
        tasks.spawn(serve_grpc(
            grpc,
            ControllerGrpc(controller_service),
            admin,
            health_server,
            token,
        ));
        tracing::info!(
            id = config.id(),
            listen = config.listen,
            "master is running"
        );
        let (failed, failure) = mpsc::channel(1);
        let (controller_group, metadata_group) = (controller.clone(), metadata.clone());
        let gained = admission.gain(config, masters, had_logs, controller_group, metadata_group);
        tasks.spawn(async move {
            let error = match gained.await {
                Ok(()) => standing.lost().await.into(),
                Err(error) => error,
            };
            // Fails only if the master ends anyway.
            let _ = failed.send(error).await;
        });
        Ok(Self {
            controller,
            metadata,
            presence,
            requests,
            metadata_service: Arc::downgrade(&service),
            controller_service: controller_weak,
            #[cfg(test)]
            service,
            failure: tokio::sync::Mutex::new(failure),
            tasks,
        })
    }

    /// What it counts and knows.
    pub(crate) fn metrics(&self) -> Metrics {
        Metrics {
            requests: self.requests.clone(),
            metadata: self.metadata_service.clone(),
            controller: self.controller_service.clone(),
        }
    }

    /// Returns when this master cannot go on, with the reason.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        let mut failure = self.failure.lock().await;
        tokio::select! {
            error = self.presence.refused_by_all() => error.into(),
            Some(error) = failure.recv() => error,
        }
    }

    #[cfg(test)]
    pub(crate) fn controller_group(&self) -> &Group {
        &self.controller
    }

    #[cfg(test)]
    pub(crate) fn metadata_group(&self) -> &Group {
        &self.metadata
    }

    #[cfg(test)]
    pub(crate) fn service(&self) -> Arc<MetadataService> {
        self.service.clone()
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

/// Lets calls through that know the cluster's secret, and come encrypted where that is the rule.
#[derive(Clone)]
struct Token(Credentials);

impl Interceptor for Token {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let encrypted = request.extensions().get::<Encrypted>();
        if self.0.tls().is_some() && !encrypted.is_some_and(|encrypted| encrypted.0) {
            return Err(Status::unauthenticated(plain_refused().context));
        }
        match request.metadata().get("authorization") {
            Some(token) if self.0.accepts_grpc(token.as_bytes()) => Ok(request),
            _ => Err(Status::unauthenticated(
                "wrong cluster secret: both ends need the same secret file",
            )),
        }
    }
}

async fn serve_grpc(
    incoming: mpsc::Receiver<Stream>,
    controller: ControllerGrpc,
    admin: AdminService,
    health: HealthServer<impl tonic_health::pb::health_server::Health>,
    token: Token,
) {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(lumeofs_proto::CONTROL_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("descriptors of the build are sound");
    let incoming = ReceiverStream::new(incoming).map(Ok::<_, std::io::Error>);
    let served = tonic::transport::Server::builder()
        .max_frame_size(1 << 20)
        .add_service(ControllerServer::with_interceptor(
            controller,
            token.clone(),
        ))
        .add_service(AdminServer::with_interceptor(admin, token.clone()))
        .add_service(health)
        .add_service(InterceptedService::new(reflection, token))
        .serve_with_incoming(incoming)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "gRPC server ended");
    }
}
