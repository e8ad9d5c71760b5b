//! `copy_file_range`: what the datanodes are asked for, and what is there afterwards.

use super::cluster::{Answer, CHUNK, Cluster, cx, direct};
use super::files::{file, get, put, truncate};
use super::until;
use crate::client::{Client, OnOutage, Range, WriteMode};
use crate::wait::now;
use lumeofs_base::{Code, InodeId};
use lumeofs_proto::data::ChunkRequest;
use lumeofs_proto::frame::Op;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes that tell where they belong.
fn bytes(len: u64) -> Vec<u8> {
    (0..len).map(|at| (at / 5 + at / 1021) as u8).collect()
}

/// Writes into the memory of a client that may.
fn put_cached(client: &Client, ino: InodeId, offset: u64, data: &[u8]) {
    let mode = WriteMode::default();
    client.write(cx(), ino, offset, data, mode).unwrap();
}

fn copy(client: &Client, from: (InodeId, u64), to: (InodeId, u64), len: u64) -> u64 {
    client.copy_range(cx(), from, to, len, false).unwrap()
}

/// Bytes that clients send to the datanodes.
fn sent(cluster: &Cluster) -> Arc<AtomicUsize> {
    let sent = Arc::new(AtomicUsize::new(0));
    for node in &cluster.nodes {
        let sent = sent.clone();
        node.hook(move |frame, _| {
            sent.fetch_add(frame.payload.len(), Ordering::Relaxed);
            None
        });
    }
    sent
}

#[test]
fn what_is_in_any_memory_is_copied_and_no_client_carries_it() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let (from, to) = (file(&a, "from"), file(&a, "to"));
    let data = bytes(3 * CHUNK + 777);
    // The source in the memory of another client, the destination in that of this one.
    put_cached(&b, from, 0, &data);
    put_cached(&a, to, 0, &[9; 5000]);
    b.fsync(cx(), from, false).unwrap();
    a.fsync(cx(), to, false).unwrap();
    put_cached(&b, from, 100, b"unsent");
    put_cached(&a, to, 0, b"unsent too");
    let sent = sent(&cluster);
    let len = data.len() as u64 - 50;
    assert_eq!(copy(&a, (from, 50), (to, 4000), 1 << 40), len);
    // Whole blocks of what was in memory.
    assert!(sent.load(Ordering::Relaxed) <= 4 * 4096);
    let mut wanted = [&[9; 4000][..], &data[50..]].concat();
    wanted[..10].copy_from_slice(b"unsent too");
    wanted[4050..4056].copy_from_slice(b"unsent");
    for client in [&a, &b] {
        assert!(get(client, to, 0, wanted.len() + 10) == wanted);
        let attr = client.getattr(cx(), to).unwrap();
        assert_eq!(attr.size, wanted.len() as u64);
    }
    // Both are files of their own.
    put_cached(&b, from, 60, b"changed");
    assert!(get(&a, to, 0, wanted.len() + 10) == wanted);
    put_cached(&a, to, 4001, b"other");
    assert_eq!(get(&b, from, 51, 5), data[51..56]);
}

#[test]
fn a_copy_ends_with_the_source_and_ranges_of_one_file_may_touch() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let (from, to) = (file(&client, "from"), file(&client, "to"));
    put_cached(&client, from, 0, &bytes(1000));
    assert_eq!(copy(&client, (from, 1000), (to, 0), 10), 0);
    assert_eq!(copy(&client, (from, u64::MAX), (to, 0), 10), 0);
    assert_eq!(client.getattr(cx(), to).unwrap().size, 0);
    assert_eq!(copy(&client, (from, 0), (from, 1000), 1000), 1000);
    let twice = [bytes(1000), bytes(1000)].concat();
    assert_eq!(get(&client, from, 0, 5000), twice);
    for at in [1, 999] {
        let overlapping = client.copy_range(cx(), (from, 0), (from, at), 1000, false);
        assert_eq!(overlapping.unwrap_err().code, Code::Invalid);
    }
    // Past the end: a gap of zeros, as by a write.
    assert_eq!(copy(&client, (from, 0), (to, CHUNK + 5), 10), 10);
    let grown = get(&client, to, 0, 2 * CHUNK as usize);
    assert_eq!(grown.len() as u64, CHUNK + 15);
    assert!(grown[..CHUNK as usize + 5].iter().all(|byte| *byte == 0));
    assert_eq!(grown[CHUNK as usize + 5..], bytes(10));
}

#[test]
fn holes_stay_holes_and_make_holes() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let (from, to) = (file(&client, "from"), file(&client, "to"));
    put_cached(&client, from, 0, &bytes(100));
    put_cached(&client, from, 2 * CHUNK, &bytes(100));
    put_cached(&client, to, 0, &[7; CHUNK as usize + 200]);
    assert_eq!(
        copy(&client, (from, 0), (to, 0), 3 * CHUNK),
        2 * CHUNK + 100
    );
    assert!(get(&client, to, 0, 3 * CHUNK as usize) == get(&client, from, 0, 3 * CHUNK as usize));
    // The third one has data; a fourth is not made, nor one of the second's place.
    let allocated = client.getattr(cx(), to).unwrap().allocated;
    let other = file(&client, "other");
    assert_eq!(
        copy(&client, (from, 0), (other, 0), 3 * CHUNK),
        2 * CHUNK + 100
    );
    assert!(client.getattr(cx(), other).unwrap().allocated < allocated);
    let punch = |ino| client.allocate(cx(), ino, 0, 3 * CHUNK, Range::Punch);
    punch(from).unwrap();
    assert_eq!(copy(&client, (from, 0), (other, 0), CHUNK), CHUNK);
    assert_eq!(get(&client, other, 0, 100), [0; 100]);
}

#[test]
fn a_truncation_of_the_source_meanwhile_has_the_copy_planned_again() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let (from, to) = (file(&a, "from"), file(&a, "to"));
    put(&a, from, 0, &bytes(2 * CHUNK));
    put(&a, to, 0, &[1; 3000]);
    let is_first = Arc::new(Mutex::new(true));
    for node in &cluster.nodes {
        let (b, is_first) = (b.clone(), is_first.clone());
        node.hook(move |frame, _| {
            let now = frame.fixed.op == Op::Copy && std::mem::take(&mut *is_first.lock());
            let b = b.clone();
            now.then(|| {
                Answer::Later(Box::new(move |_| {
                    b.setattr(direct(), from, truncate(500)).unwrap();
                    Answer::Fail(Code::StaleWrite.into())
                }))
            })
        });
    }
    assert_eq!(copy(&a, (from, 0), (to, 100), 2 * CHUNK), 500);
    let data = get(&b, to, 0, 3 * CHUNK as usize);
    // Of what comes behind, some was copied before the source was cut.
    assert_eq!((&data[..100], data.len()), (&[1; 100][..], 3000));
    assert_eq!(data[100..600], bytes(500));
}

#[test]
fn a_copy_whose_answer_is_lost_is_asked_for_again_by_a_newer_connection() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let (from, to) = (file(&client, "from"), file(&client, "to"));
    put(&client, from, 0, &bytes(5000));
    let generations = Arc::new(Mutex::new(Vec::new()));
    for node in &cluster.nodes {
        let generations = generations.clone();
        node.hook(move |frame, world| {
            if frame.fixed.op != Op::Copy {
                return None;
            }
            let asked: ChunkRequest = frame.decode().unwrap();
            let mut generations = generations.lock();
            generations.push(asked.generation);
            (generations.len() == 1).then(|| {
                world.answer(frame).unwrap();
                Answer::Drop
            })
        });
    }
    assert_eq!(copy(&client, (from, 0), (to, 0), 5000), 5000);
    assert_eq!(get(&client, to, 0, 6000), bytes(5000));
    let generations = generations.lock();
    assert!(
        generations.len() == 2 && generations[1] > generations[0],
        "{generations:?}"
    );
}

#[test]
fn who_copies_from_a_source_that_is_down_leaves_the_destination_to_others() {
    let cluster = Cluster::start(1);
    let a = cluster.client_with(OnOutage::Block(None));
    let b = cluster.client();
    let (from, to) = (file(&a, "from"), file(&a, "to"));
    put(&a, from, 0, &bytes(5000));
    put_cached(&a, to, 0, &[1; 10]);
    let (is_down, asked) = (
        Arc::new(AtomicBool::new(true)),
        Arc::new(AtomicUsize::new(0)),
    );
    for node in &cluster.nodes {
        let (is_down, asked) = (is_down.clone(), asked.clone());
        node.hook(move |frame, _| {
            let fails = frame.fixed.op == Op::Copy && is_down.load(Ordering::SeqCst);
            asked.fetch_add(usize::from(fails), Ordering::SeqCst);
            fails.then(|| Answer::Fail(Code::Again.into()))
        });
    }
    std::thread::scope(|scope| {
        let copied = scope.spawn(|| copy(&a, (from, 0), (to, 100), 5000));
        until("the copy is under way", || asked.load(Ordering::SeqCst) > 0);
        let start = now();
        put_cached(&b, to, 0, &[2; 10]);
        assert!(
            now() - start < Duration::from_secs(15),
            "{:?}",
            now() - start
        );
        is_down.store(false, Ordering::SeqCst);
        assert_eq!(copied.join().unwrap(), 5000);
    });
    assert_eq!(get(&b, to, 0, 10), [2; 10]);
    assert_eq!(get(&b, to, 100, 5001), bytes(5000));
    assert_eq!(a.lost_sessions(), 0);
}
