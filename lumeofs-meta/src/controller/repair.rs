//! Which replicas go where: those of nodes that are gone or drained are made elsewhere, and when all is well, load is
//! evened out.
//!
//! A plan follows from the map and from what the leader sees of the datanodes, nothing else, so any leader goes on
//! where the last one stopped. It changes who is a member and who leaves; catching members up, counting them in and letting
//! those that leave go is the primary's business. A member in the in-sync set is therefore never dropped here: one that is
//! gone is taken out of it by its primary first.

use super::groups::{FOUNDING, homes};
use lumeofs_base::limits::{REPAIR_FREE_PART_MIN, REPAIRS_PER_NODE_MAX};
use lumeofs_base::{ClusterMap, GroupConfig, GroupId, NodeId, NodeInfo, NodeState};
use std::collections::BTreeMap;

#[cfg(test)]
mod tests;

/// How the leader sees a datanode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It reports.
    Alive,
    /// It does not, but may come back.
    Silent,
    /// It has been silent for so long that its replicas are to be made elsewhere.
    Gone,
}

/// What the leader sees of the datanodes.
pub trait View {
    /// How a datanode is.
    fn presence(&self, node: NodeId) -> Presence;
    /// Whether a datanode has lost the disk on which it had this group, and has no other for it.
    fn has_lost(&self, node: NodeId, group: GroupId) -> bool;
}

/// The next configurations of the groups that are to change, most endangered first.
pub fn plan(map: &ClusterMap, view: &impl View) -> Vec<GroupConfig> {
    let mut planner = Planner {
        map,
        view,
        loads: loads(map, view),
        homes: homes(&map.groups),
        largest: map.nodes.iter().map(|node| node.capacity_bytes).max(),
    };
    let live = |config: &GroupConfig| {
        let alive = |node: &&NodeId| view.presence(**node) == Presence::Alive;
        config.in_sync.iter().filter(alive).count()
    };
    let mut groups: Vec<&GroupConfig> = map.groups.iter().collect();
    groups.sort_by_key(|config| (live(config), config.group));
    let changes: Vec<_> = groups
        .into_iter()
        .filter_map(|config| planner.mend(config))
        .collect();
    if changes.is_empty() && planner.all_is_well() {
        return planner.even_out().into_iter().collect();
    }
    changes
}

/// What a datanode carries.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    /// Groups that it is a member of and does not leave.
    replicas: usize,
    /// Of them, those that it has not got yet.
    coming: usize,
}

fn loads(map: &ClusterMap, view: &impl View) -> BTreeMap<NodeId, Load> {
    let mut loads: BTreeMap<NodeId, Load> = BTreeMap::new();
    for config in &map.groups {
        for node in config.staying() {
            let load = loads.entry(node).or_default();
            load.replicas += 1;
            let comes = !config.is_in_sync(node) && view.presence(node) == Presence::Alive;
            load.coming += usize::from(comes);
        }
    }
    loads
}

struct Planner<'a, V> {
    map: &'a ClusterMap,
    view: &'a V,
    loads: BTreeMap<NodeId, Load>,
    homes: BTreeMap<NodeId, usize>,
    largest: Option<u64>,
}

impl<V: View> Planner<'_, V> {
    /// What a group lacks, or has too much of.
    fn mend(&mut self, config: &GroupConfig) -> Option<GroupConfig> {
        if config.epoch == FOUNDING {
            return None;
        }
        let wanted = config.replicas as usize;
        let lasts = |node: &NodeId| !self.is_away(*node, config.group) && !self.is_draining(*node);
        let mut staying: Vec<NodeId> = config.staying().filter(lasts).collect();
        let mut next = config.clone();
        let mut added = Vec::new();
        let returns = |node: &&NodeId| config.is_in_sync(**node) && lasts(node);
        let back = config.leaving.iter().filter(returns).copied();
        staying.extend(back.take(wanted.saturating_sub(staying.len())));
        while staying.len() < wanted {
            let Some(node) = self.target(config, &staying) else {
                break;
            };
            let load = self.loads.entry(node).or_default();
            load.replicas += 1;
            load.coming += 1;
            staying.push(node);
            added.push(node);
        }
        let enough = staying.len() >= wanted;
        // One that may come back with what it has is better than none.
        let mut replaceable = if enough { usize::MAX } else { added.len() };
        next.members.retain(|node| {
            let goes = !staying.contains(node) && !config.is_in_sync(*node) && replaceable > 0;
            replaceable -= usize::from(goes);
            !goes
        });
        next.members.extend(&added);
        self.order(config, &mut next);
        let is_left = |node: &NodeId| next.members.contains(node) && enough;
        // One that is gone is taken out by its primary like any that fails.
        let goes = |node: &NodeId| {
            !staying.contains(node) && !self.is_away(*node, config.group) && is_left(node)
        };
        next.leaving = next.members.iter().copied().filter(goes).collect();
        let settled = next.staying().all(|node| config.is_in_sync(node));
        if next.leaving.is_empty() && staying.len() > wanted && settled {
            next.leaving.extend(self.surplus(&next));
        }
        (next != *config).then(|| GroupConfig {
            epoch: config.epoch.next(),
            ..next
        })
    }

    /// New members take the places of those whom they replace, so that first members, which lead, stay evenly spread.
    fn order(&self, before: &GroupConfig, next: &mut GroupConfig) {
        let mut new: Vec<NodeId> = next
            .members
            .iter()
            .copied()
            .filter(|node| !before.members.contains(node))
            .collect();
        new.reverse();
        let mut ordered = Vec::new();
        let mut last = Vec::new();
        for &node in &before.members {
            let stays = next.members.contains(&node);
            let lasts = stays && !self.is_away(node, before.group) && !self.is_draining(node);
            if lasts && !before.leaving.contains(&node) {
                ordered.push(node);
                continue;
            }
            match new.pop() {
                Some(replacement) => {
                    ordered.push(replacement);
                    last.extend(stays.then_some(node));
                }
                None => ordered.extend(stays.then_some(node)),
            }
        }
        new.reverse();
        next.members = ordered.into_iter().chain(new).chain(last).collect();
    }

    /// The best datanode for a further replica.
    fn target(&self, config: &GroupConfig, staying: &[NodeId]) -> Option<NodeId> {
        let preferred = config
            .members
            .iter()
            .find_map(|node| match self.node(*node)?.state {
                NodeState::Draining { to, .. } => to,
                NodeState::Active => None,
            });
        let is_outside = |node: NodeId| !config.members.contains(&node) && !staying.contains(&node);
        let fit = self.map.nodes.iter().filter(|node| {
            self.is_fit(node) && is_outside(node.id) && !self.view.has_lost(node.id, config.group)
        });
        let fit: Vec<&NodeInfo> = fit.collect();
        // What is to go to one node waits for it as long as it can take it.
        let preferred = preferred.filter(|to| fit.iter().any(|node| node.id == *to));
        let is_meant = |node: &&&NodeInfo| preferred.is_none_or(|to| node.id == to);
        let has_room = |node: &&&NodeInfo| self.load(node.id).coming < REPAIRS_PER_NODE_MAX;
        let candidates = fit.iter().filter(is_meant).filter(has_room);
        let best = candidates.min_by_key(|node| {
            (
                self.shared_zones(node, staying),
                self.weight(node, 1),
                node.id,
            )
        });
        best.map(|node| node.id)
    }

    /// The member that is needed least of those that are too many: all are in sync.
    fn surplus(&self, config: &GroupConfig) -> Option<NodeId> {
        let members: Vec<NodeId> = config.staying().collect();
        let worst = members.iter().max_by_key(|member| {
            let others: Vec<NodeId> = members
                .iter()
                .copied()
                .filter(|other| other != *member)
                .collect();
            let node = self.node(**member);
            let shared = node.map_or((0, 0), |node| self.shared_zones(node, &others));
            let weight = node.map_or(u128::MAX, |node| self.weight(node, 0));
            (shared, **member != config.primary, weight, **member)
        });
        worst.copied()
    }

    /// Whether nothing is to be made again and nothing moves: only then is load evened out.
    fn all_is_well(&self) -> bool {
        let alive = |node: &NodeInfo| {
            self.view.presence(node.id) == Presence::Alive || self.load(node.id).replicas == 0
        };
        let is_well = |config: &GroupConfig| config.is_full() && config.epoch > FOUNDING;
        self.map.groups.iter().all(is_well) && self.map.nodes.iter().all(alive)
    }

    /// One replica to a place where it is better: in a zone of its own, or on a node that carries less.
    fn even_out(&self) -> Option<GroupConfig> {
        let mut best: Option<(Gain, GroupConfig)> = None;
        for config in &self.map.groups {
            for &from in &config.members {
                for to in self.map.nodes.iter().filter(|node| self.is_fit(node)) {
                    let Some(gain) = self.gain(config, from, to) else {
                        continue;
                    };
                    if best.as_ref().is_none_or(|(most, _)| gain > *most) {
                        best = Some((gain, moved(config, from, to.id)));
                    }
                }
            }
        }
        best.map(|(_, config)| config)
    }

    fn gain(&self, config: &GroupConfig, from: NodeId, to: &NodeInfo) -> Option<Gain> {
        let source = self.node(from)?;
        if config.members.contains(&to.id) || self.view.has_lost(to.id, config.group) {
            return None;
        }
        let others: Vec<NodeId> = config
            .members
            .iter()
            .copied()
            .filter(|node| *node != from)
            .collect();
        let (now, then) = (
            self.shared_zones(source, &others),
            self.shared_zones(to, &others),
        );
        if then > now {
            return None;
        }
        // Afterwards the source must still carry at least as much, or the next plan would move something back.
        let relief = self
            .weight(source, 0)
            .checked_sub(self.weight(to, 2))
            .map(|relief| relief + 1);
        let is_first = config.members.first() == Some(&from);
        let homes = |node| self.homes(node);
        let leads_well = is_first == (homes(from) > homes(to.id));
        match (then < now, relief) {
            (true, _) => Some(Gain {
                zones: now,
                relief: relief.unwrap_or(0),
                leads_well,
            }),
            (false, Some(relief)) => Some(Gain {
                zones: (0, 0),
                relief,
                leads_well,
            }),
            (false, None) => None,
        }
    }

    fn homes(&self, node: NodeId) -> usize {
        self.homes.get(&node).copied().unwrap_or(0)
    }

    fn node(&self, node: NodeId) -> Option<&NodeInfo> {
        self.map.node(node)
    }

    fn load(&self, node: NodeId) -> Load {
        self.loads.get(&node).copied().unwrap_or_default()
    }

    /// Replicas of a node, and `more`, in relation to its size.
    fn weight(&self, node: &NodeInfo, more: usize) -> u128 {
        let replicas = (self.load(node.id).replicas + more) as u128;
        replicas * u128::from(self.largest.unwrap_or(1).max(1))
            / u128::from(node.capacity_bytes.max(1))
    }

    /// How many of `others` are in the node's zone, and how many in the same part of the hierarchy above it.
    fn shared_zones(&self, node: &NodeInfo, others: &[NodeId]) -> (usize, usize) {
        let above = |zone: &str| zone.rsplit_once('/').map(|(above, _)| above.to_owned());
        let zones = others
            .iter()
            .filter_map(|other| self.node(*other))
            .map(|other| &other.zone);
        let same = zones.clone().filter(|zone| **zone == node.zone).count();
        let near = zones.filter(|zone| above(zone).is_some() && above(zone) == above(&node.zone));
        (same, near.count())
    }

    fn is_fit(&self, node: &NodeInfo) -> bool {
        node.state == NodeState::Active
            && self.view.presence(node.id) == Presence::Alive
            && node.free_bytes >= node.capacity_bytes / REPAIR_FREE_PART_MIN
    }

    fn is_draining(&self, node: NodeId) -> bool {
        self.node(node)
            .is_some_and(|node| node.state != NodeState::Active)
    }

    /// Whether a replica is as good as lost. Of a drained node that is silent nobody waits for the return.
    fn is_away(&self, node: NodeId, group: GroupId) -> bool {
        match self.view.presence(node) {
            Presence::Gone => true,
            Presence::Silent => self.is_draining(node),
            Presence::Alive => self.node(node).is_none() || self.view.has_lost(node, group),
        }
    }
}

/// What a move is good for, the most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Gain {
    zones: (usize, usize),
    relief: u128,
    leads_well: bool,
}

fn moved(config: &GroupConfig, from: NodeId, to: NodeId) -> GroupConfig {
    let mut next = config.clone();
    let place = |node: &mut NodeId| {
        if *node == from {
            *node = to;
        }
    };
    next.members.iter_mut().for_each(place);
    next.members.push(from);
    next.leaving.push(from);
    next.epoch = config.epoch.next();
    next
}
