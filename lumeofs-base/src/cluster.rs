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
}

impl GroupConfig {
    /// Fewest in-sync members with which a write is acknowledged: a majority of the members.
    pub fn write_quorum(&self) -> usize {
        self.members.len() / 2 + 1
    }
    /// Whether `node` has every acknowledged operation.
    pub fn is_in_sync(&self, node: NodeId) -> bool {
        self.in_sync.contains(&node)
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
