//! Which replica groups may take new chunks.

use crate::raft::Store;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::rng::SplitMix64;
use lumeofs_base::{ClusterMap, GroupConfig, GroupId, entropy};
use lumeofs_meta::controller;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// How old a choice may be: space is reported about as often.
const CHOICE_AGE_MAX: Duration = Duration::from_millis(500);
/// A group with less than this part of the best one's free space gets no new chunks.
const FREE_PART_MIN: u64 = 10;

/// Chooses from the controller's state as this master knows it.
pub(crate) struct Placement {
    controller: Arc<Store>,
    choice: Mutex<Choice>,
}

struct Choice {
    made: Option<Duration>,
    groups: Vec<GroupId>,
    dice: SplitMix64,
}

impl Placement {
    /// Chooses from this state.
    pub(crate) fn new(controller: Arc<Store>) -> Self {
        Self {
            controller,
            choice: Mutex::new(Choice {
                made: None,
                groups: Vec::new(),
                dice: SplitMix64::new(u64::from_le_bytes(entropy::bytes())),
            }),
        }
    }

    /// Groups for new chunks, beginning anywhere: who calls in a rhythm would always get the same ones of a fixed order.
    pub(crate) fn candidates(&self) -> Vec<GroupId> {
        let now = SystemClock.monotonic();
        let mut choice = self.choice.lock();
        let old = |made| now.saturating_sub(made) > CHOICE_AGE_MAX;
        if choice.groups.is_empty() || choice.made.is_none_or(old) {
            choice.groups = choose(&self.controller.read(controller::cluster_map));
            choice.made = Some(now);
        }
        let mut groups = choice.groups.clone();
        if !groups.is_empty() {
            let first = choice.dice.below(groups.len() as u64);
            groups.rotate_left(first as usize);
        }
        groups
    }
}

/// Whether this master knows of replica groups. Before it does, a lack of candidates is no lack of space.
pub(crate) fn has_groups(controller: &Store) -> bool {
    !controller.read(controller::cluster_map).groups.is_empty()
}

/// Groups whose fullest member has room: those that can acknowledge writes or, if there are none, all,
/// since an outage is no lack of space and writers wait for its end.
fn choose(map: &ClusterMap) -> Vec<GroupId> {
    let free = |config: &GroupConfig| {
        let free = config
            .in_sync
            .iter()
            .map(|node| map.node(*node).map_or(0, |info| info.free_bytes));
        free.min().unwrap_or(0)
    };
    let able = |config: &GroupConfig| config.in_sync.len() >= config.write_quorum();
    let any_able = map.groups.iter().any(able);
    let roomy: Vec<_> = map
        .groups
        .iter()
        .filter(|config| !any_able || able(config))
        .map(|config| (config.group, free(config)))
        .filter(|(_, free)| *free >= map.chunk_size)
        .collect();
    let best = roomy.iter().map(|(_, free)| *free).max().unwrap_or(0);
    roomy
        .into_iter()
        .filter(|(_, free)| *free >= best / FREE_PART_MIN)
        .map(|(group, _)| group)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::{Epoch, NodeId, NodeInfo};

    fn map(free: &[u64], in_sync: &[&[usize]]) -> ClusterMap {
        let node = |index: usize| NodeId(index as u64 + 1);
        let info = |(index, free): (usize, &u64)| NodeInfo {
            id: node(index),
            address: String::new(),
            zone: String::new(),
            capacity_bytes: 1 << 40,
            free_bytes: *free,
            state: lumeofs_base::NodeState::Active,
        };
        let group = |(index, members): (usize, &&[usize])| GroupConfig {
            group: GroupId(index as u32),
            epoch: Epoch(1),
            primary: node(members[0]),
            members: (0..3).map(node).collect(),
            in_sync: members.iter().map(|index| node(*index)).collect(),
            leaving: Vec::new(),
            replicas: 3,
        };
        ClusterMap {
            nodes: free.iter().enumerate().map(info).collect(),
            groups: in_sync.iter().enumerate().map(group).collect(),
            chunk_size: 64,
            ..ClusterMap::default()
        }
    }

    #[test]
    fn groups_without_quorum_or_room_get_no_chunks() {
        let map = map(&[1000, 1000, 80, 10], &[&[0, 1], &[0], &[0, 1, 2], &[1, 3]]);
        assert_eq!(choose(&map), [GroupId(0)]);
    }

    #[test]
    fn an_outage_of_all_groups_is_no_lack_of_space() {
        let map = map(&[1000, 10], &[&[0], &[1]]);
        assert_eq!(choose(&map), [GroupId(0)]);
    }

    #[test]
    fn a_small_cluster_uses_all_it_has() {
        let map = map(&[100, 90, 80], &[&[0, 1, 2], &[1, 2, 0]]);
        assert_eq!(choose(&map), [GroupId(0), GroupId(1)]);
    }
}
