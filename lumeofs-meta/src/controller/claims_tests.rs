//! Tests of groups that are sought after a load.

use super::claims::{EPOCH_JUMP, Sought, confirmable, sought};
use super::{ControllerBatch, ControllerCommand, ControllerReply, apply, cluster_map};
use crate::keys;
use crate::record::encode;
use crate::tables::{MemoryTables, Tables as _};
use lumeofs_base::{ClusterMap, Epoch, GroupConfig, GroupId, NodeId};
use std::collections::BTreeMap;

fn ids(nodes: &[u64]) -> Vec<NodeId> {
    nodes.iter().copied().map(NodeId).collect()
}

fn config(group: u32, epoch: u64, members: &[u64]) -> GroupConfig {
    GroupConfig {
        group: GroupId(group),
        epoch: Epoch(epoch),
        primary: NodeId(members[0]),
        members: ids(members),
        in_sync: ids(members),
        leaving: Vec::new(),
        replicas: 3,
    }
}

fn loaded() -> Sought {
    Sought {
        floor: GroupId(100),
        groups: vec![config(1, 5, &[1, 2, 3])],
    }
}

fn told(what: &[(u64, &[GroupConfig])]) -> BTreeMap<NodeId, Vec<GroupConfig>> {
    let told = what.iter();
    told.map(|(node, configs)| (NodeId(*node), configs.to_vec()))
        .collect()
}

#[test]
fn one_member_is_not_enough_and_two_of_three_are() {
    let (old, new) = (config(1, 5, &[1, 2, 3]), config(1, 9, &[2, 4, 5]));
    let map = ClusterMap::default();
    let found = |told| confirmable(&loaded(), &map, &told);
    assert_eq!(found(told(&[(3, std::slice::from_ref(&old))])), []);
    // Two that know of no later one: no two others can have agreed on it.
    assert_eq!(
        found(told(&[(3, &[]), (1, &[])])),
        std::slice::from_ref(&old)
    );
    // A later one is known, and of its members only one was heard.
    let late = told(&[
        (3, std::slice::from_ref(&old)),
        (2, std::slice::from_ref(&new)),
    ]);
    assert_eq!(found(late.clone()), []);
    let mut late = late;
    late.insert(NodeId(5), vec![new.clone()]);
    assert_eq!(found(late), [new]);
}

#[test]
fn groups_that_are_younger_than_the_dump_are_found_and_those_of_the_map_left_alone() {
    let young = config(7, 2, &[1, 2, 3]);
    let everybody = told(&[(1, std::slice::from_ref(&young)), (2, &[]), (3, &[])]);
    let mut map = ClusterMap {
        groups: vec![config(1, 5 + EPOCH_JUMP, &[1, 2, 3])],
        ..ClusterMap::default()
    };
    assert_eq!(
        confirmable(&loaded(), &map, &everybody),
        std::slice::from_ref(&young)
    );
    map.groups.push(young);
    assert_eq!(confirmable(&loaded(), &map, &everybody), []);
    let beyond = told(&[(1, &[config(100, 2, &[1])])]);
    assert_eq!(confirmable(&loaded(), &map, &beyond), []);
}

#[test]
fn a_confirmed_group_is_in_the_map_with_an_epoch_that_nobody_had() {
    let mut tables = MemoryTables::default();
    let run = |tables: &mut MemoryTables, config: GroupConfig| {
        let commands = vec![ControllerCommand::Confirm(config)];
        apply(tables, 77, &ControllerBatch { commands }).remove(0)
    };
    let refused = run(&mut tables, config(1, 9, &[1, 2, 3]));
    assert!(
        matches!(refused, ControllerReply::Refused(_)),
        "never loaded"
    );
    tables.put(&keys::GROUP_FLOOR, encode(&GroupId(100)));
    tables.put(&keys::sought(GroupId(1)), encode(&config(1, 5, &[1, 2, 3])));
    assert!(cluster_map(&tables).groups.is_empty());
    let done = run(&mut tables, config(1, 9, &[1, 2, 3]));
    assert_eq!(done, ControllerReply::Done);
    let map = cluster_map(&tables);
    assert_eq!(map.groups, [config(1, 9 + EPOCH_JUMP, &[1, 2, 3])]);
    assert_eq!(map.version, 77);
    assert_eq!(sought(&tables).unwrap().groups, []);
    // Again: another leader may have thought of it too.
    assert_eq!(
        run(&mut tables, config(1, 8, &[1, 2, 3])),
        ControllerReply::Done
    );
    assert_eq!(cluster_map(&tables), map);
}
