//! The controller's state machine: nodes, replica groups, epochs, policies.

mod claims;
#[cfg(test)]
mod claims_tests;
mod groups;
pub mod health;
mod masters;
#[cfg(test)]
mod masters_tests;
mod nodes;
pub mod repair;
#[cfg(test)]
mod tests;

pub use claims::{EPOCH_JUMP, Sought, confirmable, sought};
pub use groups::are_lacking;
pub use masters::{MasterRecord, MasterState, MastersCommand, MastersOutcome, VOTERS_MAX, masters};

use crate::keys;
use crate::record::{Policy, PolicyValues, decode, encode};
use crate::tables::Tables;
use lumeofs_base::limits::{CHUNK_SIZE_BYTES, REPAIR_AFTER, REPAIR_RATE_BYTES, REPLICAS_DEFAULT};
use lumeofs_base::{
    ClusterMap, Code, Epoch, FsError, FsResult, GroupConfig, NodeId, NodeInfo, NodeState,
    RepairPolicy,
};
use serde::{Deserialize, Serialize};

/// What a map says before `Init`.
const DEFAULT_POLICY: PolicyValues = PolicyValues {
    chunk_size: CHUNK_SIZE_BYTES,
    replicas: REPLICAS_DEFAULT as u32,
    always_durable: false,
    repair: RepairPolicy {
        after_ms: REPAIR_AFTER.as_millis() as u64,
        rate_bytes: REPAIR_RATE_BYTES,
    },
};

/// A command of the controller group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControllerCommand {
    /// Sets the policies of a new cluster; ignored if they are set.
    Init {
        /// Bytes of a file in one chunk.
        chunk_size: u64,
        /// Copies of a chunk.
        replicas: u32,
        /// Every write waits for the disks.
        always_durable: bool,
    },
    /// A datanode reports for duty: adds it or updates its address, zone and space.
    Register(NodeInfo),
    /// Makes replica groups for datanodes, once there are enough of them.
    FormGroups {
        /// Those that are there: the members of a new group must meet.
        alive: Vec<NodeId>,
    },
    /// Proposed by a member: replaces a group's primary and in-sync set if its epoch is still `expected`. The new
    /// configuration's epoch must be the one after it.
    SetConfig {
        /// The epoch that is replaced.
        expected: Epoch,
        /// The next configuration.
        config: GroupConfig,
    },
    /// The controller's own: replaces a group's members, and who of them leaves, if its epoch is still `expected`.
    Reassign {
        /// The epoch that is replaced.
        expected: Epoch,
        /// The next configuration.
        config: GroupConfig,
    },
    /// Says what is to become of a datanode.
    SetNodeState {
        /// The datanode.
        node: NodeId,
        /// What.
        state: NodeState,
    },
    /// Forgets a datanode that is a member of no group. Its id never comes back.
    RemoveNode(NodeId),
    /// Changes how lost replicas are made again.
    SetRepair(RepairPolicy),
    /// A master has entries of this group's log: from now on it must never be without.
    MasterJoined(NodeId),
    /// Changes what is recorded of the masters.
    Masters(MastersCommand),
    /// Puts a group back into the map that the dump had, or that was made after it: the newest configuration that its
    /// members know. Ignored if the group is in the map.
    Confirm(GroupConfig),
}

/// What a controller command answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControllerReply {
    /// Done.
    Done,
    /// The current configuration of the group: of `SetConfig` and `Reassign`, also when it was refused.
    Config(Result<GroupConfig, (FsError, Option<Box<GroupConfig>>)>),
    /// No.
    Refused(FsError),
    /// Of `Masters`.
    Masters(MastersOutcome),
}

/// One Raft entry of the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControllerBatch {
    /// The commands, in order.
    pub commands: Vec<ControllerCommand>,
}

/// Applies one Raft entry and returns the reply to each command, in order.
pub fn apply(
    tables: &mut impl Tables,
    index: u64,
    batch: &ControllerBatch,
) -> Vec<ControllerReply> {
    batch
        .commands
        .iter()
        .map(|command| run(tables, index, command))
        .collect()
}

/// Reads the whole map. `version` is the log index of the last change, space figures apart.
pub fn cluster_map(tables: &impl Tables) -> ClusterMap {
    let policy = policy(tables);
    let values = policy.set.unwrap_or(DEFAULT_POLICY);
    ClusterMap {
        version: policy.version,
        nodes: rows(tables, keys::all::NODES),
        groups: rows(tables, keys::all::GROUPS),
        chunk_size: values.chunk_size,
        always_durable: values.always_durable,
        repair: values.repair,
    }
}

/// Whether a datanode of this id was removed.
pub fn is_removed(tables: &impl Tables, node: NodeId) -> bool {
    tables.get(&keys::removed_node(node)).is_some()
}

/// The masters that ever took part.
pub fn joined_masters(tables: &impl Tables) -> Vec<NodeId> {
    rows(tables, keys::all::MASTERS)
}

fn run(tables: &mut dyn Tables, index: u64, command: &ControllerCommand) -> ControllerReply {
    match command {
        ControllerCommand::Init {
            chunk_size,
            replicas,
            always_durable,
        } => {
            let mut policy = policy(tables);
            if policy.set.is_none() {
                let (chunk_size, replicas) = (*chunk_size, *replicas);
                let always_durable = *always_durable;
                policy.set = Some(PolicyValues {
                    chunk_size,
                    replicas,
                    always_durable,
                    ..DEFAULT_POLICY
                });
                policy.version = index;
                tables.put(&keys::POLICY, encode(&policy));
            }
            ControllerReply::Done
        }
        ControllerCommand::Register(node) => reply(nodes::register(tables, index, node)),
        ControllerCommand::FormGroups { alive } => {
            form_groups(tables, index, alive);
            ControllerReply::Done
        }
        ControllerCommand::SetConfig { expected, config } => ControllerReply::Config(set_config(
            tables,
            index,
            *expected,
            config,
            groups::check_proposal,
        )),
        ControllerCommand::Reassign { expected, config } => ControllerReply::Config(set_config(
            tables,
            index,
            *expected,
            config,
            groups::check_reassignment,
        )),
        ControllerCommand::SetNodeState { node, state } => {
            reply(nodes::set_state(tables, index, *node, *state))
        }
        ControllerCommand::RemoveNode(node) => reply(nodes::remove(tables, index, *node)),
        ControllerCommand::SetRepair(repair) => reply(set_repair(tables, index, *repair)),
        ControllerCommand::MasterJoined(master) => {
            tables.put(&keys::master(*master), encode(master));
            ControllerReply::Done
        }
        ControllerCommand::Masters(command) => {
            ControllerReply::Masters(masters::run(tables, command))
        }
        ControllerCommand::Confirm(config) => reply(claims::confirm(tables, index, config)),
    }
}

fn reply(result: FsResult<()>) -> ControllerReply {
    result.map_or_else(ControllerReply::Refused, |()| ControllerReply::Done)
}

fn set_repair(tables: &mut dyn Tables, index: u64, repair: RepairPolicy) -> FsResult<()> {
    if repair.after_ms == 0 || repair.rate_bytes == 0 {
        let context = "repair policy: want a time and a rate above 0";
        return Err(FsError::new(Code::Invalid, context));
    }
    let mut policy = policy(tables);
    let Some(values) = &mut policy.set else {
        let context = "the cluster is being set up: try again";
        return Err(FsError::new(Code::Unavailable, context));
    };
    if values.repair != repair {
        values.repair = repair;
        policy.version = index;
        tables.put(&keys::POLICY, encode(&policy));
    }
    Ok(())
}

fn form_groups(tables: &mut dyn Tables, index: u64, alive: &[NodeId]) {
    // Without policies nobody has said how many replicas there shall be.
    let Some(values) = policy(tables).set else {
        return;
    };
    // Those that are sought count too; how many there are is not known before they are found.
    if claims::are_sought(tables) {
        return;
    }
    let mut nodes: Vec<NodeInfo> = rows(tables, keys::all::NODES);
    nodes.retain(|node| alive.contains(&node.id));
    let groups: Vec<GroupConfig> = rows(tables, keys::all::GROUPS);
    let formed = groups::form(
        &nodes,
        &groups,
        values.replicas as usize,
        claims::floor(tables),
    );
    for config in &formed {
        tables.put(&keys::group(config.group), encode(config));
    }
    if !formed.is_empty() {
        changed(tables, index);
    }
}

fn set_config(
    tables: &mut dyn Tables,
    index: u64,
    expected: Epoch,
    config: &GroupConfig,
    check: groups::Check,
) -> Result<GroupConfig, (FsError, Option<Box<GroupConfig>>)> {
    let Some(value) = tables.get(&keys::group(config.group)) else {
        let error = FsError::new(
            Code::NotFound,
            format!("there is no group {}", config.group),
        );
        return Err((error, None));
    };
    let current: GroupConfig = decode(&value);
    if current == *config {
        // A proposal that was sent again.
        return Ok(current);
    }
    if current.epoch != expected {
        let error = FsError::new(
            Code::StaleEpoch,
            format!(
                "{} is at epoch {}, not {expected}",
                current.group, current.epoch
            ),
        );
        return Err((error, Some(Box::new(current))));
    }
    let is_node = |node| tables.get(&keys::node(node)).is_some();
    if let Err(error) = check(&current, config, &is_node) {
        return Err((error, Some(Box::new(current))));
    }
    tables.put(&keys::group(config.group), encode(config));
    changed(tables, index);
    Ok(config.clone())
}

fn policy(tables: &dyn Tables) -> Policy {
    tables
        .get(&keys::POLICY)
        .map_or_else(Policy::default, |value| decode(&value))
}

fn changed(tables: &mut dyn Tables, index: u64) {
    let policy = Policy {
        version: index,
        ..policy(tables)
    };
    tables.put(&keys::POLICY, encode(&policy));
}

fn rows<T: serde::de::DeserializeOwned>(
    tables: &dyn Tables,
    table: std::ops::Range<[u8; 1]>,
) -> Vec<T> {
    let mut rows = Vec::new();
    tables.scan(&table.start, &table.end, &mut |_, value| {
        rows.push(decode(value));
        true
    });
    rows
}
