//! Metadata calls, sessions and open files through their faults.

use super::cluster::{Answer, Cluster, World, cx};
use super::until;
use crate::client::{Context, OnOutage};
use crate::wait::{Halt, Patience};
use lumeofs_base::limits::OPENS_PER_REPORT_MAX;
use lumeofs_base::{Code, InodeId, NodeId};
use lumeofs_meta::op::{Command, Internal, Mutation, NewNode};
use lumeofs_proto::frame::Op;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

pub(super) fn end_sessions(world: &World) {
    for session in 1..10 {
        let close = Internal::CloseSession {
            session: session.into(),
        };
        world.command(Command::Internal(close)).unwrap();
    }
}

#[test]
fn a_retried_mutation_keeps_its_sequence_and_happens_once() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    cluster.masters[0].once(Op::Mutate, |frame, world| {
        world.answer(frame).unwrap();
        Answer::Drop
    });
    let root = InodeId::ROOT;
    let (attr, created) = client
        .create(cx(), root, b"d", NewNode::Directory, 0o755, true)
        .unwrap();
    assert!(created);
    assert_eq!(client.lookup(cx(), root, b"d").unwrap().ino, attr.ino);
    client.rmdir(cx(), root, b"d").unwrap();
    let sequences: Vec<_> = cluster
        .world
        .state
        .lock()
        .mutations
        .iter()
        .map(|(sequence, _)| *sequence)
        .collect();
    assert_eq!(sequences, [1, 1, 2]);
}

#[test]
fn a_hint_to_the_leader_is_followed_at_once() {
    let cluster = Cluster::start(3);
    let asked = Arc::new(AtomicUsize::new(0));
    for at in [0, 1] {
        let asked = asked.clone();
        cluster.masters[at].hook(move |frame, _| {
            let is_map = frame.fixed.op == Op::Map;
            (!is_map).then(|| {
                asked.fetch_add(1, Ordering::SeqCst);
                Answer::Fail(Code::NotLeader(Some(NodeId(3))).into())
            })
        });
    }
    let client = cluster.client();
    for _ in 0..10 {
        client.getattr(cx(), InodeId::ROOT).unwrap();
    }
    // More than one only if the background looked for a leader too, on a machine that is busy.
    assert!(asked.load(Ordering::SeqCst) <= 3);
    // The leader goes, another one comes.
    cluster.masters[2].hook(|_, _| Some(Answer::Drop));
    cluster.masters[0].hook(|_, _| None);
    client.getattr(cx(), InodeId::ROOT).unwrap();
}

#[test]
fn a_leader_that_hangs_is_left_when_another_one_answers() {
    let cluster = Cluster::start(2);
    let client = cluster.client();
    client.getattr(cx(), InodeId::ROOT).unwrap();
    // Both answer; whichever is asked now falls silent for good.
    let silent = Arc::new(AtomicUsize::new(usize::MAX));
    for (at, master) in cluster.masters.iter().enumerate() {
        let silent = silent.clone();
        master.hook(move |_, _| {
            let _ = silent.compare_exchange(usize::MAX, at, Ordering::SeqCst, Ordering::SeqCst);
            (silent.load(Ordering::SeqCst) == at).then_some(Answer::Hang)
        });
    }
    let start = crate::wait::now();
    client.getattr(cx(), InodeId::ROOT).unwrap();
    assert!(crate::wait::now() - start < Duration::from_millis(4800));
}

#[test]
fn an_interrupted_caller_does_not_wait_on() {
    let cluster = Cluster::start(1);
    let client = cluster.client_with(OnOutage::Block(None));
    let hit = Arc::new(AtomicBool::new(false));
    let told = hit.clone();
    cluster.masters[0].once(Op::Query, move |_, _| {
        told.store(true, Ordering::SeqCst);
        Answer::Hang
    });
    let interrupted = || hit.load(Ordering::SeqCst);
    let start = crate::wait::now();
    let cx = Context {
        interrupted: &interrupted,
        ..cx()
    };
    assert_eq!(
        client.getattr(cx, InodeId::ROOT).unwrap_err().code,
        Code::Interrupted
    );
    assert!(crate::wait::now() - start < Duration::from_secs(4));
}

#[test]
fn without_masters_a_call_ends_with_its_limit() {
    let cluster = Cluster::start(2);
    let limit = Duration::from_millis(300);
    let client = cluster.client_with(OnOutage::Block(Some(limit)));
    for master in &cluster.masters {
        master.hook(|_, _| Some(Answer::Drop));
    }
    let start = crate::wait::now();
    let error = client.getattr(cx(), InodeId::ROOT).unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    let waited = crate::wait::now() - start;
    assert!(
        waited >= limit && waited < Duration::from_secs(15),
        "{waited:?}: {error}"
    );
    client.close().unwrap();
    assert_eq!(
        client.getattr(cx(), InodeId::ROOT).unwrap_err().code,
        Code::Unavailable
    );
}

#[test]
fn a_lost_session_is_replaced_and_open_files_are_stated_again() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let root = InodeId::ROOT;
    let (attr, _) = client
        .create(cx(), root, b"f", NewNode::Regular, 0o644, true)
        .unwrap();
    end_sessions(&cluster.world);
    client
        .create(cx(), root, b"g", NewNode::Directory, 0o755, true)
        .unwrap();
    until("a whole list with the open file", || {
        let state = cluster.world.state.lock();
        state
            .reports
            .iter()
            .any(|report| report.complete && report.opened == [attr.ino.get()])
    });
    // Now with an outcome that is not known.
    cluster.masters[0].once(Op::Mutate, |frame, world| {
        world.answer(frame).unwrap();
        end_sessions(world);
        Answer::Drop
    });
    let error = client
        .create(cx(), root, b"h", NewNode::Directory, 0o755, true)
        .unwrap_err();
    assert_eq!(error.code, Code::Io);
    client
        .create(cx(), root, b"i", NewNode::Directory, 0o755, true)
        .unwrap();
}

#[test]
fn a_new_leader_hears_of_open_files_and_of_releases() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let made = cluster.world.mutate(Mutation::Create {
        parent: InodeId::ROOT,
        name: b"f".to_vec(),
        node: NewNode::Regular,
        mode: 0o644.into(),
        exclusive: true,
    });
    let Ok(lumeofs_meta::op::Reply::Created { attr, .. }) = made else {
        panic!()
    };
    client.open(cx(), attr.ino, false).unwrap();
    client.open(cx(), attr.ino, false).unwrap();
    let reports = |complete| {
        let state = cluster.world.state.lock();
        state
            .reports
            .iter()
            .filter(|report| report.complete == complete)
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(reports(false).len(), 1);
    cluster.world.state.lock().term = 2;
    until("a whole list", || {
        reports(true)
            .iter()
            .any(|report| report.opened == [attr.ino.get()])
    });
    client.release(attr.ino);
    client.release(attr.ino);
    until("a release", || {
        reports(false)
            .iter()
            .any(|report| report.released == [attr.ino.get()] && report.term == 2)
    });
}

#[test]
fn a_long_list_of_open_files_is_stated_in_parts_to_one_leader() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let count = OPENS_PER_REPORT_MAX as u64 * 2 + 10;
    let halt = Halt::default();
    let patience = Patience::background(&halt, None);
    until("the opens are stated as leases begin", || {
        client.lease_stats().is_valid && !cluster.world.state.lock().reports.is_empty()
    });
    let seen = client.link.opens.restatements(&patience).unwrap();
    for ino in 1..=count {
        assert!(client.link.opens.created(InodeId(ino << 40), seen));
    }
    let state = &cluster.world.state;
    // A third leader comes between the first part and the second.
    let mut parts = 0;
    cluster.masters[0].hook(move |frame, world| {
        if frame.fixed.op == Op::Opens {
            parts += 1;
            if parts == 2 {
                world.state.lock().term = 3;
            }
        }
        None
    });
    state.lock().term = 2;
    let parts_of = |term| {
        let state = state.lock();
        let of_term = state.reports.iter().filter(|report| report.term == term);
        of_term.cloned().collect::<Vec<_>>()
    };
    until("the whole list", || {
        parts_of(3).iter().any(|report| report.complete)
    });
    assert_eq!(parts_of(2).len(), 1);
    let parts = parts_of(3);
    let complete: Vec<_> = parts.iter().map(|part| part.complete).collect();
    assert_eq!(complete, [false, false, true]);
    assert!(parts.iter().all(|part| part.part));
    let mut inos: Vec<_> = parts.into_iter().flat_map(|part| part.opened).collect();
    inos.sort_unstable();
    assert!(inos.into_iter().eq((1..=count).map(|ino| ino << 40)));
}

#[test]
fn usage_divides_by_the_copies() {
    let cluster = Cluster::start(1);
    let usage = cluster.client().usage(cx()).unwrap();
    assert_eq!(
        (usage.inodes, usage.capacity_bytes, usage.free_bytes),
        (1, 3 << 30, 1 << 30)
    );
}
