//! Forming groups and changing them by compare-and-set.

use super::*;
use crate::tables::MemoryTables;
use lumeofs_base::limits::PRIMARIES_PER_DATANODE;
use lumeofs_base::{GroupId, NodeId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
struct Fixture {
    tables: MemoryTables,
    index: u64,
}

fn node(id: u64, zone: &str) -> NodeInfo {
    NodeInfo {
        id: NodeId(id),
        address: format!("host{id}:7000"),
        zone: zone.into(),
        capacity_bytes: 1000,
        free_bytes: 1000,
        state: NodeState::Active,
    }
}

impl Fixture {
    fn run(&mut self, command: ControllerCommand) -> ControllerReply {
        self.index += 1;
        let batch = ControllerBatch {
            commands: vec![command],
        };
        apply(&mut self.tables, self.index, &batch).remove(0)
    }

    fn init(&mut self, replicas: u32) {
        let (chunk_size, always_durable) = (64 << 20, true);
        self.run(ControllerCommand::Init {
            chunk_size,
            replicas,
            always_durable,
        });
    }

    /// A formed cluster with a node in each of these zones.
    fn formed(replicas: u32, zones: &[&str]) -> Self {
        let mut fixture = Self::default();
        fixture.init(replicas);
        for (id, zone) in (1..).zip(zones) {
            fixture.run(ControllerCommand::Register(node(id, zone)));
        }
        fixture.form();
        fixture
    }

    fn form(&mut self) -> ControllerReply {
        let alive = self.map().nodes.iter().map(|node| node.id).collect();
        self.run(ControllerCommand::FormGroups { alive })
    }

    fn map(&self) -> ClusterMap {
        cluster_map(&self.tables)
    }

    fn set(&mut self, expected: u64, config: &GroupConfig) -> Result<(), Code> {
        let (expected, config) = (Epoch(expected), config.clone());
        match self.run(ControllerCommand::SetConfig {
            expected,
            config: config.clone(),
        }) {
            ControllerReply::Config(Ok(now)) => {
                assert_eq!(now, config);
                Ok(())
            }
            ControllerReply::Config(Err((error, now))) => {
                assert_eq!(now.as_deref(), self.map().group(config.group));
                Err(error.code)
            }
            other => panic!("SetConfig answers with a configuration, not {other:?}"),
        }
    }
}

#[test]
fn policies_are_set_once() {
    let mut fixture = Fixture::default();
    assert_eq!(fixture.map().version, 0);
    fixture.init(3);
    let map = fixture.map();
    assert_eq!(
        (map.version, map.chunk_size, map.always_durable),
        (1, 64 << 20, true)
    );
    let again = ControllerCommand::Init {
        chunk_size: 1,
        replicas: 1,
        always_durable: false,
    };
    assert_eq!(fixture.run(again), ControllerReply::Done);
    assert_eq!(fixture.map(), map);
}

#[test]
fn masters_that_joined_are_remembered() {
    let mut fixture = Fixture::default();
    for id in [3, 1, 3] {
        fixture.run(ControllerCommand::MasterJoined(NodeId(id)));
    }
    assert_eq!(joined_masters(&fixture.tables), [NodeId(1), NodeId(3)]);
    assert_eq!(fixture.map().version, 0, "no datanode need hear of it");
}

#[test]
fn every_node_is_primary_of_enough_groups_and_the_others_take_turns() {
    for count in [1, 2, 3, 4, 5, 7] {
        let zones = ["a", "b", "c", "d", "e", "f", "g"];
        let replicas = count.min(3);
        let map = Fixture::formed(replicas as u32, &zones[..count]).map();
        assert_eq!(map.groups.len(), count * PRIMARIES_PER_DATANODE);
        let (mut primaries, mut uses) = (BTreeMap::new(), BTreeMap::new());
        for config in &map.groups {
            assert_eq!(config.epoch, Epoch(1));
            assert_eq!(
                (config.members.len(), &config.in_sync),
                (replicas, &config.members)
            );
            assert_eq!(config.primary, config.members[0]);
            assert_eq!(
                config.members.iter().collect::<BTreeSet<_>>().len(),
                replicas
            );
            *primaries.entry(config.primary).or_insert(0) += 1;
            for member in &config.members {
                *uses.entry(*member).or_insert(0) += 1;
            }
        }
        assert!(
            primaries.len() == count && primaries.values().all(|&n| n == PRIMARIES_PER_DATANODE)
        );
        let (least, most) = (uses.values().min().unwrap(), uses.values().max().unwrap());
        assert!(most - least <= 2, "{count} nodes: {uses:?}");
    }
}

#[test]
fn members_lie_in_different_zones_where_there_are_enough() {
    let map = Fixture::formed(3, &["a", "a", "b", "b", "c", "c"]).map();
    for config in &map.groups {
        let zones: BTreeSet<_> = config
            .members
            .iter()
            .map(|&id| map.node(id).unwrap().zone.clone())
            .collect();
        assert_eq!(zones.len(), 3, "{config:?}");
    }
    let map = Fixture::formed(3, &["a", "a", "b"]).map();
    assert!(map.groups.iter().all(|config| config.members.len() == 3));
}

#[test]
fn groups_are_formed_once_a_node_and_not_too_early() {
    let mut fixture = Fixture::formed(3, &["a", "b"]);
    assert_eq!(fixture.map().groups, []);
    fixture.run(ControllerCommand::Register(node(3, "c")));
    fixture.form();
    let groups = fixture.map().groups;
    assert_eq!(groups.len(), 12);
    fixture.form();
    assert_eq!(fixture.map().groups, groups);
    fixture.run(ControllerCommand::Register(node(4, "d")));
    fixture.form();
    let more = fixture.map().groups;
    assert_eq!(more[..12], groups);
    assert_eq!(more.len(), 16);
    for (id, config) in (13..).zip(&more[12..]) {
        assert_eq!((config.group, config.primary), (GroupId(id), NodeId(4)));
        assert_eq!(config.members.iter().collect::<BTreeSet<_>>().len(), 3);
    }
    let mut without_policy = Fixture::default();
    without_policy.run(ControllerCommand::Register(node(1, "a")));
    without_policy.form();
    assert_eq!(without_policy.map().groups, []);
}

#[test]
fn a_change_of_space_alone_makes_no_new_version() {
    let mut fixture = Fixture::formed(1, &["a"]);
    let version = fixture.map().version;
    fixture.run(ControllerCommand::Register(NodeInfo {
        free_bytes: 5,
        ..node(1, "a")
    }));
    assert_eq!(
        (fixture.map().version, fixture.map().nodes[0].free_bytes),
        (version, 5)
    );
    let moved = NodeInfo {
        address: "elsewhere:1".into(),
        ..node(1, "a")
    };
    fixture.run(ControllerCommand::Register(moved.clone()));
    assert_eq!(
        (fixture.map().version, &fixture.map().nodes[0]),
        (fixture.index, &moved)
    );
}

#[test]
fn a_configuration_changes_by_compare_and_set() {
    let mut fixture = Fixture::formed(3, &["a", "b", "c"]);
    let first = fixture.map().groups[0].clone();
    let mut smaller = GroupConfig {
        epoch: Epoch(2),
        ..first.clone()
    };
    smaller.in_sync.pop();
    assert_eq!(fixture.set(1, &smaller), Ok(()));
    assert_eq!(fixture.map().version, fixture.index);
    assert_eq!(fixture.set(1, &smaller), Ok(()), "the same proposal again");
    assert_eq!(
        fixture.map().version,
        fixture.index - 1,
        "and nothing has changed"
    );

    let rival = GroupConfig {
        epoch: Epoch(2),
        primary: first.members[1],
        ..first.clone()
    };
    assert_eq!(fixture.set(1, &rival), Err(Code::StaleEpoch));
    let next = GroupConfig {
        epoch: Epoch(3),
        ..first.clone()
    };
    assert_eq!(fixture.set(2, &next), Ok(()), "a member is in sync again");
    let unknown = GroupConfig {
        group: GroupId(999),
        ..next
    };
    assert_eq!(fixture.set(3, &unknown), Err(Code::NotFound));
}

#[test]
fn unsafe_configurations_are_refused() {
    let mut fixture = Fixture::formed(3, &["a", "b", "c", "d"]);
    let good = GroupConfig {
        epoch: Epoch(2),
        ..fixture.map().groups[0].clone()
    };
    let (a, b, c) = (good.members[0], good.members[1], good.members[2]);
    let outside = fixture
        .map()
        .nodes
        .iter()
        .map(|node| node.id)
        .find(|id| !good.members.contains(id));
    let outside = outside.unwrap();
    let with = |members: &[NodeId], in_sync: &[NodeId], primary| GroupConfig {
        members: members.to_vec(),
        in_sync: in_sync.to_vec(),
        primary,
        ..good.clone()
    };
    let bad = [
        GroupConfig {
            epoch: Epoch(3),
            ..good.clone()
        },
        with(&[a, b, c], &[b, c], a),
        with(&[a, b, c], &[a], a),
        with(&[a, b, c], &[a, a], a),
        with(&[a, b, c], &[a, outside], a),
        with(&[outside, b, c], &[b, c], b),
        with(&[], &[], a),
    ];
    for config in &bad {
        assert_eq!(fixture.set(1, config), Err(Code::Invalid), "{config:?}");
    }
    assert_eq!(fixture.set(1, &with(&[a, b, c], &[b, c], b)), Ok(()));
}

#[test]
fn members_are_changed_by_the_controller_only_and_nobody_in_sync_is_dropped() {
    let mut fixture = Fixture::formed(3, &["a", "b", "c", "d"]);
    let first = fixture.map().groups[0].clone();
    let (a, b, c) = (first.members[0], first.members[1], first.members[2]);
    let nodes = fixture.map().nodes;
    let outside = nodes.iter().find(|node| !first.members.contains(&node.id));
    let outside = outside.unwrap().id;
    let out_of_sync = GroupConfig {
        epoch: Epoch(2),
        in_sync: vec![a, b],
        ..first.clone()
    };
    assert_eq!(fixture.set(1, &out_of_sync), Ok(()));
    let with = |members: &[NodeId], leaving: &[NodeId]| GroupConfig {
        epoch: Epoch(3),
        members: members.to_vec(),
        leaving: leaving.to_vec(),
        ..out_of_sync.clone()
    };
    let mut reassign = |expected, config: &GroupConfig| {
        let (expected, config) = (Epoch(expected), config.clone());
        match fixture.run(ControllerCommand::Reassign { expected, config }) {
            ControllerReply::Config(Ok(_)) => Ok(()),
            ControllerReply::Config(Err((error, _))) => Err(error.code),
            other => panic!("{other:?}"),
        }
    };
    let bad = [
        with(&[a, c, outside], &[]),
        with(&[a, b, NodeId(99)], &[]),
        with(&[a, b, outside, outside], &[]),
        with(&[a, b], &[]),
        with(&[a, b, outside], &[c]),
        GroupConfig {
            in_sync: vec![a],
            ..with(&[a, b, outside], &[])
        },
        GroupConfig {
            primary: b,
            ..with(&[a, b, outside], &[])
        },
    ];
    for config in &bad {
        assert_eq!(reassign(2, config), Err(Code::Invalid), "{config:?}");
    }
    assert_eq!(
        reassign(1, &with(&[a, b, outside], &[])),
        Err(Code::StaleEpoch)
    );
    assert_eq!(
        reassign(2, &with(&[outside, b, a], &[a])),
        Err(Code::Invalid),
        "too few would stay"
    );
    assert_eq!(reassign(2, &with(&[outside, b, c, a], &[a])), Ok(()));
}

#[test]
fn a_removed_datanode_never_comes_back() {
    let mut fixture = Fixture::formed(3, &["a", "b", "c"]);
    let done = |reply: ControllerReply| match reply {
        ControllerReply::Done => Ok(()),
        ControllerReply::Refused(error) => Err(error.code),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        done(fixture.run(ControllerCommand::RemoveNode(NodeId(1)))),
        Err(Code::Busy)
    );
    assert_eq!(
        done(fixture.run(ControllerCommand::RemoveNode(NodeId(9)))),
        Err(Code::NotFound)
    );
    fixture.run(ControllerCommand::Register(node(9, "d")));
    let drain = ControllerCommand::SetNodeState {
        node: NodeId(9),
        state: NodeState::Draining {
            to: None,
            remove: true,
        },
    };
    assert_eq!(done(fixture.run(drain)), Ok(()));
    fixture.run(ControllerCommand::Register(node(9, "e")));
    let is_draining = |node: &NodeInfo| node.state != NodeState::Active;
    assert!(
        fixture.map().node(NodeId(9)).is_some_and(is_draining),
        "a report does not end it"
    );
    for _ in 0..2 {
        assert_eq!(
            done(fixture.run(ControllerCommand::RemoveNode(NodeId(9)))),
            Ok(())
        );
    }
    let back = fixture.run(ControllerCommand::Register(node(9, "d")));
    assert_eq!(done(back), Err(Code::Refused));
    assert_eq!(fixture.map().nodes.len(), 3);
}

#[test]
fn groups_do_not_pile_up_as_nodes_come_and_go() {
    let mut fixture = Fixture::formed(3, &["a", "b", "c"]);
    for id in 10..20 {
        fixture.run(ControllerCommand::Register(node(id, "d")));
        fixture.form();
        for old in fixture
            .map()
            .groups
            .clone()
            .into_iter()
            .filter(|config| config.members.contains(&NodeId(id)))
        {
            let free = (1..=3)
                .map(NodeId)
                .find(|node| !old.members.contains(node))
                .unwrap();
            let mut next = old.clone();
            next.epoch = next.epoch.next();
            next.in_sync.retain(|node| *node != NodeId(id));
            if next.primary == NodeId(id) {
                next.primary = next.in_sync[0];
            }
            fixture.set(old.epoch.get(), &next).unwrap();
            let expected = next.epoch;
            next.epoch = next.epoch.next();
            next.members
                .iter_mut()
                .filter(|node| **node == NodeId(id))
                .for_each(|node| *node = free);
            let reply = fixture.run(ControllerCommand::Reassign {
                expected,
                config: next,
            });
            assert!(matches!(reply, ControllerReply::Config(Ok(_))), "{reply:?}");
        }
        assert_eq!(
            fixture.run(ControllerCommand::RemoveNode(NodeId(id))),
            ControllerReply::Done
        );
    }
    assert_eq!(fixture.map().groups.len(), 4 * PRIMARIES_PER_DATANODE);
}
