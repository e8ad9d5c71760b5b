//! What becomes of written data that is still in the cache when something goes wrong.

use super::cached::{flush, read, sync, write, write_at};
use super::cluster::{Answer, CHUNK, Cluster, cx, direct};
use super::files::{file, get, put, truncate};
use super::until;
use crate::client::{Client, Context, OnOutage, WriteMode};
use crate::pages::state::State;
use lumeofs_base::{Code, InodeId};
use lumeofs_meta::op::{Command, Internal, Mutation};
use lumeofs_proto::data::ChunkRequest;
use lumeofs_proto::frame::Op;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[test]
fn a_client_that_closes_sends_what_it_has() {
    let cluster = Cluster::start(1);
    let (client, other) = (cluster.client(), cluster.client());
    let ino = file(&client, "f");
    write(&client, ino, 0, b"data");
    client.close().unwrap();
    assert_eq!(get(&other, ino, 0, 10), b"data");
}

#[test]
fn a_writer_waits_while_too_much_is_dirty_and_goes_on_when_it_was_sent() {
    let cluster = Cluster::start(1);
    let client = cluster.client_with_cache(1 << 20);
    let ino = file(&client, "f");
    let most = Arc::new(AtomicUsize::new(0));
    for node in &cluster.nodes {
        node.hook(|frame, world| {
            let answer = (frame.fixed.op == Op::Write).then(|| world.answer(frame).unwrap())?;
            Some(Answer::Later(Box::new(move |_| {
                std::thread::park_timeout(Duration::from_millis(2));
                answer
            })))
        });
    }
    for at in 0..64 {
        write(&client, ino, at * 65_536, &[at as u8; 65_536]);
        most.fetch_max(client.cache_stats().dirty_bytes as usize, Ordering::SeqCst);
    }
    assert!(most.load(Ordering::SeqCst) <= 256 << 10);
    flush(&client, ino);
    let stored = get(&cluster.client(), ino, 0, 5 << 20);
    assert!(
        stored
            .chunks(65_536)
            .zip(0..)
            .all(|(part, at)| part == [at; 65_536])
    );
}

#[test]
fn what_cannot_be_stored_is_told_once_and_dropped() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    put(&client, ino, 0, &[1; 100]);
    for node in &cluster.nodes {
        node.hook(|frame, _| {
            (frame.fixed.op == Op::Write).then(|| Answer::Fail(Code::NoSpace.into()))
        });
    }
    write(&client, ino, 50, &[2; 100]);
    assert_eq!(sync(&client, ino).unwrap_err().code, Code::NoSpace);
    sync(&client, ino).unwrap();
    assert_eq!(client.cache_stats().dirty_bytes, 0);
    for node in &cluster.nodes {
        node.hook(|_, _| None);
    }
    assert_eq!(read(&client, ino, 0, 1000), [1; 100]);
    // The next write is told as well, if it is the next.
    for node in &cluster.nodes {
        node.hook(|frame, _| {
            (frame.fixed.op == Op::Write).then(|| Answer::Fail(Code::NoSpace.into()))
        });
    }
    write(&client, ino, 0, &[3; 10]);
    flush(&client, ino);
    assert!(!client.is_flushed(ino));
    let told = write_at(&client, ino, Some(0), &[4; 10]);
    assert_eq!(told.unwrap_err().code, Code::NoSpace);
    for node in &cluster.nodes {
        node.hook(|_, _| None);
    }
    write(&client, ino, 0, &[5; 10]);
    sync(&client, ino).unwrap();
    assert_eq!(
        get(&cluster.client(), ino, 0, 11),
        [&[5; 10][..], &[1]].concat()
    );
}

#[test]
fn a_session_that_ends_takes_unsent_data_along_and_its_files_say_so_once() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let (ino, clean) = (file(&client, "f"), file(&client, "g"));
    put(&client, ino, 0, b"before");
    sync(&client, ino).unwrap();
    client.fsync(cx(), ino, false).unwrap();
    assert_eq!(read(&client, clean, 0, 10), b"");
    write(&client, ino, 0, b"after!");
    let session = client.link.window.session();
    let close = Internal::CloseSession { session };
    cluster.world.command(Command::Internal(close)).unwrap();
    let asker = crate::wait::Patience::background(&client.link.halt, None);
    client.link.renew_session(session, &asker).unwrap();
    assert_eq!(client.cache_stats().dirty_bytes, 0);
    assert_eq!(sync(&client, ino).unwrap_err().code, Code::Io);
    sync(&client, ino).unwrap();
    write(&client, clean, 0, b"new");
    assert_eq!(read(&client, ino, 0, 10), b"before");
    write(&client, ino, 6, b"...");
    sync(&client, ino).unwrap();
    assert_eq!(get(&cluster.client(), ino, 0, 20), b"before...");
}

#[test]
fn a_gap_does_not_show_what_a_lost_writer_left_there() {
    let cluster = Cluster::start(1);
    let (client, doomed) = (cluster.client(), cluster.client());
    let ino = file(&client, "f");
    put(&client, ino, 0, &[7; 100]);
    cluster.masters[0].once(Op::Mutate, |_, _| Answer::Fail(Code::Io.into()));
    let lost = doomed.write(direct(), ino, 50, &[9; 500], WriteMode::default());
    assert_eq!(lost.unwrap_err().code, Code::Io);
    let session = doomed.link.window.session();
    let close = Internal::CloseSession { session };
    cluster.world.command(Command::Internal(close)).unwrap();
    // Some of what is new is dirty when the gap is made, some was sent.
    write(&client, ino, 100, &[1; 20]);
    write(&client, ino, 400, b"x");
    write(&client, ino, 401, b"y");
    let got = read(&client, ino, 0, 1000);
    flush(&client, ino);
    let stored = get(&cluster.client(), ino, 0, 1000);
    assert!(got == stored);
    assert_eq!(stored.len(), 402);
    assert_eq!(stored[100..120], [1; 20]);
    assert!(stored[120..400].iter().all(|byte| *byte == 0));
    assert_eq!(&stored[400..], b"xy");
}

#[test]
fn what_the_servers_cut_off_before_it_was_published_is_sent_again() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    write(&client, ino, 0, &[1; 100]);
    flush(&client, ino);
    write(&client, ino, 100, &[2; 100]);
    cluster.masters[0].once(Op::Mutate, move |frame, world| {
        // Somebody cut the tail between the data and its publication.
        world
            .mutate(Mutation::SetAttr {
                ino,
                set: truncate(100),
            })
            .unwrap();
        world.answer(frame).unwrap_or_else(Answer::Fail)
    });
    flush(&client, ino);
    let stored = get(&cluster.client(), ino, 0, 1000);
    assert_eq!(stored, [[1; 100], [2; 100]].concat());
}

#[test]
fn an_outage_delays_what_was_written_and_an_interrupted_flush_leaves_it_dirty() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    put(&client, ino, 0, b"old");
    for node in &cluster.nodes {
        node.hook(|frame, _| (frame.fixed.op == Op::Write).then_some(Answer::Drop));
    }
    write(&client, ino, 0, b"new");
    let interrupted = Context {
        interrupted: &|| true,
        ..cx()
    };
    let flushed = client
        .link
        .flush_data(&client.link.asker(&interrupted), ino);
    assert_eq!(flushed.unwrap_err().code, Code::Interrupted);
    assert_eq!(client.cache_stats().dirty_bytes, 3);
    std::thread::scope(|scope| {
        let flushing = scope.spawn(|| sync(&client, ino));
        assert_eq!(read(&client, ino, 0, 10), b"new");
        for node in &cluster.nodes {
            node.hook(|_, _| None);
        }
        flushing.join().unwrap().unwrap();
    });
    assert_eq!(get(&cluster.client(), ino, 0, 10), b"new");
}

#[test]
fn an_outage_longer_than_the_mount_waits_costs_what_was_not_sent() {
    let cluster = Cluster::start(1);
    let client = cluster.client_with(OnOutage::Block(Some(Duration::from_secs(2))));
    let ino = file(&client, "f");
    put(&client, ino, 0, b"old");
    for node in &cluster.nodes {
        node.hook(|frame, _| (frame.fixed.op == Op::Write).then_some(Answer::Drop));
    }
    write(&client, ino, 0, b"new");
    let until = crate::wait::now() + Duration::from_secs(20);
    while client.cache_stats().dirty_bytes > 0 {
        assert!(crate::wait::now() < until);
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let told = write_at(&client, ino, Some(0), b"not");
    assert_eq!(told.unwrap_err().code, Code::Unavailable);
    for node in &cluster.nodes {
        node.hook(|_, _| None);
    }
    assert_eq!(read(&client, ino, 0, 10), b"old");
    sync(&client, ino).unwrap();
}

#[test]
fn a_sync_publishes_the_size_though_what_it_sent_is_written_again_and_again() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    for data_only in [false, true] {
        let ino = file(&client, if data_only { "f" } else { "g" });
        for node in &cluster.nodes {
            let client = client.clone();
            node.hook(move |frame, world| {
                let answer = (frame.fixed.op == Op::Write).then(|| world.answer(frame).unwrap())?;
                write(&client, ino, 0, b"again");
                Some(answer)
            });
        }
        write(&client, ino, 0, &[1; 4 * CHUNK as usize]);
        let (link, inode) = (&client.link, client.link.inodes.get(ino));
        link.sync_data(&link.asker(&cx()), ino, &inode, data_only)
            .unwrap();
        let local = link.pages.file(ino).look(|state| state.local.clone());
        assert_eq!(local.unwrap().published_size(), 4 * CHUNK);
    }
    for node in &cluster.nodes {
        node.hook(|_, _| None);
    }
}

/// As many files as there are threads that could wait for them, with data that no datanode takes.
fn stuck_files(cluster: &Cluster, client: &Client) -> Vec<InodeId> {
    let names = (0..4).map(|n| format!("stuck{n}"));
    let stuck: Vec<_> = names.map(|name| file(client, &name)).collect();
    for node in &cluster.nodes {
        let stuck = stuck.clone();
        node.hook(move |frame, _| {
            let asked: ChunkRequest = frame.decode().unwrap();
            let ino = asked.part.map(|part| part.inode.into());
            ino.is_some_and(|ino| stuck.contains(&ino))
                .then_some(Answer::Drop)
        });
    }
    for ino in &stuck {
        write(client, *ino, 0, b"stuck");
    }
    stuck
}

#[test]
fn files_whose_servers_do_not_answer_do_not_keep_others_from_being_sent() {
    let cluster = Cluster::start(1);
    let client = cluster.client_with(OnOutage::Block(None));
    let stuck = stuck_files(&cluster, &client);
    let other = file(&client, "other");
    let is_sent = |ino| !client.link.pages.file(ino).look(State::is_changed);
    for round in 0..2 {
        write(&client, other, 0, b"other");
        until("others are sent", || is_sent(other));
        assert!(!stuck.iter().any(|ino| is_sent(*ino)), "{round}");
    }
    for node in &cluster.nodes {
        node.hook(|_, _| None);
    }
    until("all is sent", || stuck.iter().all(|ino| is_sent(*ino)));
}

#[test]
fn files_that_cannot_be_given_back_do_not_keep_others_from_being_given_back() {
    let cluster = Cluster::start(1);
    let client = cluster.client_with(OnOutage::Block(None));
    let reader = cluster.client();
    let stuck = stuck_files(&cluster, &client);
    let other = file(&client, "other");
    let recalled = || client.lease_stats().polls.downgrades;
    std::thread::scope(|scope| {
        for ino in &stuck {
            let reader = &reader;
            scope.spawn(move || assert_eq!(reader.getattr(cx(), *ino).unwrap().size, 5));
        }
        until("all are wanted back", || recalled() >= stuck.len() as u64);
        write(&client, other, 0, b"other");
        assert_eq!(reader.getattr(cx(), other).unwrap().size, 5);
        assert!(stuck.iter().all(|ino| client.link.is_writer(*ino)));
        for node in &cluster.nodes {
            node.hook(|_, _| None);
        }
    });
}
