//! Datanodes: they report, are drained and removed.

use super::{changed, rows};
use crate::keys;
use crate::record::{decode, encode};
use crate::tables::Tables;
use lumeofs_base::{Code, FsError, FsResult, GroupConfig, NodeId, NodeInfo, NodeState};

/// Adds a datanode, or notes where it is and what space it has.
pub(super) fn register(tables: &mut dyn Tables, index: u64, node: &NodeInfo) -> FsResult<()> {
    if tables.get(&keys::removed_node(node.id)).is_some() {
        let context = format!(
            "datanode {} was removed from this cluster: start a new one, with another id and an empty data directory",
            node.id.get()
        );
        return Err(FsError::new(Code::Refused, context));
    }
    let known = find(tables, node.id);
    let state = known
        .as_ref()
        .map_or(NodeState::Active, |known| known.state);
    let node = NodeInfo {
        state,
        ..node.clone()
    };
    if known.as_ref() == Some(&node) {
        return Ok(());
    }
    let same_place =
        known.is_some_and(|known| known.address == node.address && known.zone == node.zone);
    tables.put(&keys::node(node.id), encode(&node));
    if !same_place {
        changed(tables, index);
    }
    Ok(())
}

/// Says what is to become of a datanode.
pub(super) fn set_state(
    tables: &mut dyn Tables,
    index: u64,
    id: NodeId,
    state: NodeState,
) -> FsResult<()> {
    let node = find(tables, id).ok_or_else(|| unknown(tables, id))?;
    if let NodeState::Draining { to: Some(to), .. } = state {
        let target = find(tables, to).ok_or_else(|| unknown(tables, to))?;
        if target.state != NodeState::Active || to == id {
            let context = format!(
                "datanode {} cannot take the place of {}: want one that stays",
                to.get(),
                id.get()
            );
            return Err(FsError::new(Code::Invalid, context));
        }
    }
    if node.state != state {
        tables.put(&keys::node(id), encode(&NodeInfo { state, ..node }));
        changed(tables, index);
    }
    Ok(())
}

/// Forgets a datanode that holds nothing. Doing it again is fine.
pub(super) fn remove(tables: &mut dyn Tables, index: u64, id: NodeId) -> FsResult<()> {
    if tables.get(&keys::removed_node(id)).is_some() {
        return Ok(());
    }
    if find(tables, id).is_none() {
        return Err(unknown(tables, id));
    }
    let groups: Vec<GroupConfig> = rows(tables, keys::all::GROUPS);
    let held = groups.iter().filter(|config| config.members.contains(&id));
    let held = held.count();
    if held > 0 {
        let context = format!(
            "datanode {} is a member of {held} groups: drain it first",
            id.get()
        );
        return Err(FsError::new(Code::Busy, context));
    }
    if super::claims::are_sought(tables) {
        let context = format!(
            "datanode {} may hold groups whose members are not known yet: start all datanodes first",
            id.get()
        );
        return Err(FsError::new(Code::Busy, context));
    }
    tables.delete(&keys::node(id));
    tables.put(&keys::removed_node(id), encode(&id));
    changed(tables, index);
    Ok(())
}

fn find(tables: &dyn Tables, id: NodeId) -> Option<NodeInfo> {
    tables.get(&keys::node(id)).map(|value| decode(&value))
}

fn unknown(tables: &dyn Tables, id: NodeId) -> FsError {
    let nodes: Vec<NodeInfo> = rows(tables, keys::all::NODES);
    let known: Vec<String> = nodes.iter().map(|node| node.id.get().to_string()).collect();
    let context = format!(
        "there is no datanode {}: there are {}",
        id.get(),
        known.join(", ")
    );
    FsError::new(Code::NotFound, context)
}
