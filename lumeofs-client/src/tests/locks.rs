//! Locks of callers, here and at another client.

use super::cluster::{Answer, Cluster, cx};
use super::files::file;
use super::until;
use crate::client::{Client, Context};
use lumeofs_base::{Code, FsResult, InodeId, SessionId};
use lumeofs_meta::locks::{Lock, LockKind, LockOwner, LockSpace};
use lumeofs_meta::op::{Command, Internal, Mutation};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::MetaRequest;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn owner(id: u64) -> LockOwner {
    let space = LockSpace::Range;
    LockOwner { space, id }
}

/// An exclusive lock of the bytes from `first` to `last`.
fn lock(id: u64, first: u64, last: u64) -> Lock {
    Lock {
        owner: owner(id),
        pid: 77,
        kind: LockKind::Exclusive,
        first,
        last,
    }
}

fn try_lock(client: &Client, ino: InodeId, lock: Lock) -> FsResult<()> {
    client.lock(cx(), ino, lock.owner.id, lock, None)
}

fn wait_lock(client: &Client, ino: InodeId, lock: Lock) -> FsResult<()> {
    client.lock(cx(), ino, lock.owner.id, lock, Some(&|| false))
}

fn unlock(client: &Client, ino: InodeId, id: u64) {
    client.unlock(cx(), ino, owner(id), 0, u64::MAX).unwrap();
}

fn code(result: FsResult<()>) -> Option<Code> {
    result.err().map(|error| error.code)
}

/// Mutations of locks that the masters have seen.
fn requests(cluster: &Cluster) -> usize {
    let state = cluster.world.state.lock();
    let of_locks = |mutation: &Mutation| {
        matches!(
            mutation,
            Mutation::Lock { .. } | Mutation::Unlock { .. } | Mutation::ReturnLocks { .. }
        )
    };
    let mutations = state.mutations.iter();
    mutations.filter(|(_, mutation)| of_locks(mutation)).count()
}

#[test]
fn who_locks_alone_asks_once_and_who_comes_then_sees_all_of_it() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let ino = file(&a, "f");
    for round in 0..100 {
        try_lock(&a, ino, lock(1, 0, round)).unwrap();
        assert_eq!(code(try_lock(&a, ino, lock(2, 0, 0))), Some(Code::Again));
        assert_eq!(
            a.test_lock(cx(), ino, lock(2, 0, 0)).unwrap().unwrap().pid,
            77
        );
        a.unlock(cx(), ino, owner(1), 0, 0).unwrap();
        try_lock(&a, ino, lock(2, 0, 0)).unwrap();
        unlock(&a, ino, 2);
    }
    assert_eq!(requests(&cluster), 1);
    assert_eq!(code(try_lock(&b, ino, lock(1, 50, 50))), Some(Code::Again));
    let held = b.test_lock(cx(), ino, lock(1, 0, 200)).unwrap().unwrap();
    assert_eq!((held.first, held.last, held.pid), (1, 99, 0));
    try_lock(&b, ino, lock(1, 100, 200)).unwrap();
    assert_eq!(code(try_lock(&a, ino, lock(1, 50, 150))), Some(Code::Again));
    // What this client has it need not unlock twice.
    unlock(&b, ino, 1);
    let before = requests(&cluster);
    unlock(&b, ino, 1);
    b.close_locks(cx(), ino, owner(1));
    assert_eq!(requests(&cluster), before);
    assert!(b.has_no_locks(ino, owner(1)) && !a.has_no_locks(ino, owner(1)));
}

#[test]
fn a_wait_ends_when_the_lock_is_let_go_elsewhere_or_the_caller_wants_no_more() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let ino = file(&a, "f");
    try_lock(&a, ino, lock(1, 0, 9)).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| wait_lock(&b, ino, lock(1, 5, 5)));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waits.is_finished());
        unlock(&a, ino, 1);
        waits.join().unwrap().unwrap();
    });
    let enough = AtomicBool::new(false);
    let interrupted = || enough.load(Ordering::SeqCst);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| a.lock(cx(), ino, 9, lock(3, 5, 5), Some(&interrupted)));
        std::thread::sleep(Duration::from_millis(100));
        enough.store(true, Ordering::SeqCst);
        assert_eq!(code(waits.join().unwrap()), Some(Code::Interrupted));
    });
    // Nothing is left of it.
    unlock(&b, ino, 1);
    try_lock(&b, ino, lock(2, 0, 9)).unwrap();
}

#[test]
fn callers_of_one_client_wait_for_each_other_and_for_those_of_others() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let ino = file(&a, "f");
    try_lock(&a, ino, lock(1, 0, 0)).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| wait_lock(&a, ino, lock(2, 0, 0)));
        until("it waits", || requests(&cluster) >= 2);
        unlock(&a, ino, 1);
        waits.join().unwrap().unwrap();
    });
    try_lock(&b, ino, lock(1, 1, 1)).unwrap();
    // 2 of the first waits for 1 of the second, and that would wait for it.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| wait_lock(&a, ino, lock(2, 1, 1)));
        std::thread::sleep(Duration::from_millis(200));
        let refused = wait_lock(&b, ino, lock(1, 0, 0));
        assert_eq!(code(refused), Some(Code::Deadlock));
        unlock(&b, ino, 1);
        waits.join().unwrap().unwrap();
    });
}

#[test]
fn many_waiters_leave_the_connections_to_others() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let ino = file(&a, "f");
    try_lock(&a, ino, lock(1, 0, 9)).unwrap();
    std::thread::scope(|scope| {
        let b = &b;
        for id in 10..90 {
            scope.spawn(move || {
                wait_lock(b, ino, lock(id, 0, 9)).unwrap();
                unlock(b, ino, id);
            });
        }
        std::thread::sleep(Duration::from_millis(300));
        file(b, "other");
        unlock(&a, ino, 1);
    });
    try_lock(&a, ino, lock(1, 0, 9)).unwrap();
}

#[test]
fn what_a_dying_caller_has_just_asked_for_is_released_when_it_has_closed_the_file() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let ino = file(&a, "f");
    // Nobody decides alone.
    try_lock(&b, ino, lock(9, 100, 100)).unwrap();
    try_lock(&a, ino, lock(9, 101, 101)).unwrap();
    let (come, go) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let (has_come, is_let_go) = (come.clone(), go.clone());
    cluster.masters[0].hook(move |frame, _| {
        let asked: MetaRequest = match frame.fixed.op {
            Op::Mutate if !is_let_go.load(Ordering::SeqCst) => frame.decode().unwrap(),
            _ => return None,
        };
        has_come.store(true, Ordering::SeqCst);
        let go = is_let_go.clone();
        Some(Answer::Later(Box::new(move |world| {
            until("it is let go", || go.load(Ordering::SeqCst));
            let answer = world.mutate_for(&asked);
            answer.map_or_else(Answer::Fail, Answer::Reply)
        })))
    });
    let dying = || come.load(Ordering::SeqCst);
    let cx = Context {
        interrupted: &dying,
        ..cx()
    };
    let given_up = a.lock(cx, ino, 1, lock(1, 0, 9), None);
    assert_eq!(code(given_up), Some(Code::Interrupted));
    a.close_locks(cx, ino, owner(1));
    go.store(true, Ordering::SeqCst);
    until("the lock is free", || {
        try_lock(&b, ino, lock(2, 0, 9)).is_ok()
    });
    until("it is forgotten", || a.has_no_locks(ino, owner(1)));
}

#[test]
fn locks_end_with_the_open_file_through_which_they_were_taken() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let ino = file(&a, "f");
    for contended in [false, true] {
        if contended {
            try_lock(&b, ino, lock(9, 100, 100)).unwrap();
        }
        a.lock(cx(), ino, 5, lock(1, 0, 0), None).unwrap();
        a.lock(cx(), ino, 6, lock(2, 1, 1), None).unwrap();
        a.release_locks(5);
        until("one is free", || try_lock(&a, ino, lock(3, 0, 0)).is_ok());
        assert_eq!(code(try_lock(&a, ino, lock(3, 1, 1))), Some(Code::Again));
        // The kernel may give the name of who has gone to another process.
        a.close_locks(cx(), ino, owner(2));
        a.lock(cx(), ino, 7, lock(2, 1, 1), None).unwrap();
        a.release_locks(6);
        assert_eq!(code(try_lock(&a, ino, lock(3, 1, 1))), Some(Code::Again));
        a.release_locks(7);
        unlock(&a, ino, 3);
        until("both are free", || try_lock(&b, ino, lock(9, 0, 1)).is_ok());
        unlock(&b, ino, 9);
    }
}

#[test]
fn a_new_leader_knows_the_locks_and_who_waits_asks_it() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let ino = file(&a, "f");
    try_lock(&a, ino, lock(1, 0, 9)).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| wait_lock(&b, ino, lock(1, 0, 0)));
        std::thread::sleep(Duration::from_millis(100));
        {
            let mut state = cluster.world.state.lock();
            state.locks = lumeofs_lease::LockWaits::default();
        }
        cluster.world.elect();
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waits.is_finished());
        unlock(&a, ino, 1);
        waits.join().unwrap().unwrap();
    });
}

#[test]
fn locks_that_were_lost_with_the_session_are_told_once() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let ino = file(&a, "f");
    let other = file(&a, "g");
    try_lock(&a, ino, lock(1, 0, 9)).unwrap();
    let session: SessionId = a.link.window.session();
    let close = Internal::CloseSession { session };
    cluster.world.command(Command::Internal(close)).unwrap();
    until("the session is replaced", || a.lost_sessions() == 1);
    try_lock(&b, ino, lock(1, 0, 0)).unwrap();
    assert_eq!(code(a.flush(cx(), ino)), Some(Code::Io));
    assert_eq!(code(a.flush(cx(), ino)), None);
    assert_eq!(code(a.flush(cx(), other)), None);
    assert_eq!(code(try_lock(&a, ino, lock(1, 0, 9))), Some(Code::Again));
    try_lock(&a, ino, lock(1, 1, 9)).unwrap();
}
