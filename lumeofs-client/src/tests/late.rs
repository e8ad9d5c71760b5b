//! Times of a file, where a mutation whose caller has given up reaches the leader late.

use super::cluster::{Answer, Cluster, cx};
use super::files::file;
use super::until;
use crate::client::{Client, Context, WriteMode};
use lumeofs_base::{Code, FsResult, InodeId, Timestamp};
use lumeofs_meta::locks::{Lock, LockKind, LockOwner, LockSpace};
use lumeofs_meta::op::{Mutation, SetAttr, SetTime};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::MetaRequest;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const THEN: Timestamp = Timestamp { secs: 5, nanos: 6 };

/// Mutations of a kind that do not reach the leader yet.
struct KeptBack {
    has_come: Arc<AtomicBool>,
    is_let_go: Arc<AtomicBool>,
}

impl KeptBack {
    fn new(cluster: &Cluster, is_kept: fn(&Mutation) -> bool) -> Self {
        let kept = Self {
            has_come: Arc::default(),
            is_let_go: Arc::default(),
        };
        let (come, go) = (kept.has_come.clone(), kept.is_let_go.clone());
        cluster.masters[0].hook(move |frame, _| {
            if frame.fixed.op != Op::Mutate || go.load(Ordering::SeqCst) {
                return None;
            }
            let asked: MetaRequest = frame.decode().unwrap();
            if !is_kept(&postcard::from_bytes(&asked.op).unwrap()) {
                return None;
            }
            come.store(true, Ordering::SeqCst);
            let go = go.clone();
            Some(Answer::Later(Box::new(move |world| {
                until("it is let go", || go.load(Ordering::SeqCst));
                let answer = world.mutate_for(&asked);
                answer.map_or_else(Answer::Fail, Answer::Reply)
            })))
        });
        kept
    }

    /// Does something whose caller gives up when the mutation is on its way.
    fn give_up<T: std::fmt::Debug>(&self, call: impl FnOnce(Context<'_>) -> FsResult<T>) {
        let interrupted = || self.has_come.load(Ordering::SeqCst);
        let given_up = Context {
            interrupted: &interrupted,
            ..cx()
        };
        assert_eq!(call(given_up).unwrap_err().code, Code::Interrupted);
    }

    fn let_go(&self) {
        self.is_let_go.store(true, Ordering::SeqCst);
    }
}

fn write(client: &Client, ino: InodeId) {
    let written = client.write(cx(), ino, 0, b"data", WriteMode::default());
    written.unwrap();
}

fn set_time(client: &Client, cx: Context<'_>, ino: InodeId) -> FsResult<Timestamp> {
    let set = SetAttr {
        mtime: Some(SetTime::At(THEN)),
        ..SetAttr::default()
    };
    client.setattr(cx, ino, set).map(|attr| attr.mtime)
}

#[test]
fn a_publication_that_comes_late_does_not_set_back_a_time_that_was_set_after_it() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    write(&client, ino);
    let is_flush = |mutation: &Mutation| matches!(mutation, Mutation::Flush { .. });
    let kept = KeptBack::new(&cluster, is_flush);
    kept.give_up(|cx| client.fsync(cx, ino, false));
    std::thread::scope(|scope| {
        let setting = scope.spawn(|| set_time(&client, cx(), ino));
        // Time to overtake it.
        std::thread::sleep(Duration::from_millis(100));
        kept.let_go();
        assert_eq!(setting.join().unwrap().unwrap(), THEN);
    });
    client.fsync(cx(), ino, false).unwrap();
    let state = cluster.world.state.lock();
    let order = state.mutations.iter().map(|(_, mutation)| mutation);
    let times: Vec<_> = order
        .filter_map(|mutation| match mutation {
            Mutation::Flush { mtime, .. } => Some(*mtime == THEN),
            _ => None,
        })
        .collect();
    // One that is repeated stands there twice.
    assert!(
        times.is_sorted() && times.ends_with(&[false, true]),
        "{times:?}"
    );
    drop(state);
    assert_eq!(client.getattr(cx(), ino).unwrap().mtime, THEN);
    assert_eq!(cluster.client().getattr(cx(), ino).unwrap().mtime, THEN);
}

#[test]
fn a_time_that_is_set_late_is_shown_as_the_leader_has_it() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    write(&client, ino);
    client.fsync(cx(), ino, false).unwrap();
    let kept = KeptBack::new(&cluster, |mutation| {
        matches!(mutation, Mutation::SetAttr { .. })
    });
    kept.give_up(|cx| set_time(&client, cx, ino));
    assert_ne!(client.link.local_state(ino).unwrap().0.attr().mtime, THEN);
    kept.let_go();
    let shown = || client.getattr(cx(), ino).unwrap().mtime;
    until("it is shown", || shown() == THEN);
    let local = || client.link.local_state(ino).unwrap().0.attr().mtime;
    until("it is what writes go on from", || local() == THEN);
    assert_eq!(cluster.client().getattr(cx(), ino).unwrap().mtime, THEN);
}

#[test]
fn a_lock_is_not_overtaken_by_an_unlock_of_its_owner_that_comes_late() {
    let cluster = Cluster::start(1);
    let (client, other) = (cluster.client(), cluster.client());
    let ino = file(&client, "f");
    let range = |id, first, last| {
        let space = LockSpace::Range;
        Lock {
            owner: LockOwner { space, id },
            pid: 1,
            kind: LockKind::Exclusive,
            first,
            last,
        }
    };
    let lock = |client: &Client, lock: Lock| client.lock(cx(), ino, lock.owner.id, lock, None);
    // Nobody decides alone.
    lock(&other, range(9, 100, 100)).unwrap();
    lock(&client, range(1, 0, 9)).unwrap();
    let kept = KeptBack::new(&cluster, |mutation| {
        matches!(mutation, Mutation::Unlock { .. })
    });
    kept.give_up(|cx| client.unlock(cx, ino, range(1, 0, 9).owner, 0, 9));
    std::thread::scope(|scope| {
        let locking = scope.spawn(|| lock(&client, range(1, 0, 9)));
        // Time to overtake it.
        std::thread::sleep(Duration::from_millis(100));
        kept.let_go();
        locking.join().unwrap().unwrap();
    });
    let refused = lock(&other, range(2, 5, 5)).unwrap_err();
    assert_eq!(refused.code, Code::Again);
}
