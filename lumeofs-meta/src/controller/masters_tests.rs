//! Masters come, are admitted, replaced, removed, and never come back.

use super::masters::{self, MasterState, MastersCommand, MastersOutcome, VOTERS_MAX};
use super::*;
use crate::tables::MemoryTables;

fn run(tables: &mut MemoryTables, command: MastersCommand) -> MastersOutcome {
    let batch = ControllerBatch {
        commands: vec![ControllerCommand::Masters(command)],
    };
    match apply(tables, 1, &batch).remove(0) {
        ControllerReply::Masters(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

fn founded(count: u64) -> MemoryTables {
    let mut tables = MemoryTables::default();
    let founders = (1..=count).map(|id| (NodeId(id), format!("host{id}:7000")));
    run(&mut tables, MastersCommand::Found(founders.collect())).unwrap();
    tables
}

fn state(tables: &MemoryTables, id: u64) -> Option<MasterState> {
    let records = masters::masters(tables);
    let record = records.iter().find(|record| record.id == NodeId(id));
    record.map(|record| record.state)
}

fn admit(id: u64, replaces: Option<u64>) -> MastersCommand {
    MastersCommand::Admit {
        id: NodeId(id),
        address: Some(format!("host{id}:7000")),
        replaces: replaces.map(NodeId),
    }
}

fn announce(id: u64, join: bool) -> MastersCommand {
    MastersCommand::Announce {
        id: NodeId(id),
        address: format!("host{id}:7001"),
        join,
    }
}

#[test]
fn founders_are_recorded_once() {
    let mut tables = founded(3);
    let late = vec![(NodeId(9), "x:1".to_owned())];
    run(&mut tables, MastersCommand::Found(late)).unwrap();
    assert_eq!(masters::masters(&tables).len(), 3);
    assert_eq!(state(&tables, 1), Some(MasterState::Voter));
}

#[test]
fn the_same_nonce_gets_the_same_id_and_no_id_is_given_twice() {
    let mut tables = founded(3);
    let first = run(&mut tables, MastersCommand::Allocate(7)).unwrap();
    assert_eq!(first, NodeId(4));
    assert_eq!(
        run(&mut tables, MastersCommand::Allocate(8)).unwrap(),
        NodeId(5)
    );
    assert_eq!(
        run(&mut tables, MastersCommand::Allocate(7)).unwrap(),
        first
    );
    // Also when old allocations are forgotten.
    for nonce in 100..1200 {
        run(&mut tables, MastersCommand::Allocate(nonce)).unwrap();
    }
    let last = run(&mut tables, MastersCommand::Allocate(1199)).unwrap();
    assert_eq!(
        run(&mut tables, MastersCommand::Allocate(5000)).unwrap(),
        NodeId(last.get() + 1)
    );
}

#[test]
fn a_candidate_waits_to_be_admitted_unless_it_asked_to_join() {
    let mut tables = founded(1);
    run(&mut tables, announce(2, false)).unwrap();
    assert_eq!(state(&tables, 2), Some(MasterState::Candidate));
    let unknown = MastersCommand::Admit {
        id: NodeId(3),
        address: None,
        replaces: None,
    };
    assert_eq!(run(&mut tables, unknown).unwrap_err().code, Code::NotFound);
    run(&mut tables, admit(2, None)).unwrap();
    run(&mut tables, announce(3, true)).unwrap();
    for id in [2, 3] {
        assert_eq!(state(&tables, id), Some(MasterState::Joining));
        run(&mut tables, MastersCommand::Settle(NodeId(id))).unwrap();
        assert_eq!(state(&tables, id), Some(MasterState::Voter));
    }
}

#[test]
fn a_removed_master_never_comes_back() {
    let mut tables = founded(3);
    run(&mut tables, MastersCommand::Remove(NodeId(3))).unwrap();
    assert_eq!(state(&tables, 3), Some(MasterState::Leaving));
    assert_eq!(
        run(&mut tables, admit(3, None)).unwrap_err().code,
        Code::Busy
    );
    run(&mut tables, MastersCommand::Settle(NodeId(3))).unwrap();
    assert_eq!(state(&tables, 3), Some(MasterState::Removed));
    for command in [admit(3, None), announce(3, true), admit(3, Some(1))] {
        assert_eq!(run(&mut tables, command).unwrap_err().code, Code::Refused);
    }
    assert_eq!(
        run(&mut tables, MastersCommand::Allocate(1)).unwrap(),
        NodeId(4)
    );
}

#[test]
fn the_last_voter_stays_and_more_than_five_are_refused() {
    let mut tables = founded(VOTERS_MAX as u64);
    assert_eq!(
        run(&mut tables, admit(6, None)).unwrap_err().code,
        Code::NoSpace
    );
    for id in 2..=VOTERS_MAX as u64 {
        run(&mut tables, MastersCommand::Remove(NodeId(id))).unwrap();
        run(&mut tables, MastersCommand::Settle(NodeId(id))).unwrap();
    }
    let last = run(&mut tables, MastersCommand::Remove(NodeId(1)));
    assert_eq!(last.unwrap_err().code, Code::Invalid);
}

#[test]
fn a_replacement_settles_both_and_can_be_given_to_another() {
    let mut tables = founded(3);
    run(&mut tables, admit(4, Some(2))).unwrap();
    assert_eq!(state(&tables, 2), Some(MasterState::Leaving));
    let busy = run(&mut tables, MastersCommand::Remove(NodeId(4)));
    assert_eq!(busy.unwrap_err().code, Code::Busy);
    run(&mut tables, admit(5, Some(2))).unwrap();
    assert_eq!(state(&tables, 4), Some(MasterState::Leaving));
    run(&mut tables, MastersCommand::Settle(NodeId(5))).unwrap();
    assert_eq!(state(&tables, 5), Some(MasterState::Voter));
    assert_eq!(state(&tables, 2), Some(MasterState::Removed));
    // Asked once more, it is done.
    run(&mut tables, admit(5, Some(2))).unwrap();
    assert_eq!(
        run(&mut tables, admit(5, Some(1))).unwrap_err().code,
        Code::Exists
    );
}

#[test]
fn an_address_belongs_to_one_master() {
    let mut tables = founded(2);
    let taken = MastersCommand::Announce {
        id: NodeId(3),
        address: "host1:7000".into(),
        join: false,
    };
    assert_eq!(run(&mut tables, taken).unwrap_err().code, Code::Exists);
    let moved = announce(1, false);
    run(&mut tables, moved).unwrap();
    assert_eq!(masters::masters(&tables)[0].address, "host1:7001");
    assert_eq!(state(&tables, 1), Some(MasterState::Voter));
}
