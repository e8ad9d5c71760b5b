//! Plans lead to where they should, in few moves, whatever happened.

use super::*;
use lumeofs_base::{Epoch, GroupId};
use std::collections::BTreeSet;

#[derive(Default)]
struct Seen {
    silent: BTreeSet<u64>,
    gone: BTreeSet<u64>,
    lost: BTreeSet<(u64, u32)>,
}

impl View for Seen {
    fn presence(&self, node: NodeId) -> Presence {
        match node.get() {
            id if self.gone.contains(&id) => Presence::Gone,
            id if self.silent.contains(&id) => Presence::Silent,
            _ => Presence::Alive,
        }
    }
    fn has_lost(&self, node: NodeId, group: GroupId) -> bool {
        self.lost.contains(&(node.get(), group.get()))
    }
}

fn node(id: u64, zone: &str) -> NodeInfo {
    NodeInfo {
        id: NodeId(id),
        address: format!("host{id}:7000"),
        zone: zone.into(),
        capacity_bytes: 1 << 40,
        free_bytes: 1 << 39,
        state: NodeState::Active,
    }
}

/// A cluster with its groups formed, one node in each zone.
fn cluster(zones: &[&str]) -> ClusterMap {
    let mut map = ClusterMap {
        nodes: (1..).zip(zones).map(|(id, zone)| node(id, zone)).collect(),
        ..ClusterMap::default()
    };
    map.groups = super::super::groups::form(&map.nodes, &[], 3, GroupId(0));
    for config in &mut map.groups {
        config.epoch = config.epoch.next();
    }
    map
}

/// What primaries and time do: members that are alive catch up, those that leave and those that are gone are let go.
fn settle(map: &mut ClusterMap, seen: &Seen) {
    for config in &mut map.groups {
        let alive = |node: &NodeId| {
            seen.presence(*node) == Presence::Alive && !seen.has_lost(*node, config.group)
        };
        let mut next = config.clone();
        next.in_sync = config.members.iter().copied().filter(alive).collect();
        let spare = next.can_spare_leaving();
        next.in_sync
            .retain(|node| !spare || !next.leaving.contains(node));
        if !next.in_sync.contains(&next.primary) {
            next.primary = next.in_sync[0];
        }
        *config = next;
    }
}

/// Plans and settles until nothing is left to do; the number of replicas that were made.
fn run(map: &mut ClusterMap, seen: &Seen) -> usize {
    let mut made = 0;
    for _ in 0..200 {
        settle(map, seen);
        let changes = plan(map, seen);
        if changes.is_empty() {
            return made;
        }
        for next in changes {
            let current = map
                .groups
                .iter_mut()
                .find(|config| config.group == next.group)
                .unwrap();
            super::super::groups::check_reassignment(current, &next, &|_| true).unwrap();
            made += next
                .members
                .iter()
                .filter(|node| !current.members.contains(node))
                .count();
            *current = next;
        }
        let coming = |node: &NodeInfo| {
            let comes = |config: &&GroupConfig| {
                config.members.contains(&node.id) && !config.is_in_sync(node.id)
            };
            map.groups.iter().filter(comes).count()
        };
        for node in map
            .nodes
            .iter()
            .filter(|node| seen.presence(node.id) == Presence::Alive)
        {
            assert!(
                coming(node) <= REPAIRS_PER_NODE_MAX,
                "too much at once for {}",
                node.id
            );
        }
    }
    panic!("the plans never end: {map:#?}");
}

fn replicas_of(map: &ClusterMap, id: u64) -> usize {
    map.groups
        .iter()
        .filter(|config| config.members.contains(&NodeId(id)))
        .count()
}

fn assert_full(map: &ClusterMap) {
    for config in &map.groups {
        assert!(config.is_full(), "{config:?}");
    }
}

#[test]
fn nothing_is_done_while_all_is_well_or_a_node_may_come_back() {
    let mut map = cluster(&["a", "b", "c", "d"]);
    settle(&mut map, &Seen::default());
    assert_eq!(plan(&map, &Seen::default()), []);
    let seen = Seen {
        silent: [1].into(),
        ..Seen::default()
    };
    settle(&mut map, &seen);
    assert_eq!(plan(&map, &seen), []);
}

#[test]
fn replicas_of_a_node_that_is_gone_are_made_on_others_and_no_more_than_those() {
    let mut map = cluster(&["a", "b", "c", "d"]);
    let lost = replicas_of(&map, 1);
    let seen = Seen {
        gone: [1].into(),
        ..Seen::default()
    };
    assert_eq!(run(&mut map, &seen), lost);
    assert_eq!(replicas_of(&map, 1), 0);
    assert_full(&map);
}

#[test]
fn without_a_spare_node_the_members_stay_and_the_return_of_the_node_is_awaited() {
    let mut map = cluster(&["a", "b", "c"]);
    let seen = Seen {
        gone: [2].into(),
        ..Seen::default()
    };
    assert_eq!(run(&mut map, &seen), 0);
    assert_eq!(replicas_of(&map, 2), map.groups.len());
    map.nodes.push(node(4, "d"));
    let groups = map.groups.len();
    assert_eq!(run(&mut map, &seen), groups, "a new node takes the place");
    let firsts = map
        .groups
        .iter()
        .filter(|config| config.members[0] == NodeId(4))
        .count();
    assert_eq!(firsts, groups / 3, "and leads as many groups");
}

#[test]
fn the_group_with_the_fewest_copies_comes_first() {
    let mut map = cluster(&["a", "b", "c", "d", "e"]);
    let seen = Seen {
        gone: [1, 2].into(),
        ..Seen::default()
    };
    settle(&mut map, &seen);
    let first = plan(&map, &seen).remove(0);
    assert!(first.in_sync.len() == 1 || map.groups.iter().all(|config| config.in_sync.len() > 1));
    run(&mut map, &seen);
    assert_full(&map);
}

#[test]
fn a_drained_node_keeps_its_replicas_until_others_have_them() {
    let mut map = cluster(&["a", "b", "c", "d"]);
    let lost = replicas_of(&map, 3);
    map.nodes[2].state = NodeState::Draining {
        to: None,
        remove: false,
    };
    settle(&mut map, &Seen::default());
    for next in plan(&map, &Seen::default()) {
        assert!(next.members.contains(&NodeId(3)) && next.leaving == [NodeId(3)]);
        assert!(!next.can_spare_leaving());
    }
    assert_eq!(run(&mut map, &Seen::default()), lost);
    assert_eq!(replicas_of(&map, 3), 0);
    assert_full(&map);
}

#[test]
fn a_drain_that_is_called_off_leaves_no_group_with_too_many() {
    let mut map = cluster(&["a", "b", "c", "d"]);
    settle(&mut map, &Seen::default());
    map.nodes[2].state = NodeState::Draining {
        to: None,
        remove: false,
    };
    for next in plan(&map, &Seen::default()) {
        let at = map
            .groups
            .iter()
            .position(|config| config.group == next.group)
            .unwrap();
        map.groups[at] = next;
    }
    map.nodes[2].state = NodeState::Active;
    run(&mut map, &Seen::default());
    assert_full(&map);
}

#[test]
fn the_replacement_that_was_named_takes_everything() {
    let mut map = cluster(&["a", "b", "c"]);
    map.nodes.push(node(4, "a"));
    map.nodes.push(node(5, "e"));
    settle(&mut map, &Seen::default());
    map.nodes[0].state = NodeState::Draining {
        to: Some(NodeId(4)),
        remove: true,
    };
    let groups = map.groups.len();
    let mut rounds = 0;
    while replicas_of(&map, 1) > 0 {
        settle(&mut map, &Seen::default());
        for next in plan(&map, &Seen::default()) {
            let at = map
                .groups
                .iter()
                .position(|config| config.group == next.group)
                .unwrap();
            map.groups[at] = next;
        }
        rounds += 1;
        assert!(rounds < 50);
    }
    assert_eq!((replicas_of(&map, 4), replicas_of(&map, 5)), (groups, 0));
}

#[test]
fn a_joining_node_gets_its_share_in_bounded_moves() {
    let mut map = cluster(&["a", "b", "c"]);
    map.nodes.push(node(4, "d"));
    let before = map.groups.len() * 3;
    let made = run(&mut map, &Seen::default());
    let counts: Vec<_> = (1..=4).map(|id| replicas_of(&map, id)).collect();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= 1, "{counts:?}");
    assert!(made <= before / 4, "{made} replicas moved");
    assert_full(&map);
}

#[test]
fn a_small_node_gets_less() {
    let mut map = cluster(&["a", "b", "c"]);
    let mut small = node(4, "d");
    (small.capacity_bytes, small.free_bytes) = (1 << 38, 1 << 38);
    map.nodes.push(small);
    run(&mut map, &Seen::default());
    assert!(
        (1..=3).contains(&replicas_of(&map, 4)),
        "{}",
        replicas_of(&map, 4)
    );
}

#[test]
fn replicas_move_apart_when_a_zone_appears() {
    let mut map = cluster(&["a", "a", "b"]);
    map.nodes.push(node(4, "c"));
    run(&mut map, &Seen::default());
    for config in &map.groups {
        let zones: BTreeSet<_> = config
            .members
            .iter()
            .map(|id| &map.node(*id).unwrap().zone)
            .collect();
        assert_eq!(zones.len(), 3, "{config:?}");
    }
}

#[test]
fn a_lost_disk_costs_its_groups_only() {
    let mut map = cluster(&["a", "b", "c", "d"]);
    let group = map
        .groups
        .iter()
        .find(|config| config.members.contains(&NodeId(2)))
        .unwrap()
        .group;
    let seen = Seen {
        lost: [(2, group.get())].into(),
        ..Seen::default()
    };
    settle(&mut map, &seen);
    let made = run(&mut map, &seen);
    assert!(
        (1..=2).contains(&made),
        "{made} made, one of them to even out what the other changed"
    );
    assert!(!map.group(group).unwrap().members.contains(&NodeId(2)));
    assert!(replicas_of(&map, 2) > 0);
    assert_full(&map);
}

#[test]
fn a_full_node_gets_nothing() {
    let mut map = cluster(&["a", "b", "c", "d"]);
    map.nodes[3].free_bytes = 1 << 30;
    let seen = Seen {
        gone: [1].into(),
        ..Seen::default()
    };
    let before: BTreeSet<_> = map
        .groups
        .iter()
        .filter(|config| config.members.contains(&NodeId(4)))
        .map(|config| config.group)
        .collect();
    run(&mut map, &seen);
    let after = map
        .groups
        .iter()
        .filter(|config| config.members.contains(&NodeId(4)))
        .map(|config| config.group)
        .collect();
    assert_eq!(before, after);
}

#[test]
fn epochs_go_up_by_one() {
    let mut map = cluster(&["a", "b", "c", "d"]);
    let seen = Seen {
        gone: [1].into(),
        ..Seen::default()
    };
    settle(&mut map, &seen);
    for next in plan(&map, &seen) {
        assert_eq!(next.epoch, Epoch(3));
    }
}
