//! The controller's gRPC service: datanodes register, report and propose configurations.

use super::attests::Attests;
use super::claims::Claims;
use super::machines::ControllerMachine;
use crate::masters::Masters;
use crate::raft::{Group, Leadership, Proposer};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{
    Code, Epoch, FsError, FsResult, GroupConfig, GroupId, NodeId, NodeInfo, NodeState,
};
use lumeofs_meta::controller::{self, ControllerCommand, ControllerReply};
use lumeofs_proto::control::controller_server::Controller;
use lumeofs_proto::control::{
    AllocateReply, AllocateRequest, AnnounceReply, AnnounceRequest, HeartbeatReply,
    HeartbeatRequest, SetGroupConfigReply, SetGroupConfigRequest,
};
use lumeofs_proto::status::to_grpc;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tonic::{Request, Response, Status};

/// A change of free space that is worth a Raft entry at once: this part of the capacity.
const FREE_CHANGE_PART: u64 = 100;
/// A change that is worth one after [`FREE_SEEN_AGE`]: what somebody who looks at `df` has written or deleted. What a
/// cluster without work writes to its logs is less.
const FREE_CHANGE_SEEN: u64 = 8 << 20;
/// How old what is known of the free space of a datanode in use may be.
const FREE_SEEN_AGE: Duration = Duration::from_secs(3);
/// Free space is brought up to date at least so often, if it changed at all.
const FREE_AGE_MAX: Duration = Duration::from_secs(60);
/// Bytes of a controller command in the log, roughly.
const COMMAND_BYTES: usize = 256;
/// Silence up to which a datanode counts as alive: some heartbeats may be late.
pub(super) const ALIVE: Duration = Duration::from_secs(5);
/// How often the leader looks whether replica groups can be formed.
const FORM_LOOK: Duration = Duration::from_millis(200);

/// The controller group as datanodes see it.
pub(crate) struct ControllerService {
    pub(super) group: Arc<Group>,
    proposer: Proposer<ControllerMachine>,
    pub(super) masters: Arc<Masters>,
    nodes: Mutex<HashMap<NodeId, Seen>>,
    /// The leadership under which the policies are known to be set.
    founded: Mutex<Option<Leadership>>,
    /// What datanodes attested with their heartbeats.
    pub(crate) attests: Attests,
    /// What they say of groups that are sought.
    pub(super) claims: Claims,
}

/// What the leader remembers of a datanode between its heartbeats.
#[derive(Clone)]
struct Seen {
    heartbeat: Duration,
    registered: Duration,
    trouble: String,
    /// Groups whose disk has failed for good there.
    lost: BTreeSet<GroupId>,
}

impl ControllerService {
    pub(crate) fn new(
        group: Arc<Group>,
        proposer: Proposer<ControllerMachine>,
        masters: Arc<Masters>,
    ) -> Self {
        Self {
            group,
            proposer,
            masters,
            nodes: Mutex::default(),
            founded: Mutex::default(),
            attests: Attests::default(),
            claims: Claims::default(),
        }
    }

    /// Time since a datanode's last heartbeat at this master.
    pub(crate) fn silence(&self, node: NodeId) -> Option<Duration> {
        let heartbeat = self.nodes.lock().get(&node)?.heartbeat;
        Some(SystemClock.monotonic().saturating_sub(heartbeat))
    }

    /// What a datanode last told this master is wrong with its disks. Empty if nothing is.
    pub(crate) fn trouble(&self, node: NodeId) -> String {
        let nodes = self.nodes.lock();
        nodes
            .get(&node)
            .map_or_else(String::new, |seen| seen.trouble.clone())
    }

    /// Commands that wait for their log entry.
    pub(crate) fn queued(&self) -> usize {
        self.proposer.queued()
    }

    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    /// When each datanode was heard of last by this master, and which groups it has lost.
    pub(super) fn heard_of(&self) -> BTreeMap<NodeId, (Duration, BTreeSet<GroupId>)> {
        let nodes = self.nodes.lock();
        let nodes = nodes
            .iter()
            .map(|(id, seen)| (*id, (seen.heartbeat, seen.lost.clone())));
        nodes.collect()
    }

    /// Proposes what an administrator wants; fails with the leader's address elsewhere.
    pub(super) async fn order(&self, command: ControllerCommand) -> FsResult<()> {
        let led = self.group.check_leads();
        led.map_err(|error| self.elsewhere(error))?;
        let reply = self.propose(command).await;
        match reply.map_err(|error| self.elsewhere(error))? {
            ControllerReply::Refused(error) => Err(error),
            ControllerReply::Done | ControllerReply::Config(_) | ControllerReply::Masters(_) => {
                Ok(())
            }
        }
    }

    pub(super) async fn propose(&self, command: ControllerCommand) -> FsResult<ControllerReply> {
        Ok(self.proposer.propose(command, COMMAND_BYTES).await?.reply)
    }

    /// A master that has entries of the log and was not recorded for it yet.
    fn newcomer(&self) -> Option<NodeId> {
        let known = self.group.store().read(controller::joined_masters);
        let mut with_entries = std::iter::once(self.group.me())
            .chain(self.group.acknowledgers())
            .map(NodeId);
        with_entries.find(|id| !known.contains(id))
    }

    /// Runs for ever: while this master leads, sets the policies of a new cluster, forms replica groups
    /// for its datanodes once there are enough, and records which masters took part.
    pub(crate) async fn found_cluster(self: Arc<Self>, init: ControllerCommand) {
        let mut tried_with = 0;
        loop {
            sleep(FORM_LOOK).await;
            let leadership = self.group.leadership();
            self.attests.look(leadership);
            if leadership.is_none() {
                continue;
            }
            let is_new = *self.founded.lock() != leadership;
            let mut map = self.group.store().read(controller::cluster_map);
            map.nodes.retain(|node| {
                let silence = self.silence(node.id);
                silence.is_some_and(|silence| silence <= ALIVE)
            });
            let newcomer = self.newcomer();
            let founding = self.founding();
            let command = if is_new {
                tried_with = 0;
                init.clone()
            } else if map.nodes.len() != tried_with
                && controller::are_lacking(&map.nodes, &map.groups)
            {
                tried_with = map.nodes.len();
                let alive = map.nodes.iter().map(|node| node.id).collect();
                ControllerCommand::FormGroups { alive }
            } else if let Some(founding) = founding {
                founding
            } else if let Some(master) = newcomer {
                ControllerCommand::MasterJoined(master)
            } else {
                continue;
            };
            match self.propose(command).await {
                Ok(_) if is_new => *self.founded.lock() = leadership,
                Ok(_) => {}
                Err(error) => {
                    tried_with = 0;
                    super::log_failure("setting up the cluster", &error);
                }
            }
        }
    }

    async fn heartbeat(&self, request: HeartbeatRequest) -> FsResult<HeartbeatReply> {
        let node = request
            .node
            .clone()
            .ok_or_else(|| FsError::new(Code::Invalid, "heartbeat without a node"))?;
        let info = NodeInfo {
            id: NodeId(node.id),
            address: node.address,
            zone: node.zone,
            capacity_bytes: node.capacity_bytes,
            free_bytes: node.free_bytes,
            state: NodeState::Active,
        };
        if info.id == NodeId(0) || info.address.is_empty() {
            return Err(FsError::new(
                Code::Invalid,
                "heartbeat of a node without id or address",
            ));
        }
        let leadership = self
            .group
            .linearizable()
            .await
            .map_err(|error| self.elsewhere(error))?;
        // The first thing that the controller learns are its policies: what it does with a datanode
        // depends on them.
        if *self.founded.lock() != Some(leadership) {
            return Err(FsError::new(
                Code::Unavailable,
                "the cluster is being set up",
            ));
        }
        self.attests.take(&request);
        let tell_configs = self.seek(leadership, &request, info.id).await?;
        let now = SystemClock.monotonic();
        let map = self.group.store().read(controller::cluster_map);
        let registered = {
            let mut nodes = self.nodes.lock();
            let seen = nodes.entry(info.id).or_insert(Seen {
                heartbeat: now,
                registered: now,
                trouble: String::new(),
                lost: BTreeSet::new(),
            });
            seen.lost = request.lost_groups.into_iter().map(GroupId).collect();
            seen.heartbeat = now;
            if seen.trouble != request.trouble && !request.trouble.is_empty() {
                tracing::warn!(node = %info.id, trouble = request.trouble, "a datanode is in trouble");
            }
            seen.trouble = request.trouble;
            seen.registered
        };
        let removed = self
            .group
            .store()
            .read(|tables| controller::is_removed(tables, info.id));
        if !removed && needs_registration(map.node(info.id), &info, now.saturating_sub(registered))
        {
            let id = info.id;
            self.order(ControllerCommand::Register(info)).await?;
            if let Some(seen) = self.nodes.lock().get_mut(&id) {
                seen.registered = now;
            }
        }
        let map = self.group.store().read(controller::cluster_map);
        let map = if map.version == request.map_version {
            Vec::new()
        } else {
            postcard::to_stdvec(&map).expect("a map is plain data")
        };
        let masters = self.masters.list();
        Ok(HeartbeatReply {
            map: map.into(),
            removed,
            tell_configs,
            masters: masters
                .members()
                .map(|master| master.address.clone())
                .collect(),
        })
    }

    async fn set_config(&self, request: SetGroupConfigRequest) -> FsResult<SetGroupConfigReply> {
        let config = request
            .config
            .ok_or_else(|| FsError::new(Code::Invalid, "no configuration"))?;
        let config = GroupConfig::from(config);
        self.group
            .check_leads()
            .map_err(|error| self.elsewhere(error))?;
        let command = ControllerCommand::SetConfig {
            expected: Epoch(request.expected_epoch),
            config: config.clone(),
        };
        let reply = self
            .propose(command)
            .await
            .map_err(|error| self.elsewhere(error))?;
        let in_force = match reply {
            ControllerReply::Config(Ok(in_force)) => in_force,
            ControllerReply::Config(Err((error, Some(in_force)))) => {
                tracing::info!(group = %in_force.group, %error, "configuration refused");
                *in_force
            }
            ControllerReply::Config(Err((error, None))) => return Err(error),
            _ => return Err(FsError::new(Code::Io, "unexpected reply of the controller")),
        };
        if in_force == config {
            log_group(&config, "configuration in force");
        }
        Ok(SetGroupConfigReply {
            accepted: in_force == config,
            config: Some((&in_force).into()),
        })
    }

    /// Adds the leader's address for callers that know no ids.
    pub(super) fn elsewhere(&self, error: FsError) -> FsError {
        match error.code {
            Code::NotLeader(Some(leader)) => match self.masters.address(leader.get()) {
                Some(address) => {
                    FsError::new(error.code, format!("the leader is {leader} at {address}"))
                }
                None => error,
            },
            _ => error,
        }
    }
}

/// Tells people of a configuration.
pub(super) fn log_group(config: &GroupConfig, what: &str) {
    tracing::info!(group = %config.group, epoch = %config.epoch, primary = %config.primary,
        in_sync = ?config.in_sync, "{what}");
}

/// Whether the controller's state should learn of what a heartbeat says.
fn needs_registration(known: Option<&NodeInfo>, info: &NodeInfo, age: Duration) -> bool {
    let Some(known) = known else { return true };
    let change = known.free_bytes.abs_diff(info.free_bytes);
    let noticeable = (info.capacity_bytes / FREE_CHANGE_PART).max(1);
    // What else lies on the disk moves the capacity too, when it is what a datanode may use.
    let change = change.max(known.capacity_bytes.abs_diff(info.capacity_bytes));
    (&known.address, &known.zone) != (&info.address, &info.zone)
        || change >= noticeable
        || (change >= FREE_CHANGE_SEEN && age > FREE_SEEN_AGE)
        || (change > 0 && age > FREE_AGE_MAX)
}

/// The service as tonic wants it.
pub(crate) struct ControllerGrpc(pub(crate) Arc<ControllerService>);

#[tonic::async_trait]
impl Controller for ControllerGrpc {
    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        self.0
            .heartbeat(request.into_inner())
            .await
            .map(Response::new)
            .map_err(|error| to_grpc(&error))
    }

    async fn set_group_config(
        &self,
        request: Request<SetGroupConfigRequest>,
    ) -> Result<Response<SetGroupConfigReply>, Status> {
        self.0
            .set_config(request.into_inner())
            .await
            .map(Response::new)
            .map_err(|error| to_grpc(&error))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateReply>, Status> {
        let allocated = self.0.allocate(request.into_inner()).await;
        allocated
            .map(Response::new)
            .map_err(|error| to_grpc(&error))
    }

    async fn announce(
        &self,
        request: Request<AnnounceRequest>,
    ) -> Result<Response<AnnounceReply>, Status> {
        let announced = self.0.announce(request.into_inner()).await;
        announced
            .map(|()| Response::new(AnnounceReply {}))
            .map_err(|error| to_grpc(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(free_bytes: u64) -> NodeInfo {
        NodeInfo {
            id: NodeId(1),
            address: "a:1".into(),
            zone: "z".into(),
            capacity_bytes: 1000,
            free_bytes,
            state: NodeState::Active,
        }
    }

    #[test]
    fn small_changes_of_free_space_wait_and_moves_do_not() {
        let second = Duration::from_secs(1);
        assert!(needs_registration(None, &node(500), second));
        assert!(!needs_registration(
            Some(&node(500)),
            &node(500),
            FREE_AGE_MAX * 2
        ));
        assert!(!needs_registration(Some(&node(500)), &node(495), second));
        assert!(needs_registration(
            Some(&node(500)),
            &node(495),
            FREE_AGE_MAX * 2
        ));
        assert!(needs_registration(Some(&node(500)), &node(490), second));
        let (large, free) = (
            |free_bytes| NodeInfo {
                capacity_bytes: 1 << 40,
                ..node(free_bytes)
            },
            1 << 39,
        );
        let (before, after) = (large(free), large(free - FREE_CHANGE_SEEN));
        assert!(!needs_registration(Some(&before), &after, second));
        assert!(needs_registration(
            Some(&before),
            &after,
            FREE_SEEN_AGE + second
        ));
        let moved = NodeInfo {
            address: "b:1".into(),
            ..node(500)
        };
        assert!(needs_registration(Some(&node(500)), &moved, second));
    }
}
