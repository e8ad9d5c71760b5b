//! What is made in memory: numbers that come late, a leader that has no room or does not answer.

use super::cached::write;
use super::cluster::{Answer, Cluster, cx};
use super::files::get;
use super::until;
use crate::client::Client;
use lumeofs_base::{Code, FileKind, InodeId};
use lumeofs_meta::op::{Mutation, NewNode};
use lumeofs_proto::blocking::Frame;
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::MetaRequest;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A client that is alone in a new directory, with numbers for what it makes there.
fn alone(cluster: &Cluster) -> (Arc<Client>, InodeId) {
    let client = cluster.client();
    let made = client.create(cx(), InodeId::ROOT, b"dir", NewNode::Directory, 0o755, true);
    let dir = made.unwrap().0.ino;
    for n in 0.. {
        make(&client, dir, &format!("first{n}"));
        let state = cluster.world.state.lock();
        if (state.mutations.iter()).any(|(_, mutation)| matches!(mutation, Mutation::Make { .. })) {
            break;
        }
        drop(state);
        std::thread::sleep(Duration::from_millis(1));
    }
    (client, dir)
}

fn make(client: &Client, dir: InodeId, name: &str) -> InodeId {
    let made = client.create(cx(), dir, name.as_bytes(), NewNode::Regular, 0o644, true);
    let attr = made.unwrap().0;
    assert_eq!(attr.kind, FileKind::Regular);
    client.release(attr.ino);
    attr.ino
}

/// What a request is to change, if anything.
fn mutation(frame: &Frame) -> Option<(u64, Mutation)> {
    if frame.fixed.op != Op::Mutate {
        return None;
    }
    let asked: MetaRequest = frame.decode().unwrap();
    Some((asked.sequence, postcard::from_bytes(&asked.op).unwrap()))
}

fn is_there(client: &Client, dir: InodeId, name: &str) -> bool {
    client.lookup(cx(), dir, name.as_bytes()).is_ok()
}

#[test]
fn numbers_that_come_late_take_nobody_elses_away() {
    let cluster = Cluster::start(1);
    let (client, dir) = alone(&cluster);
    let mut names = Vec::new();
    let mut more = || {
        names.push(format!("{}", names.len()));
        make(&client, dir, names.last().unwrap());
    };
    // Until few numbers are left. Then each reservation takes longer than it is waited for.
    let slow = Arc::new(AtomicUsize::new(0));
    let (count, mut seen) = (slow.clone(), BTreeSet::new());
    cluster.masters[0].hook(move |frame, _| match mutation(frame) {
        Some((sequence, Mutation::Reserve { .. })) if seen.insert(sequence) => {
            count.fetch_add(1, Ordering::SeqCst);
            Some(Answer::Later(Box::new(|_| {
                std::thread::sleep(Duration::from_millis(1_200));
                Answer::Drop
            })))
        }
        _ => None,
    });
    (0..2_500).for_each(|_| more());
    for _ in 0..60 {
        more();
        std::thread::sleep(Duration::from_millis(100));
    }
    let other = cluster.client();
    for name in &names {
        assert!(is_there(&other, dir, name), "{name}");
    }
    assert_eq!(slow.load(Ordering::SeqCst), 1);
}

#[test]
fn the_end_publishes_the_rest_when_the_leader_takes_nothing_that_was_made() {
    let cluster = Cluster::start(1);
    let (client, dir) = alone(&cluster);
    let known = make(&client, dir, "known");
    client.fsync(cx(), dir, false).unwrap();
    cluster.masters[0].hook(|frame, _| {
        let made = mutation(frame).is_some_and(|(_, asked)| matches!(asked, Mutation::Make { .. }));
        made.then_some(Answer::Hang)
    });
    // More than there are threads to send what was written.
    for n in 0..8 {
        let ino = make(&client, dir, &format!("lost{n}"));
        write(&client, ino, 0, b"lost");
    }
    std::thread::sleep(Duration::from_millis(1_500));
    write(&client, known, 0, b"kept");
    assert_eq!(client.close().unwrap_err().code, Code::Io);
    let other = cluster.client();
    assert_eq!(get(&other, known, 0, 10), b"kept");
}

#[test]
fn nothing_is_made_in_memory_for_a_leader_without_room() {
    let cluster = Cluster::start(1);
    let (client, dir) = alone(&cluster);
    let makes = || {
        let state = cluster.world.state.lock();
        let makes = state.mutations.iter();
        makes
            .filter(|(_, mutation)| matches!(mutation, Mutation::Make { .. }))
            .count()
    };
    cluster.masters[0].hook(|frame, world| {
        let is_reservation = match mutation(frame)?.1 {
            Mutation::Reserve { .. } => true,
            Mutation::Make { .. } => false,
            _ => return None,
        };
        if is_reservation {
            return Some(Answer::Fail(Code::NoSpace.into()));
        }
        let mut reply = world.mutate_for(&frame.decode().unwrap()).unwrap();
        reply.is_short = true;
        Some(Answer::Reply(reply))
    });
    make(&client, dir, "told");
    client.fsync(cx(), dir, false).unwrap();
    let before = makes();
    make(&client, dir, "asked");
    client.fsync(cx(), dir, false).unwrap();
    assert_eq!(makes(), before, "it was made by the leader");
    // There is room again.
    cluster.masters[0].hook(|_, _| None);
    let mut n = 0;
    until("things are made in memory again", || {
        n += 1;
        make(&client, dir, &format!("again{n}"));
        client.fsync(cx(), dir, false).unwrap();
        makes() > before
    });
    let other = cluster.client();
    for name in ["told", "asked", "again1"] {
        assert!(is_there(&other, dir, name), "{name}");
    }
}
