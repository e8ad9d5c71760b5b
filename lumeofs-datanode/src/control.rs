//! The controller, over gRPC: heartbeats that bring the cluster map, and proposals of configurations.

use crate::attest::Attests;
use crate::convert::config_in;
use crate::group::Caller;
use crate::node::Node;
use lumeofs_base::limits::CONNECT_TIMEOUT;
use lumeofs_base::{ClusterMap, Code, Epoch, FsError, GroupConfig, NodeId};
use lumeofs_proto::control as wire;
use lumeofs_proto::control::controller_client::ControllerClient;
use lumeofs_proto::data::GroupConfiguration;
use lumeofs_proto::grpc::{Connector, endpoint, error_of};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

/// Between two heartbeats while all is well.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Between two while it is not.
const HEARTBEAT_UNSETTLED: Duration = Duration::from_millis(500);
/// Between two that were asked for.
const REFRESH_MIN: Duration = Duration::from_millis(50);
/// How long one master may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_millis(1500);
/// Proposals that wait to be sent: one per group at most.
const PROPOSALS_MAX: usize = 1024;
/// Rounds over all masters before a proposal is given up; its group makes it again.
const ROUNDS_MAX: usize = 4;

struct Proposal {
    expected: Epoch,
    config: GroupConfig,
}

/// The way to the controller for the other threads. Nothing here blocks.
pub(crate) struct Control {
    refresh: Notify,
    proposals: mpsc::Sender<Proposal>,
    queue: Mutex<Option<mpsc::Receiver<Proposal>>>,
    stop: watch::Sender<bool>,
}

impl Control {
    pub(crate) fn new() -> Self {
        let (proposals, queue) = mpsc::channel(PROPOSALS_MAX);
        let stop = watch::Sender::new(false);
        Self {
            refresh: Notify::new(),
            proposals,
            queue: Mutex::new(Some(queue)),
            stop,
        }
    }

    /// Asks for the map soon.
    pub(crate) fn refresh(&self) {
        self.refresh.notify_one();
    }

    /// Proposes a configuration; its group hears of the outcome, or makes the proposal again.
    pub(crate) fn propose(&self, expected: Epoch, config: GroupConfig) {
        tracing::info!(
            group = %config.group, epoch = %config.epoch, primary = %config.primary,
            in_sync = ?config.in_sync, "proposing a configuration"
        );
        if self
            .proposals
            .try_send(Proposal { expected, config })
            .is_err()
        {
            tracing::warn!("too many proposals wait for the controller");
        }
    }

    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Starts the thread that talks to the controller.
pub(crate) fn start(node: &Arc<Node>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Channels want a runtime to be made in.
    let entered = runtime.enter();
    let masters = Arc::new(Masters::new(node)?);
    drop(entered);
    let owner = node.clone();
    node.spawn("control", move || {
        let mut stop = owner.control.stop.subscribe();
        let queue = owner.control.queue.lock().take();
        runtime.block_on(async {
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => {}
                () = heartbeats(&owner, &masters) => {}
                () = proposals(&owner, &masters, queue) => {}
            }
        });
        runtime.shutdown_timeout(Duration::from_millis(100));
    });
    Ok(())
}

async fn heartbeats(node: &Arc<Node>, masters: &Masters) {
    let mut reached = true;
    let mut accepted = false;
    let mut attests = Attests::default();
    loop {
        match heartbeat(node, masters, &mut attests).await {
            Ok(()) => {
                accepted = true;
                if !reached {
                    tracing::info!("the controller answers again");
                }
            }
            // A datanode that has worked stays: it may be the masters that were started wrongly.
            Err(error) if error.code == Code::Refused && !accepted => {
                tracing::error!(%error, "this datanode is refused");
                node.refuse(error);
                return std::future::pending().await;
            }
            Err(error) if reached => tracing::warn!(%error, "the controller does not answer"),
            Err(error) => tracing::debug!(%error, "the controller does not answer"),
        }
        let settled = node.is_settled();
        reached = masters.reached();
        tokio::time::sleep(REFRESH_MIN).await;
        let pause = if settled {
            HEARTBEAT
        } else {
            HEARTBEAT_UNSETTLED
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node.control.refresh.notified() => {}
        }
    }
}

async fn heartbeat(
    node: &Arc<Node>,
    masters: &Masters,
    attests: &mut Attests,
) -> Result<(), FsError> {
    let (capacity_bytes, free_bytes) = node.space();
    let request = wire::HeartbeatRequest {
        node: Some(wire::Node {
            id: node.identity.node.get(),
            address: node.config.advertise.clone(),
            zone: node.config.zone.clone(),
            capacity_bytes,
            free_bytes,
        }),
        map_version: node.map().version,
        trouble: node.trouble(),
        lost_groups: node.lost_groups(),
        groups: attests.of(node),
    };
    let reply = masters.call(|mut client| {
        let request = masters.request(request.clone());
        async move { client.heartbeat(request).await }
    });
    let reply = reply.await?;
    if reply.removed && node.holds_nothing() {
        let context = format!(
            "datanode {} was removed from this cluster and holds nothing any more: its id never comes back; start a new \
             datanode with another id and an empty data directory",
            node.identity.node.get()
        );
        node.refuse(FsError::new(Code::Refused, context));
    }
    if reply.map.is_empty() {
        return Ok(());
    }
    let map: ClusterMap = postcard::from_bytes(&reply.map)
        .map_err(|error| FsError::new(Code::Refused, format!("cluster map: {error}")))?;
    node.apply_map(map);
    Ok(())
}

async fn proposals(
    node: &Arc<Node>,
    masters: &Arc<Masters>,
    queue: Option<mpsc::Receiver<Proposal>>,
) {
    let Some(mut queue) = queue else { return };
    while let Some(proposal) = queue.recv().await {
        let (node, masters) = (node.clone(), masters.clone());
        tokio::spawn(async move { propose(&node, &masters, &proposal).await });
    }
    std::future::pending::<()>().await;
}

async fn propose(node: &Arc<Node>, masters: &Masters, proposal: &Proposal) {
    let config = &proposal.config;
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.get()).collect::<Vec<_>>();
    let request = wire::SetGroupConfigRequest {
        expected_epoch: proposal.expected.get(),
        config: Some(wire::GroupConfig {
            group: config.group.get(),
            epoch: config.epoch.get(),
            primary: config.primary.get(),
            members: ids(&config.members),
            in_sync: ids(&config.in_sync),
            leaving: ids(&config.leaving),
            replicas: config.replicas,
        }),
    };
    for _ in 0..ROUNDS_MAX {
        let reply = masters.call(|mut client| {
            let request = masters.request(request.clone());
            async move { client.set_group_config(request).await }
        });
        match reply.await {
            Ok(reply) => {
                let Some(now) = reply.config else { return };
                let now = config_in(
                    now.group,
                    GroupConfiguration {
                        epoch: now.epoch,
                        primary: now.primary,
                        members: now.members,
                        in_sync: now.in_sync,
                        leaving: now.leaving,
                        replicas: now.replicas,
                    },
                );
                tracing::info!(
                    group = %now.group, epoch = %now.epoch, primary = %now.primary,
                    in_sync = ?now.in_sync, accepted = reply.accepted, "configuration in force"
                );
                if let Some(driver) = node.group(now.group) {
                    driver.with(Caller::Quick, |core, time| core.on_proposed(&now, time));
                }
                return node.control.refresh();
            }
            Err(error) => tracing::debug!(group = %config.group, %error, "proposal not decided"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tracing::warn!(group = %config.group, "the controller did not decide about a configuration");
}

/// The masters, one of which leads the controller.
struct Masters {
    channels: Vec<(String, Channel)>,
    /// The one that answered last.
    current: AtomicUsize,
    failures: AtomicUsize,
    token: MetadataValue<Ascii>,
}

impl Masters {
    fn new(node: &Node) -> anyhow::Result<Self> {
        let connector = Connector::new(&node.identity.credentials);
        let channel = |address: &String| -> anyhow::Result<(String, Channel)> {
            let endpoint = endpoint(address)?
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(Duration::from_secs(2))
                .keep_alive_timeout(Duration::from_secs(2))
                .max_frame_size(Some(1 << 20));
            let channel = endpoint.connect_with_connector_lazy(connector.clone());
            Ok((address.clone(), channel))
        };
        anyhow::ensure!(!node.config.masters.is_empty(), "no master is given");
        Ok(Self {
            channels: node
                .config
                .masters
                .iter()
                .map(channel)
                .collect::<anyhow::Result<_>>()?,
            current: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
            token: node.identity.credentials.grpc_token().parse()?,
        })
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request
            .metadata_mut()
            .insert("authorization", self.token.clone());
        request
    }

    fn reached(&self) -> bool {
        self.failures.load(Ordering::Relaxed) == 0
    }

    /// Calls one master after the other until one answers.
    async fn call<T, F>(&self, call: impl Fn(ControllerClient<Channel>) -> F) -> Result<T, FsError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let first = self.current.load(Ordering::Relaxed);
        let mut last_error = String::new();
        let mut refusals = 0;
        for step in 0..self.channels.len() {
            let index = (first + step) % self.channels.len();
            let (address, channel) = &self.channels[index];
            let client = ControllerClient::new(channel.clone()).max_decoding_message_size(64 << 20);
            match tokio::time::timeout(CALL_TIMEOUT, call(client)).await {
                Ok(Ok(reply)) => {
                    self.current.store(index, Ordering::Relaxed);
                    self.failures.store(0, Ordering::Relaxed);
                    return Ok(reply.into_inner());
                }
                Ok(Err(status)) => {
                    let error = error_of(&status);
                    refusals += usize::from(error.code == Code::Refused);
                    last_error = format!("master {address}: {}", error.context);
                }
                Err(_) => last_error = format!("master {address}: no answer in {CALL_TIMEOUT:?}"),
            }
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        let all_refuse = refusals == self.channels.len();
        let code = if all_refuse {
            Code::Refused
        } else {
            Code::Unavailable
        };
        Err(FsError::new(code, last_error))
    }
}
