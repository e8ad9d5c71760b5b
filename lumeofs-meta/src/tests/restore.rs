//! Tables that are made from a dump: all that was there is there, and nothing that was given out is given out again.

use super::*;
use crate::controller::{self, MasterRecord, MasterState, MastersCommand};
use crate::controller::{ControllerBatch, ControllerCommand};
use crate::restore::{Contents, Controller, Metadata};
use crate::tables::Tables as _;
use lumeofs_base::{NodeId, NodeInfo, NodeState};

fn rows(tables: &MemoryTables) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
    tables.0.iter()
}

pub(super) fn restored(tables: &MemoryTables) -> MemoryTables {
    let mut restore = Metadata::default();
    let mut new = MemoryTables::default();
    for (key, value) in rows(tables) {
        if let Some((key, value)) = restore.row(key, value) {
            new.put(&key, value);
        }
    }
    for (key, value) in restore.end() {
        new.put(&key, value);
    }
    new
}

#[test]
fn files_are_all_there_and_ids_and_sessions_of_the_lost_masters_are_not_used_again() {
    let mut fixture = Fixture::new();
    let dir = fixture.dir(InodeId::ROOT, "dir");
    let file = fixture.file(dir, "file");
    fixture.file(dir, "unlinked");
    fixture.mutate(unlink(dir, "unlinked")).unwrap();
    let written = fixture.mutate(Mutation::Append {
        ino: file,
        len: 5000,
        clear_suid: false,
    });
    written.unwrap();
    let (before, old_session) = (fixture.attr(file), fixture.session);
    let old_chunk = namespace::next_chunk(&fixture.tables);
    let old_fence = namespace::fence(&fixture.tables);

    fixture.tables = restored(&fixture.tables);
    fixture.check();
    let after = fixture.attr(file);
    assert!(after.truncations > before.truncations);
    let same = Attr {
        truncations: before.truncations,
        ..after.clone()
    };
    assert_eq!(same, before);
    assert_eq!(fixture.lookup(dir, "file"), Ok(file));
    assert!(namespace::is_held(&fixture.tables));
    assert!(namespace::era(&fixture.tables) > 1000);

    // The old session is none any more, and a fence that is newer than all shuts out it and later ones.
    assert!(!namespace::has_session(&fixture.tables, old_session));
    let fence = namespace::fence(&fixture.tables);
    assert!(fence.number > old_fence.number + 1000);
    assert!(!fence.admits(old_session) && !fence.admits(SessionId(old_session.get() + 1000)));
    let ending = namespace::ending_sessions(&fixture.tables);
    let [(lost, number)] = ending[..] else {
        panic!("{ending:?}")
    };
    assert_eq!(number, fence.number);
    fixture
        .internal(Internal::CloseEnded { session: lost })
        .unwrap();
    fixture.check();

    let open = Internal::OpenSession {
        nonce: 7,
        description: "new".into(),
    };
    fixture.session = match fixture.internal(open) {
        Ok(Reply::Session(id)) => id,
        other => panic!("{other:?}"),
    };
    fixture.sequence = 0;
    // The lost sessions may have written past its end: that must not become part of it.
    let grow = Mutation::Extend {
        ino: file,
        from: u64::MAX,
        size: 6000,
        truncations: after.truncations,
        clear_suid: false,
    };
    assert_eq!(fixture.refused(grow), Code::StaleWrite);
    let append = |ino| Mutation::Append {
        ino,
        len: 1,
        clear_suid: false,
    };
    assert!(fence.admits(fixture.session));
    let new = fixture.file(dir, "new");
    assert_eq!(new.slot(), file.slot());
    assert!(new.counter() > file.counter() + 1000);
    match fixture.mutate(append(new)) {
        Ok(Reply::Appended { chunks, .. }) => {
            assert!(chunks[0].chunk.get() > old_chunk.get() + 1000);
        }
        other => panic!("{other:?}"),
    }
    fixture.internal(Internal::EndHold).unwrap();
    assert!(!namespace::is_held(&fixture.tables));
    fixture.check();
}

#[test]
fn masters_are_replaced_by_a_new_one_and_groups_wait_to_be_confirmed() {
    let mut tables = MemoryTables::default();
    let node = |id| NodeInfo {
        id: NodeId(id),
        address: format!("d{id}:1"),
        zone: String::new(),
        capacity_bytes: 1,
        free_bytes: 1,
        state: NodeState::Active,
    };
    let nodes = || (11..14).map(node);
    let mut commands = vec![ControllerCommand::Init {
        chunk_size: 1 << 20,
        replicas: 3,
        always_durable: false,
    }];
    commands.extend(nodes().map(ControllerCommand::Register));
    let alive = nodes().map(|node| node.id).collect();
    commands.push(ControllerCommand::FormGroups { alive });
    let masters = vec![
        (NodeId(1), "m1:1".to_owned()),
        (NodeId(2), "m2:1".to_owned()),
    ];
    commands.push(ControllerCommand::Masters(MastersCommand::Found(masters)));
    controller::apply(&mut tables, 5, &ControllerBatch { commands });
    let old = controller::cluster_map(&tables);
    assert!(!old.groups.is_empty());

    let mut contents = Contents::default();
    rows(&tables).for_each(|(key, value)| contents.add(key, value));
    assert_eq!(contents.groups, old.groups.len() as u64);
    assert_eq!((contents.datanodes.len(), contents.masters.len()), (3, 2));
    let first = contents.first_master();
    assert!(first > NodeId(100));

    let mut restore = Controller::new(1 << 50, first, "new:1");
    let mut new = MemoryTables::default();
    for (key, value) in rows(&tables) {
        if let Some((key, value)) = restore.row(key, value) {
            new.put(&key, value);
        }
    }
    for (key, value) in restore.end(99) {
        new.put(&key, value);
    }
    let map = controller::cluster_map(&new);
    assert_eq!((map.version, map.groups.len()), (1 << 50, 0));
    assert_eq!(map.nodes, old.nodes);
    let sought = controller::sought(&new).unwrap();
    assert_eq!(sought.groups, old.groups);
    let voters: Vec<MasterRecord> = controller::masters(&new)
        .into_iter()
        .filter(|master| master.state != MasterState::Removed)
        .collect();
    assert_eq!((voters.len(), voters[0].id), (1, first));
    // Nothing is formed or forgotten before they are found, and new ids are above all others.
    let run = |tables: &mut MemoryTables, command| {
        let commands = vec![command];
        controller::apply(tables, (1 << 50) + 1, &ControllerBatch { commands }).remove(0)
    };
    let alive: Vec<NodeId> = map.nodes.iter().map(|node| node.id).collect();
    let form = || ControllerCommand::FormGroups {
        alive: alive.clone(),
    };
    run(&mut new, form());
    assert!(controller::cluster_map(&new).groups.is_empty());
    let refused = run(&mut new, ControllerCommand::RemoveNode(alive[0]));
    assert!(matches!(refused, controller::ControllerReply::Refused(_)));
    for config in sought.groups.clone() {
        run(&mut new, ControllerCommand::Confirm(config));
    }
    run(&mut new, ControllerCommand::Register(node(15)));
    run(
        &mut new,
        ControllerCommand::FormGroups {
            alive: alive.iter().copied().chain([NodeId(15)]).collect(),
        },
    );
    let map = controller::cluster_map(&new);
    assert!(map.groups.len() > old.groups.len());
    let formed = &map.groups[old.groups.len()..];
    assert!(formed.iter().all(|config| config.group >= sought.floor));
    let allocated = run(
        &mut new,
        ControllerCommand::Masters(MastersCommand::Allocate(3)),
    );
    let expected = controller::ControllerReply::Masters(Ok(NodeId(first.get() + 1)));
    assert_eq!(allocated, expected);
}
