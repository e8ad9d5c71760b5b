//! What the controller decides and everybody else follows: nodes, replica groups, their epochs.

use crate::{Epoch, GroupId, NodeId};
use serde::{Deserialize, Serialize};

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NodeKind {
    /// Hosts Raft replicas: metadata and controller.
    Master,
    /// Stores chunks.
    Datanode,
    /// A mount, a command or a program with the SDK. Has no node id of its own.
    Client,
}

/// What is to become of a datanode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// It holds replicas and gets new ones.
    #[default]
    Active,
    /// Its replicas move to other nodes.
    Draining {
        /// Where they go if that node can take them.
        to: Option<NodeId>,
        /// It is removed from the cluster once it has none left.
        remove: bool,
    },
}

/// A datanode as the controller knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its id.
    pub id: NodeId,
    /// `host:port` that it listens on.
    pub address: String,
    /// Failure domain; replicas of a group avoid sharing one.
    pub zone: String,
    /// Bytes of all its disks, as last reported.
    pub capacity_bytes: u64,
    /// Bytes free, as last reported.
    pub free_bytes: u64,
    /// What is to become of it. The controller's: what a datanode says of itself does not count.
    pub state: NodeState,
}

/// One configuration of a replica group. `epoch` names it: any change makes the next epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupConfig {
    /// The group.
    pub group: GroupId,
    /// Number of this configuration.
    pub epoch: Epoch,
    /// Orders the group's operations. Always in `in_sync`.
    pub primary: NodeId,
    /// All members, in order of preference for becoming primary.
    pub members: Vec<NodeId>,
    /// Members that have every acknowledged operation, a subset of `members`.
    pub in_sync: Vec<NodeId>,
    /// Members that shall go: the primary takes them out of the in-sync set as soon as enough others are in it.
    pub leaving: Vec<NodeId>,
    /// Copies that there shall be. There are more members while replicas move.
    pub replicas: u32,
}

impl GroupConfig {
    /// Fewest in-sync members with which a write is acknowledged: a majority of the copies that there shall be.
    pub fn write_quorum(&self) -> usize {
        self.replicas as usize / 2 + 1
    }
    /// Members that are to stay, in order.
    pub fn staying(&self) -> impl Iterator<Item = NodeId> {
        let leaves = |node: &NodeId| self.leaving.contains(node);
        self.members
            .iter()
            .copied()
            .filter(move |node| !leaves(node))
    }
    /// Whether a member that leaves can go: those that stay are all in sync, and enough.
    pub fn can_spare_leaving(&self) -> bool {
        self.staying().all(|node| self.is_in_sync(node))
            && self.staying().count() >= self.replicas as usize
    }
    /// Whether there are exactly the copies that there shall be, all in sync, and none moves.
    pub fn is_full(&self) -> bool {
        self.leaving.is_empty()
            && self.members.len() == self.replicas as usize
            && self.in_sync.len() == self.members.len()
    }
    /// Whether `node` has every acknowledged operation.
    pub fn is_in_sync(&self, node: NodeId) -> bool {
        self.in_sync.contains(&node)
    }
}

/// How lost replicas are made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairPolicy {
    /// Milliseconds of silence after which a datanode's replicas are made on other nodes.
    pub after_ms: u64,
    /// Bytes that a datanode sends to members that it catches up in a second while clients are at work.
    pub rate_bytes: u64,
}

impl Default for RepairPolicy {
    fn default() -> Self {
        Self {
            after_ms: crate::limits::REPAIR_AFTER.as_millis() as u64,
            rate_bytes: crate::limits::REPAIR_RATE_BYTES,
        }
    }
}

/// Nodes and groups at one moment. A larger `version` is newer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Log index of the controller's last change.
    pub version: u64,
    /// Registered datanodes, by id.
    pub nodes: Vec<NodeInfo>,
    /// Replica groups, by id.
    pub groups: Vec<GroupConfig>,
    /// Bytes of a file in one chunk.
    pub chunk_size: u64,
    /// Every write waits for the disks, not only fsync (`durability = always`).
    pub always_durable: bool,
    /// How lost replicas are made again.
    pub repair: RepairPolicy,
}

impl ClusterMap {
    /// The configuration of a group.
    pub fn group(&self, group: GroupId) -> Option<&GroupConfig> {
        self.groups
            .binary_search_by_key(&group, |config| config.group)
            .ok()
            .map(|at| &self.groups[at])
    }
    /// A datanode.
    pub fn node(&self, node: NodeId) -> Option<&NodeInfo> {
        self.nodes
            .binary_search_by_key(&node, |info| info.id)
            .ok()
            .map(|at| &self.nodes[at])
    }
}
