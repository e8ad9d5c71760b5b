//! Replica groups: how they are formed and what a change of one must keep to.

use lumeofs_base::limits::PRIMARIES_PER_DATANODE;
use lumeofs_base::{
    Code, Epoch, FsError, FsResult, GroupConfig, GroupId, NodeId, NodeInfo, NodeState,
};
use std::collections::BTreeMap;

/// Epoch of a group's first configuration. Its members find together in the next, which they propose themselves: they
/// take it for proof that no member lacks anything.
pub(super) const FOUNDING: Epoch = Epoch(1);

/// Whether there are fewer groups than the datanodes want: each is to be the primary of [`PRIMARIES_PER_DATANODE`].
pub fn are_lacking(nodes: &[NodeInfo], groups: &[GroupConfig]) -> bool {
    groups.len() < active(nodes).count() * PRIMARIES_PER_DATANODE
}

fn active(nodes: &[NodeInfo]) -> impl Iterator<Item = &NodeInfo> {
    nodes.iter().filter(|node| node.state == NodeState::Active)
}

/// Makes the groups that datanodes lack, those first that are the first member, and so primary, of fewest; the other
/// members are drawn evenly, from different zones as far as there are enough. Nodes come and go, but there are never more
/// groups than the most nodes that there were at once wanted: who finds enough groups gets replicas of those.
/// Empty if there are fewer than `replicas` nodes. Ids below `floor` are not given.
pub(super) fn form(
    nodes: &[NodeInfo],
    groups: &[GroupConfig],
    replicas: usize,
    floor: GroupId,
) -> Vec<GroupConfig> {
    let replicas = replicas.max(1);
    let nodes: Vec<NodeInfo> = active(nodes).cloned().collect();
    if nodes.len() < replicas {
        return Vec::new();
    }
    let wanted = nodes.len() * PRIMARIES_PER_DATANODE;
    let homes = homes(groups);
    let mut uses: BTreeMap<NodeId, usize> = BTreeMap::new();
    for member in groups.iter().flat_map(|config| &config.members) {
        *uses.entry(*member).or_default() += 1;
    }
    let last = groups.iter().map(|config| config.group.get()).max();
    let last = last.unwrap_or(0).max(floor.get().saturating_sub(1));
    let mut formed = Vec::new();
    for round in 0..PRIMARIES_PER_DATANODE {
        for (first, node) in nodes.iter().enumerate() {
            let has_enough = homes.get(&node.id).is_some_and(|count| *count > round);
            if has_enough || groups.len() + formed.len() >= wanted {
                continue;
            }
            let members = members(&nodes, first, round, replicas, &uses);
            for member in &members {
                *uses.entry(*member).or_default() += 1;
            }
            let number = u32::try_from(formed.len() + 1).expect("groups are few");
            formed.push(GroupConfig {
                group: GroupId(last + number),
                epoch: FOUNDING,
                primary: members[0],
                in_sync: members.clone(),
                members,
                leaving: Vec::new(),
                replicas: u32::try_from(replicas).expect("replicas are few"),
            });
        }
    }
    formed
}

/// Of how many groups each datanode is the first member.
pub(super) fn homes(groups: &[GroupConfig]) -> BTreeMap<NodeId, usize> {
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

/// Whether a configuration may follow another, given who is a datanode.
pub(super) type Check = fn(&GroupConfig, &GroupConfig, &dyn Fn(NodeId) -> bool) -> FsResult<()>;

/// Whether a member's proposal may follow `current`: it decides who leads and who is in sync, not who is a member.
pub(super) fn check_proposal(
    current: &GroupConfig,
    next: &GroupConfig,
    _: &dyn Fn(NodeId) -> bool,
) -> FsResult<()> {
    check_epoch(current, next)?;
    let same = (&next.members, &next.leaving, next.replicas)
        == (&current.members, &current.leaving, current.replicas);
    if !same {
        return refuse(next, "only the controller decides about members");
    }
    if !distinct(&next.in_sync) {
        return refuse(next, "a node is named twice");
    }
    if let Some(node) = outside(&next.in_sync, next) {
        return refuse(next, format_args!("{node} is in sync and no member"));
    }
    if !next.is_in_sync(next.primary) {
        return refuse(
            next,
            format_args!("primary {} is not in sync", next.primary),
        );
    }
    if next.in_sync.len() < next.write_quorum() {
        let (in_sync, members) = (next.in_sync.len(), next.members.len());
        return refuse(next, format_args!("{in_sync} of {members} in sync"));
    }
    // Only these have every acknowledged operation; another primary would lose some.
    if !current.is_in_sync(next.primary) {
        return refuse(
            next,
            format_args!("primary {} was not in sync", next.primary),
        );
    }
    Ok(())
}

/// Whether the controller may change members so: nobody who is in sync goes, since only the primary knows when that
/// one can no longer answer reads (D5).
pub(super) fn check_reassignment(
    current: &GroupConfig,
    next: &GroupConfig,
    is_node: &dyn Fn(NodeId) -> bool,
) -> FsResult<()> {
    check_epoch(current, next)?;
    if current.epoch == FOUNDING {
        return refuse(next, "its members have not met yet");
    }
    let same = (next.primary, &next.in_sync, next.replicas)
        == (current.primary, &current.in_sync, current.replicas);
    if !same {
        return refuse(next, "a reassignment changes members only");
    }
    if !distinct(&next.members) || !distinct(&next.leaving) {
        return refuse(next, "a node is named twice");
    }
    let is_new = |node: &NodeId| !current.members.contains(node);
    if let Some(node) = next
        .members
        .iter()
        .find(|node| is_new(node) && !is_node(**node))
    {
        return refuse(next, format_args!("{node} is no datanode"));
    }
    if let Some(node) = outside(&next.in_sync, next) {
        return refuse(next, format_args!("{node} is in sync and would be dropped"));
    }
    if let Some(node) = outside(&next.leaving, next) {
        return refuse(next, format_args!("{node} leaves and is no member"));
    }
    let (staying, wanted) = (next.staying().count(), next.replicas as usize);
    if staying < wanted && staying < current.staying().count() {
        return refuse(next, format_args!("{staying} of {wanted} would stay"));
    }
    Ok(())
}

fn check_epoch(current: &GroupConfig, next: &GroupConfig) -> FsResult<()> {
    if next.epoch == current.epoch.next() {
        return Ok(());
    }
    let (wrong, last) = (next.epoch, current.epoch);
    refuse(next, format_args!("epoch {wrong} cannot follow {last}"))
}

fn refuse(config: &GroupConfig, why: impl std::fmt::Display) -> FsResult<()> {
    let context = format!("{}: {why}", config.group);
    Err(FsError::new(Code::Invalid, context))
}

fn outside(nodes: &[NodeId], config: &GroupConfig) -> Option<NodeId> {
    let is_member = |node: &NodeId| config.members.contains(node);
    nodes.iter().copied().find(|node| !is_member(node))
}

fn distinct(nodes: &[NodeId]) -> bool {
    nodes
        .iter()
        .enumerate()
        .all(|(index, node)| !nodes[..index].contains(node))
}
