//! Replica groups after masters were made from a dump: what the dump says of them may be old.
//!
//! Since then primaries changed, replicas moved, groups were made; a configuration that is out of date could tell a
//! datanode to drop the newest copy. So the groups of the dump are not in the map at first. Datanodes, which remember
//! the newest configuration of each of their groups, tell it, and the newest that enough of them know is in force.
//! *Enough*: so many members of it were heard that those which were not are too few to have agreed on a later one.

use super::{changed, rows};
use crate::keys;
use crate::record::{decode, encode};
use crate::tables::Tables;
use lumeofs_base::{ClusterMap, Code, Epoch, FsError, FsResult, GroupConfig, GroupId, NodeId};
use std::collections::BTreeMap;

/// A group's first epoch after a load lies so far above the newest that is known: the lost masters may have accepted
/// some proposals of which only members know that are away.
pub const EPOCH_JUMP: u64 = 1024;

/// Groups whose configuration members must tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sought {
    /// Groups below this id that are not in the map were made after the dump.
    pub floor: GroupId,
    /// As the dump has them.
    pub groups: Vec<GroupConfig>,
}

/// What is sought; `None` if these masters were never made from a dump.
pub fn sought(tables: &impl Tables) -> Option<Sought> {
    let floor = tables.get(&keys::GROUP_FLOOR)?;
    Some(Sought {
        floor: decode(&floor),
        groups: rows(tables, keys::all::SOUGHT),
    })
}

/// Configurations that can be confirmed, given what each datanode that was heard has told.
pub fn confirmable(
    sought: &Sought,
    map: &ClusterMap,
    told: &BTreeMap<NodeId, Vec<GroupConfig>>,
) -> Vec<GroupConfig> {
    let mut newest: BTreeMap<GroupId, &GroupConfig> = BTreeMap::new();
    for config in sought.groups.iter().chain(told.values().flatten()) {
        let known = newest.entry(config.group).or_insert(config);
        if config.epoch > known.epoch {
            *known = config;
        }
    }
    let may_be_missing = |config: &&GroupConfig| {
        let heard = |node: &&NodeId| told.contains_key(node);
        let missing = config.members.len() - config.members.iter().filter(heard).count();
        missing < config.write_quorum()
    };
    newest
        .into_values()
        .filter(|config| config.group < sought.floor && map.group(config.group).is_none())
        .filter(may_be_missing)
        .cloned()
        .collect()
}

/// Puts a group into the map.
pub(super) fn confirm(tables: &mut dyn Tables, index: u64, config: &GroupConfig) -> FsResult<()> {
    if tables.get(&keys::group(config.group)).is_some() {
        return Ok(());
    }
    if config.group >= floor(tables) {
        let context = format!("{} is not sought", config.group);
        return Err(FsError::new(Code::Invalid, context));
    }
    let config = GroupConfig {
        epoch: Epoch(config.epoch.get() + EPOCH_JUMP),
        ..config.clone()
    };
    tables.put(&keys::group(config.group), encode(&config));
    tables.delete(&keys::sought(config.group));
    changed(tables, index);
    Ok(())
}

/// Whether groups of the dump are not found yet.
pub(super) fn are_sought(tables: &dyn Tables) -> bool {
    let mut any = false;
    let table = keys::all::SOUGHT;
    tables.scan(&table.start, &table.end, &mut |_, _| {
        any = true;
        false
    });
    any
}

/// Lowest id of a new group.
pub(super) fn floor(tables: &dyn Tables) -> GroupId {
    let floor = tables.get(&keys::GROUP_FLOOR);
    floor.map_or(GroupId(0), |value| decode(&value))
}
