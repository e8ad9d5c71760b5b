//! Data through its faults, on its way to and from the datanodes without a cache.

use super::cluster::{APPEND, Answer, CHUNK, Cluster, direct as cx};
use crate::client::{Client, Range, WriteMode};
use lumeofs_base::{Code, FsError, InodeId};
use lumeofs_meta::op::{Command, Internal, Mutation, NewNode, SetAttr};
use lumeofs_proto::data::{ChunkReply, ChunkRequest};
use lumeofs_proto::frame::Op;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub(super) fn file(client: &Client, name: &str) -> InodeId {
    let created = client.create(
        cx(),
        InodeId::ROOT,
        name.as_bytes(),
        NewNode::Regular,
        0o644,
        true,
    );
    created.unwrap().0.ino
}

pub(super) fn put(client: &Client, ino: InodeId, offset: u64, data: &[u8]) {
    client
        .write(cx(), ino, offset, data, WriteMode::default())
        .unwrap();
}

pub(super) fn get(client: &Client, ino: InodeId, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xEE; len];
    let count = client.read(cx(), ino, offset, &mut buf).unwrap();
    buf.truncate(count);
    buf
}

pub(super) fn truncate(size: u64) -> SetAttr {
    SetAttr {
        size: Some(size),
        ..SetAttr::default()
    }
}

#[test]
fn what_was_written_is_read_by_this_and_another_client() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let ino = file(&a, "f");
    let data: Vec<u8> = (0..3 * CHUNK as u32 + 5000)
        .map(|n| (n / 7) as u8)
        .collect();
    put(&a, ino, 100, &data);
    for client in [&a, &b, &a] {
        let read = get(client, ino, 0, data.len() + 1000);
        assert_eq!(read.len(), data.len() + 100);
        assert!(read[..100].iter().all(|&byte| byte == 0));
        assert!(read[100..] == data);
    }
    put(&b, ino, CHUNK - 3, b"across");
    assert_eq!(get(&a, ino, CHUNK - 3, 6), b"across");
    // Growth by another client is seen although the smaller size is known.
    put(&b, ino, 4 * CHUNK, b"end");
    assert_eq!(get(&a, ino, 4 * CHUNK - 1, 10), b"\0end");
    assert_eq!(get(&a, ino, 9 * CHUNK, 10), b"");
}

#[test]
fn a_request_of_an_era_that_is_over_is_planned_again() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    put(&client, ino, 0, b"first");
    let begin_era = Command::Internal(Internal::BeginEra { after: 0 });
    cluster.world.command(begin_era).unwrap();
    let refused = Arc::new(AtomicUsize::new(0));
    for node in &cluster.nodes {
        let refused = refused.clone();
        node.hook(move |frame, _| {
            let era = frame.decode::<ChunkRequest>().map(|asked| asked.era);
            let is_old = matches!(frame.fixed.op, Op::Write | Op::Read) && era == Ok(0);
            is_old.then(|| {
                refused.fetch_add(1, Ordering::Relaxed);
                Answer::Fail(FsError::new(Code::StaleWrite, "an era that is over"))
            })
        });
    }
    assert_eq!(get(&client, ino, 0, 10), b"first");
    put(&client, ino, 0, b"again");
    put(&client, ino, 2 * CHUNK, b"more");
    assert_eq!(get(&client, ino, 0, 5), b"again");
    assert!(refused.load(Ordering::Relaxed) <= 3);
    // Another client begins with what it hears.
    let other = cluster.client();
    put(&other, file(&other, "g"), 0, b"new");
    assert!(refused.load(Ordering::Relaxed) <= 5);
}

#[test]
fn truncated_bytes_do_not_come_back() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let ino = file(&a, "f");
    put(&a, ino, 0, &[7; 1000]);
    b.setattr(cx(), ino, truncate(10)).unwrap();
    put(&a, ino, 500, b"x");
    let read = get(&b, ino, 0, 2000);
    assert_eq!(
        (read.len(), read[9], read[10], read[499], read[500]),
        (501, 7, 0, 0, b'x')
    );
    // A truncate whose client died before it cut the tail.
    cluster
        .world
        .mutate(Mutation::SetAttr {
            ino,
            set: truncate(5),
        })
        .unwrap();
    let written = a.write(cx(), ino, 0, b"yz", APPEND).unwrap();
    assert_eq!(written.offset, 5);
    a.setattr(cx(), ino, truncate(600)).unwrap();
    let read = get(&b, ino, 0, 2000);
    assert_eq!((read.len(), &read[4..9]), (600, &[7, b'y', b'z', 0, 0][..]));
}

#[test]
fn bytes_of_a_writer_that_died_before_it_told_do_not_show_up_in_a_gap() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    type Grow = fn(&Client, InodeId);
    let ways: [(&str, Grow); 5] = [
        ("write", |client, ino| put(client, ino, 399, b"x")),
        ("truncate", |client, ino| {
            client.setattr(cx(), ino, truncate(400)).unwrap();
        }),
        ("fallocate", |client, ino| {
            let range = Range::Allocate { keep_size: false };
            client.allocate(cx(), ino, 100, 300, range).unwrap();
        }),
        ("zero", |client, ino| {
            let range = Range::Zero { keep_size: false };
            client.allocate(cx(), ino, 350, 50, range).unwrap();
        }),
        ("append", |client, ino| {
            let data = [0; 300];
            let written = client.write(cx(), ino, 0, &data, APPEND);
            assert_eq!(written.unwrap().offset, 100);
        }),
    ];
    for (name, grow) in ways {
        let ino = file(&client, name);
        put(&client, ino, 0, &[7; 100]);
        let doomed = cluster.client();
        cluster.masters[0].once(Op::Mutate, |_, _| Answer::Fail(Code::Io.into()));
        let lost = doomed.write(cx(), ino, 50, &[9; 500], WriteMode::default());
        assert_eq!(lost.unwrap_err().code, Code::Io);
        let session = doomed.link.window.session();
        let close = Internal::CloseSession { session };
        cluster.world.command(Command::Internal(close)).unwrap();
        grow(&client, ino);
        let read = get(&client, ino, 0, 1000);
        assert_eq!(read.len(), 400, "{name}");
        // It was under way inside the file; that it had an effect there is right.
        assert_eq!(&read[50..100], [9; 50]);
        assert!(read[100..399].iter().all(|byte| *byte == 0), "{name}");
        // The next one needs nothing more.
        let before = cluster.world.state.lock().mutations.len();
        put(&client, ino, 900, b"y");
        let after = cluster.world.state.lock().mutations.len();
        let writes = if name == "append" { 6 } else { 1 };
        assert!(after - before <= writes, "{name}: {}", after - before);
    }
}

#[test]
fn a_write_that_a_truncate_overtook_is_done_again() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    put(&client, ino, 0, &[1; 5000]);
    cluster.nodes[0].once(Op::Write, move |_, world| {
        world
            .mutate(Mutation::SetAttr {
                ino,
                set: truncate(0),
            })
            .unwrap();
        Answer::Fail(Code::StaleWrite.into())
    });
    put(&client, ino, 4000, b"late");
    let read = get(&client, ino, 0, 9000);
    assert_eq!(read.len(), 4004);
    assert!(read[..4000].iter().all(|&byte| byte == 0));
    assert_eq!(&read[4000..], b"late");
    // Now the datanode notices nothing, but the leader does.
    cluster.nodes[0].once(Op::Write, move |frame, world| {
        let answer = world.answer(frame).unwrap();
        world
            .mutate(Mutation::SetAttr {
                ino,
                set: truncate(0),
            })
            .unwrap();
        answer
    });
    put(&client, ino, 4004, b"er");
    assert_eq!(get(&client, ino, 4000, 100), b"\0\0\0\0er");
}

#[test]
fn a_write_of_unknown_outcome_is_repeated_through_another_member_with_a_higher_generation() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    let seen: Arc<Mutex<Vec<(usize, u32)>>> = Arc::default();
    for (at, node) in cluster.nodes.iter().enumerate() {
        let log = seen.clone();
        node.hook(move |frame, world| {
            if frame.fixed.op != Op::Write {
                return None;
            }
            let asked: ChunkRequest = frame.decode().unwrap();
            log.lock().push((at, asked.generation));
            (log.lock().len() == 1).then(|| {
                world.answer(frame).unwrap();
                Answer::Drop
            })
        });
    }
    put(&client, ino, 0, b"data");
    assert_eq!(*seen.lock(), [(0, 1), (1, 2)]);
    assert_eq!(get(&client, ino, 0, 9), b"data");
}

/// Lets each write wait for company for `wait`, until there was some. Returns how many were under way at once at most.
fn most_writes_at_once(cluster: &Cluster, wait: Duration) -> Arc<Mutex<(usize, usize)>> {
    let counts = Arc::new(Mutex::new((0, 0)));
    let company = Arc::new(Condvar::new());
    let told = counts.clone();
    cluster.nodes[0].hook(move |frame, world| {
        if frame.fixed.op != Op::Write {
            return None;
        }
        let answer = world.answer(frame).unwrap();
        let mut now = counts.lock();
        now.0 += 1;
        now.1 = now.1.max(now.0);
        company.notify_all();
        let (counts, company) = (counts.clone(), company.clone());
        Some(Answer::Later(Box::new(move |_| {
            let mut now = counts.lock();
            if now.1 < 2 {
                company.wait_for(&mut now, wait);
            }
            now.0 -= 1;
            answer
        })))
    });
    told
}

#[test]
fn overlapping_writes_of_one_client_are_never_under_way_together() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    put(&client, ino, 0, &[0; 60_000]);
    let write_all = |distance: u64| {
        std::thread::scope(|scope| {
            for byte in 1..=4 {
                let client = &client;
                scope.spawn(move || {
                    for _ in 0..5 {
                        put(client, ino, u64::from(byte) * distance, &[byte; 6000]);
                        let read = get(client, ino, 5 * distance, 1000);
                        assert!(
                            read.iter().all(|other| *other == read[0]),
                            "half of a write"
                        );
                    }
                });
            }
        });
    };
    let together = most_writes_at_once(&cluster, Duration::from_millis(20));
    write_all(100);
    assert_eq!(together.lock().1, 1);
    // Writes side by side are.
    let together = most_writes_at_once(&cluster, Duration::from_secs(5));
    write_all(10_000);
    assert!(together.lock().1 > 1);
}

#[test]
fn a_read_goes_on_to_another_replica() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    put(&client, ino, 0, &[5; 70_000]);
    let failed = Arc::new(AtomicUsize::new(0));
    // Two of three replicas fail in all the ways there are; which one is asked first is not said.
    for (at, node) in cluster.nodes[1..].iter().enumerate() {
        let failed = failed.clone();
        node.hook(move |_, _| {
            let count = failed.fetch_add(1, Ordering::SeqCst);
            Some(match (at + count) % 4 {
                0 => Answer::Chunk(
                    ChunkReply {
                        checksums: vec![1],
                        ..Default::default()
                    },
                    vec![9; 10],
                ),
                1 => Answer::Fail(FsError::new(Code::Io, "bad disk")),
                2 => Answer::Fail(Code::Again.into()),
                _ => Answer::Drop,
            })
        });
    }
    for _ in 0..20 {
        assert!(get(&client, ino, 1, 69_999) == [5; 69_999]);
    }
    for node in &cluster.nodes {
        let failed = failed.clone();
        node.hook(move |_, _| {
            failed.fetch_add(1, Ordering::SeqCst);
            Some(Answer::Fail(FsError::new(Code::Io, "bad disk")))
        });
    }
    let before = failed.load(Ordering::SeqCst);
    let error = client.read(cx(), ino, 0, &mut [0; 10]).unwrap_err();
    assert_eq!(error.code, Code::Io);
    assert!(failed.load(Ordering::SeqCst) >= before + 3);
}

#[test]
fn a_silent_replica_costs_half_a_second_at_most() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    put(&client, ino, 0, b"data");
    let hung = Arc::new(AtomicUsize::new(0));
    for node in &cluster.nodes[1..] {
        let hung = hung.clone();
        node.hook(move |_, _| {
            hung.fetch_add(1, Ordering::SeqCst);
            Some(Answer::Hang)
        });
    }
    let start = crate::wait::now();
    for _ in 0..10 {
        assert_eq!(get(&client, ino, 0, 10), b"data");
    }
    // Each of them is tried once, for half a second, and then avoided for five.
    let turns = 1 + (crate::wait::now() - start).as_secs() as usize / 5;
    assert!(hung.load(Ordering::SeqCst) <= 2 * turns);
}

#[test]
fn a_new_primary_is_found_through_the_map() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    cluster.nodes[0].once(Op::Write, |_, world| {
        let mut state = world.state.lock();
        state.map.version += 1;
        state.map.groups[0].epoch = state.map.groups[0].epoch.next();
        state.map.groups[0].primary = 12.into();
        state.map.groups[0].in_sync = vec![12.into(), 13.into()];
        Answer::Fail(Code::StaleEpoch.into())
    });
    put(&client, ino, 0, b"data");
    assert_eq!(get(&client, ino, 0, 10), b"data");
    assert_eq!(client.cluster_map().version, 2);
}

#[test]
fn fsync_names_the_last_write_and_tells_a_loss_once() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    put(&client, ino, 0, b"one");
    put(&client, ino, 3, b"two");
    let after = Arc::new(Mutex::new(Vec::new()));
    let log = after.clone();
    cluster.nodes[0].hook(move |frame, _| {
        let asked: ChunkRequest = frame.decode().unwrap();
        log.lock().push(asked.after_sequence);
        (log.lock().len() == 2).then(|| Answer::Fail(Code::LostTail.into()))
    });
    client.fsync(cx(), ino, false).unwrap();
    assert_eq!(*after.lock(), [2]);
    // Nothing is left to sync.
    client.fsync(cx(), ino, false).unwrap();
    assert_eq!(*after.lock(), [2]);
    cluster.nodes[0].hook(|_, _| None);
    put(&client, ino, 0, b"six");
    cluster.nodes[0].once(Op::Sync, |_, _| Answer::Fail(Code::LostTail.into()));
    assert_eq!(client.fsync(cx(), ino, false).unwrap_err().code, Code::Io);
    client.fsync(cx(), ino, false).unwrap();
}

#[test]
fn the_time_of_a_write_is_published_before_this_client_looks() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    put(&client, ino, 0, b"one");
    let before = client.getattr(cx(), ino).unwrap().mtime;
    put(&client, ino, 0, b"two");
    let after = client.lookup(cx(), InodeId::ROOT, b"f").unwrap().mtime;
    assert!(after > before);
    // A time that is set is not overtaken by an earlier write.
    put(&client, ino, 0, b"six");
    let mtime = lumeofs_base::Timestamp { secs: 5, nanos: 6 };
    let set = SetAttr {
        mtime: Some(lumeofs_meta::op::SetTime::At(mtime)),
        ..SetAttr::default()
    };
    client.setattr(cx(), ino, set).unwrap();
    client.flush(cx(), ino).unwrap();
    assert_eq!(client.getattr(cx(), ino).unwrap().mtime, mtime);
}

#[test]
fn appends_of_two_clients_do_not_overwrite_each_other() {
    let cluster = Cluster::start(1);
    let (a, b) = (cluster.client(), cluster.client());
    let ino = file(&a, "f");
    std::thread::scope(|scope| {
        for (client, byte) in [(&a, 1u8), (&a, 2), (&b, 3), (&b, 4)] {
            scope.spawn(move || {
                for _ in 0..25 {
                    client.write(cx(), ino, 0, &[byte; 3000], APPEND).unwrap();
                }
            });
        }
    });
    let read = get(&a, ino, 0, 1 << 20);
    assert_eq!(read.len(), 300_000);
    let records: Vec<_> = read.chunks(3000).collect();
    assert!(
        records
            .iter()
            .all(|record| record.iter().all(|byte| *byte == record[0]))
    );
    let of = |byte| records.iter().filter(|record| record[0] == byte).count();
    assert_eq!([of(1), of(2), of(3), of(4)], [25; 4]);
}

/// Appends that reached the leader.
fn reservations(cluster: &Cluster) -> usize {
    let mutations = &cluster.world.state.lock().mutations;
    let appends = mutations
        .iter()
        .filter(|(_, mutation)| matches!(mutation, Mutation::Append { .. }));
    appends.count()
}

#[test]
fn an_append_refused_for_its_connection_generation_keeps_its_place() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    let append = |data: &[u8]| client.write(cx(), ino, 0, data, APPEND).unwrap().offset;
    assert_eq!(append(b"one."), 0);
    // A neighbour's time-out raised the generation before this write arrived,
    cluster.nodes[0].once(Op::Write, |_, _| Answer::Fail(Code::StaleWrite.into()));
    assert_eq!(append(b"two."), 4);
    // or after it did.
    cluster.nodes[0].once(Op::Write, |frame, world| {
        world.answer(frame).unwrap();
        Answer::Fail(Code::StaleWrite.into())
    });
    assert_eq!(append(b"three."), 8);
    assert_eq!(get(&client, ino, 0, 100), b"one.two.three.");
    assert_eq!(reservations(&cluster), 3);
}

#[test]
fn an_append_whose_range_was_cut_off_goes_to_the_new_end() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    put(&client, ino, 0, b"long before");
    cluster.nodes[0].once(Op::Write, move |_, world| {
        world
            .mutate(Mutation::SetAttr {
                ino,
                set: truncate(4),
            })
            .unwrap();
        Answer::Fail(Code::StaleWrite.into())
    });
    let written = client.write(cx(), ino, 0, b" after", APPEND);
    assert_eq!(written.unwrap().offset, 4);
    assert_eq!(get(&client, ino, 0, 100), b"long after");
    assert_eq!(client.getattr(cx(), ino).unwrap().size, 10);
}

#[test]
fn ranges_are_reserved_punched_and_sought() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    put(&client, ino, 0, &[3; 8192]);
    client
        .allocate(
            cx(),
            ino,
            0,
            3 * CHUNK,
            Range::Allocate { keep_size: false },
        )
        .unwrap();
    assert_eq!(client.getattr(cx(), ino).unwrap().size, 3 * CHUNK);
    client
        .allocate(cx(), ino, 4096, 10 * CHUNK, Range::Punch)
        .unwrap();
    let read = get(&client, ino, 0, 8192);
    assert!(read[..4096] == [3; 4096] && read[4096..] == [0; 4096]);
    client
        .allocate(cx(), ino, 0, 5 * CHUNK, Range::Zero { keep_size: false })
        .unwrap();
    assert_eq!(client.getattr(cx(), ino).unwrap().size, 5 * CHUNK);
    assert_eq!(get(&client, ino, 0, 1), [0]);
    put(&client, ino, 4 * CHUNK, b"x");
    assert_eq!(client.seek(cx(), ino, CHUNK, false).unwrap(), 4 * CHUNK);
    assert_eq!(
        client.seek(cx(), ino, 4 * CHUNK, true).unwrap(),
        4 * CHUNK + 1
    );
    let error = client.seek(cx(), ino, 5 * CHUNK, true).unwrap_err();
    assert_eq!(error.code, Code::NoSuchOffset);
    let error = client
        .write(cx(), ino, u64::MAX - 3, b"1234", WriteMode::default())
        .unwrap_err();
    assert_eq!(error.code, Code::FileTooBig);
}
