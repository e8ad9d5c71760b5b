//! Replica groups: how they are formed and what a change of one must keep to.

use lumeofs_base::limits::PRIMARIES_PER_DATANODE;
use lumeofs_base::{Code, Epoch, FsError, FsResult, GroupConfig, GroupId, NodeId, NodeInfo};
use std::collections::BTreeMap;

/// Whether a datanode is not the first member of enough groups.
pub fn are_lacking(nodes: &[NodeInfo], groups: &[GroupConfig]) -> bool {
    let homes = homes(groups);
    nodes
        .iter()
        .any(|node| homes.get(&node.id) < Some(&PRIMARIES_PER_DATANODE))
}

/// Makes the groups that datanodes lack: every node is to be the first member, and so primary, of
/// [`PRIMARIES_PER_DATANODE`], and the other members are drawn evenly, from different zones as far as there are enough.
/// Empty if there are fewer than `replicas` nodes.
pub(super) fn form(
    nodes: &[NodeInfo],
    groups: &[GroupConfig],
    replicas: usize,
) -> Vec<GroupConfig> {
    let replicas = replicas.max(1);
    if nodes.len() < replicas {
        return Vec::new();
    }
    let homes = homes(groups);
    let mut uses: BTreeMap<NodeId, usize> = BTreeMap::new();
    for member in groups.iter().flat_map(|config| &config.members) {
        *uses.entry(*member).or_default() += 1;
    }
    let last = groups.iter().map(|config| config.group.get()).max();
    let mut formed = Vec::new();
    for round in 0..PRIMARIES_PER_DATANODE {
        for (first, node) in nodes.iter().enumerate() {
            if homes.get(&node.id).is_some_and(|count| *count > round) {
                continue;
            }
            let members = members(nodes, first, round, replicas, &uses);
            for member in &members {
                *uses.entry(*member).or_default() += 1;
            }
            let number = u32::try_from(formed.len() + 1).expect("groups are few");
            formed.push(GroupConfig {
                group: GroupId(last.unwrap_or(0) + number),
                epoch: Epoch(1),
                primary: members[0],
                in_sync: members.clone(),
                members,
            });
        }
    }
    formed
}

/// Of how many groups each datanode is the first member.
fn homes(groups: &[GroupConfig]) -> BTreeMap<NodeId, usize> {
    let mut homes = BTreeMap::new();
    for config in groups {
        if let Some(first) = config.members.first() {
            *homes.entry(*first).or_default() += 1;
        }
    }
    homes
}

/// Members of a group whose first one is `nodes[first]`.
fn members(
    nodes: &[NodeInfo],
    first: usize,
    round: usize,
    replicas: usize,
    uses: &BTreeMap<NodeId, usize>,
) -> Vec<NodeId> {
    let mut chosen = vec![&nodes[first]];
    while chosen.len() < replicas {
        // The turn begins elsewhere in each round, so that the same primary gets other partners.
        let turn = first + 1 + round;
        let next = (0..nodes.len())
            .map(|step| (step, &nodes[(turn + step) % nodes.len()]))
            .filter(|(_, node)| chosen.iter().all(|other| other.id != node.id))
            .min_by_key(|(step, node)| {
                let shares_zone = chosen
                    .iter()
                    .filter(|other| other.zone == node.zone)
                    .count();
                (shares_zone, uses.get(&node.id).copied().unwrap_or(0), *step)
            });
        let (_, node) = next.expect("there are at least as many nodes as replicas");
        chosen.push(node);
    }
    chosen.iter().map(|node| node.id).collect()
}

/// Whether `next` may follow `current`.
pub(super) fn check_next(
    current: &GroupConfig,
    next: &GroupConfig,
    is_node: impl Fn(NodeId) -> bool,
) -> FsResult<()> {
    let refuse = |why: String| {
        Err(FsError::new(
            Code::Invalid,
            format!("{}: {why}", next.group),
        ))
    };
    if next.epoch != current.epoch.next() {
        return refuse(format!(
            "epoch {} cannot follow {}",
            next.epoch, current.epoch
        ));
    }
    if !distinct(&next.members) || !distinct(&next.in_sync) {
        return refuse("a node is named twice".to_owned());
    }
    if let Some(node) = next.members.iter().find(|node| !is_node(**node)) {
        return refuse(format!("{node} is no datanode"));
    }
    if let Some(node) = next
        .in_sync
        .iter()
        .find(|node| !next.members.contains(node))
    {
        return refuse(format!("{node} is in sync and no member"));
    }
    if !next.is_in_sync(next.primary) {
        return refuse(format!("primary {} is not in sync", next.primary));
    }
    if next.in_sync.len() < next.write_quorum() {
        return refuse(format!(
            "{} of {} in sync",
            next.in_sync.len(),
            next.members.len()
        ));
    }
    // Only these have every acknowledged operation; another primary would lose some.
    if !current.is_in_sync(next.primary) {
        return refuse(format!("primary {} was not in sync", next.primary));
    }
    Ok(())
}

fn distinct(nodes: &[NodeId]) -> bool {
    nodes
        .iter()
        .enumerate()
        .all(|(index, node)| !nodes[..index].contains(node))
}
