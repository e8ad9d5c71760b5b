//! The controller, over gRPC: heartbeats that bring the cluster map, and proposals of configurations.

use crate::attest::Attests;
use crate::convert::config_in;
use crate::group::Caller;
use crate::masters::Masters;
use crate::node::Node;
use lumeofs_base::{ClusterMap, Code, Epoch, FsError, GroupConfig};
use lumeofs_proto::control as wire;
use lumeofs_proto::data::GroupConfiguration;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};

/// Between two heartbeats while all is well.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Between two while it is not.
const HEARTBEAT_UNSETTLED: Duration = Duration::from_millis(500);
/// Between two that were asked for.
const REFRESH_MIN: Duration = Duration::from_millis(50);
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
    let masters = Arc::new(Masters::new(
        &node.identity.credentials,
        &node.config.masters,
        node.config.data_dirs.first().map(PathBuf::as_path),
    )?);
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
    let mut tells_configs = false;
    loop {
        match heartbeat(node, masters, &mut attests, &mut tells_configs).await {
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
    tells_configs: &mut bool,
) -> Result<(), FsError> {
    node.known.update(node);
    let configs = match *tells_configs {
        true => node.known.to_wire(),
        false => Vec::new(),
    };
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
        configs,
        tells_configs: *tells_configs,
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
    masters.learn(&reply.masters);
    if reply.tell_configs && !*tells_configs {
        node.control.refresh();
    }
    *tells_configs = reply.tell_configs;
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
    let request = wire::SetGroupConfigRequest {
        expected_epoch: proposal.expected.get(),
        config: Some(config.into()),
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
