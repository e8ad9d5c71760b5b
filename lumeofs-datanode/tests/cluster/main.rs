//! Three datanodes with real stores and sockets, and a controller that only keeps configurations.

mod harness;
mod scrub;

use harness::{Cluster, block};
use lumeofs_base::Code;
use lumeofs_base::error::Retry;
use lumeofs_proto::data::{ChunkRequest, CopySource};
use lumeofs_proto::frame::Op;
use std::time::{Duration, Instant};

#[test]
fn what_was_written_is_read_and_synced_through_any_member() {
    let cluster = Cluster::start();
    let written = cluster.write(1, 0, &block(1));
    assert!(written.sequence > 0);
    cluster.write(1, 4096, &block(2)[..1000]);
    let read = cluster.read(1, 0, 6000);
    assert_eq!(read[..4096], block(1)[..]);
    assert_eq!(read[4096..5096], block(2)[..1000]);
    assert_eq!(read[5096..], [0; 904]);
    let synced = cluster.sync((written.epoch, written.sequence)).unwrap();
    assert!(synced.sequence >= written.sequence);
    let lost = cluster
        .sync((written.epoch, written.sequence + 1000))
        .unwrap_err();
    assert_eq!(lost.code, Code::LostTail);
    // A secondary hands a write on to the primary, and may answer reads itself.
    cluster.until("a secondary hands a write on", || {
        let asked = ChunkRequest {
            chunk: 2,
            ..cluster.request()
        };
        match cluster.call(cluster.secondary(), Op::Write, asked, &block(3)) {
            Ok((reply, _)) => reply.sequence > written.sequence,
            // The machine may be too busy for a lease or an epoch to last.
            Err(error) => {
                assert_ne!(error.code.retry(), Retry::Never, "{error}");
                false
            }
        }
    });
    cluster.until("a secondary answers a read under its lease", || {
        let asked = ChunkRequest {
            chunk: 2,
            len: 4096,
            ..cluster.request()
        };
        match cluster.call(cluster.secondary(), Op::Read, asked, &[]) {
            Ok((_, data)) => data[..] == block(3)[..],
            Err(error) => {
                assert_ne!(error.code.retry(), Retry::Never, "{error}");
                false
            }
        }
    });
}

#[test]
fn a_chunk_is_copied_into_another_one_through_any_member() {
    let cluster = Cluster::start();
    let data: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 7) as u8).collect();
    cluster.write(1, 0, &data);
    cluster.write(2, 0, &block(9));
    let copy = |to: u64, offset: u64, from: u64, len: u64| ChunkRequest {
        chunk: to,
        offset,
        len,
        source: Some(CopySource {
            group: cluster.request().group,
            chunk: 1,
            offset: from,
            ..CopySource::default()
        }),
        ..cluster.request()
    };
    // Blocks onto blocks, and not.
    for (at, from) in [(0, 8192), (100, 50_000)] {
        let asked = copy(2, 4096 + at, from, 400_000);
        let copied = cluster.ask(Op::Copy, |request| *request = asked, &[]);
        assert!(copied.unwrap().sequence > 0);
        let read = cluster.read(2, 0, 5000 + 400_000);
        let from = from as usize;
        assert_eq!(read[..4096], block(9)[..]);
        assert!(read[4096 + at as usize..][..400_000] == data[from..from + 400_000]);
    }
    // A secondary hands it on to the primary.
    cluster.until("a secondary hands a copy on", || {
        match cluster.call(cluster.secondary(), Op::Copy, copy(3, 0, 0, 1 << 20), &[]) {
            Ok((reply, _)) => reply.sequence > 0,
            // The machine may be too busy for a lease or an epoch to last.
            Err(error) => {
                assert_ne!(error.code.retry(), Retry::Never, "{error}");
                false
            }
        }
    });
    assert!(cluster.read(3, 0, 1 << 20) == data);
    // What never was there reads as zeros; a chunk that is gone does not.
    let mut asked = copy(3, 0, 0, 4096);
    asked.source.as_mut().unwrap().chunk = 77;
    let copied = cluster.ask(Op::Copy, |request| *request = asked.clone(), &[]);
    copied.unwrap();
    assert!(cluster.read(3, 0, 4096) == [0; 4096]);
    let delete = |request: &mut ChunkRequest| request.chunk = 77;
    cluster.ask(Op::Delete, delete, &[]).unwrap();
    for (asked, code) in [
        (asked, Code::Stale),
        (copy(3, 0, 0, (1 << 20) + 1), Code::Invalid),
        (copy(3, (64 << 20) - 1, 0, 4096), Code::Invalid),
        (
            ChunkRequest {
                source: None,
                ..copy(3, 0, 0, 4096)
            },
            Code::Invalid,
        ),
    ] {
        let refused = cluster.ask(Op::Copy, |request| *request = asked, &[]);
        assert_eq!(refused.unwrap_err().code, code);
    }
    cluster.assert_equal();
}

#[test]
fn what_a_given_up_connection_still_brings_does_not_undo_what_others_have_written_since() {
    let mut cluster = Cluster::start();
    let write = |cluster: &Cluster, session: u64, generation: u32, value: u64| {
        let edit = |request: &mut ChunkRequest| {
            (request.chunk, request.session, request.generation) = (1, session, generation);
        };
        cluster.ask(Op::Write, edit, &block(value))
    };
    // The first attempt, of generation 1, is late. After the second one the lease is given back, and somebody else writes.
    write(&cluster, 7, 2, 1).unwrap();
    write(&cluster, 8, 1, 2).unwrap();
    let late = write(&cluster, 7, 1, 1).unwrap_err();
    assert_eq!(late.code, Code::StaleWrite);
    assert_eq!(cluster.read(1, 0, 4096), block(2));
    // Also an attempt that was refused has overtaken those before it.
    let no_source = |request: &mut ChunkRequest| {
        let group = request.group;
        (request.chunk, request.len) = (1, (1 << 20) + 1);
        (request.session, request.generation) = (7, 3);
        request.source = Some(CopySource {
            group,
            chunk: 2,
            ..CopySource::default()
        });
    };
    let refused = cluster.ask(Op::Copy, no_source, &[]).unwrap_err();
    assert_eq!(refused.code, Code::Invalid);
    let late = write(&cluster, 7, 2, 1).unwrap_err();
    assert_eq!(late.code, Code::StaleWrite);
    // The next primary knows that too.
    write(&cluster, 7, 4, 3).unwrap();
    write(&cluster, 8, 1, 4).unwrap();
    let primary = cluster.config().primary;
    cluster.stop(primary);
    cluster.until("another one leads", || cluster.config().primary != primary);
    let late = write(&cluster, 7, 3, 3).unwrap_err();
    assert_eq!(late.code, Code::StaleWrite);
    assert_eq!(cluster.read(1, 0, 4096), block(4));
}

#[test]
fn writes_go_on_after_the_primary_died_and_it_is_caught_up_when_it_returns() {
    let mut cluster = Cluster::start();
    for chunk in 1..=20 {
        cluster.write(chunk, 0, &block(chunk));
    }
    let epoch = cluster.config().epoch;
    let dead = cluster.config().primary;
    cluster.stop(dead);
    for chunk in 10..=30 {
        cluster.write(chunk, 8192, &block(chunk + 1));
    }
    assert!(cluster.config().epoch > epoch);
    assert_ne!(cluster.config().primary, dead);
    cluster.restart(dead);
    cluster.until("all are in sync again", || {
        cluster.config().in_sync.len() == 3
    });
    for chunk in 1..=30 {
        let read = cluster.read(chunk, 0, 12288);
        assert_eq!(
            read[..4096],
            if chunk <= 20 {
                block(chunk)
            } else {
                vec![0; 4096]
            }[..]
        );
        let second = if chunk >= 10 {
            block(chunk + 1)
        } else {
            vec![0; 4096]
        };
        assert_eq!(read[8192..], second[..], "chunk {chunk}");
    }
    cluster.assert_equal();
    cluster.assert_parts(dead, 1..=30);
}

#[test]
fn a_member_joins_beside_live_writes_and_large_chunks() {
    let mut cluster = Cluster::start();
    let big: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 7) as u8).collect();
    for megabyte in 0..8 {
        cluster.write(5, megabyte << 20, &big);
    }
    let gone = cluster.secondary();
    cluster.stop(gone);
    for megabyte in 0..8 {
        cluster.write(5, megabyte << 20, &big[1..]);
    }
    cluster.restart(gone);
    let mut writes = 0;
    let begun = Instant::now();
    while cluster.config().in_sync.len() < 3 {
        let offset = (writes * 7919) % (8 << 20);
        cluster.write(5, offset, &block(writes));
        cluster.write(100 + writes % 50, offset / 3, &block(writes));
        writes += 1;
        assert!(begun.elapsed() < Duration::from_secs(120), "never in sync");
    }
    for more in 0..20 {
        cluster.write(100 + more, 0, &block(more));
    }
    cluster.sync((0, 0)).unwrap();
    cluster.assert_equal();
    cluster.assert_parts(gone, [5, 100, 119]);
}

#[test]
fn a_whole_group_that_restarted_serves_again_with_everything_synced() {
    let mut cluster = Cluster::start();
    for chunk in 1..=10 {
        cluster.write(chunk, 0, &block(chunk));
    }
    cluster.sync((0, 0)).unwrap();
    let members = cluster.config().members;
    for &member in &members {
        cluster.stop(member);
    }
    for &member in &members {
        cluster.restart(member);
    }
    for chunk in 1..=10 {
        assert_eq!(cluster.read(chunk, 0, 4096), block(chunk));
    }
    cluster.write(1, 0, &block(77));
    assert_eq!(cluster.read(1, 0, 4096), block(77));
    cluster.until("all are in sync again", || {
        cluster.config().in_sync.len() == 3
    });
    cluster.assert_equal();
}

#[test]
fn two_datanodes_cannot_share_a_directory_or_a_port() {
    let cluster = Cluster::start();
    let error = cluster.run_twice(true).unwrap_err();
    assert!(format!("{error:#}").contains("in use"), "{error:#}");
    let error = cluster.run_twice(false).unwrap_err();
    assert!(format!("{error:#}").contains("port is in use"), "{error:#}");
    std::thread::park_timeout(Duration::ZERO);
}

#[test]
fn what_was_deleted_and_forgotten_comes_back_neither_by_a_joiner_nor_after_a_change_of_primary() {
    let mut cluster = Cluster::start();
    for chunk in 1..=6 {
        cluster.write(chunk, 0, &block(chunk));
    }
    // One member misses the deletions and the end of the era in which they were made.
    let away = cluster.secondary();
    cluster.stop(away);
    for chunk in 1..=3 {
        cluster
            .ask(Op::Delete, |asked| asked.chunk = chunk, &[])
            .unwrap();
    }
    let begin_era = |asked: &mut ChunkRequest| {
        (asked.chunk, asked.truncations, asked.era, asked.durable) = (0, 1, 1, true);
    };
    cluster.ask(Op::Truncate, begin_era, &[]).unwrap();
    cluster
        .ask(Op::Delete, |asked| asked.chunk = 4, &[])
        .unwrap();
    cluster.restart(away);
    cluster.until("all are in sync again", || {
        cluster.config().in_sync.len() == 3
    });
    cluster.assert_equal();
    assert_eq!(cluster.chunks(away), [0, 4, 5, 6]);
    let late_write = |cluster: &Cluster, chunk, era| {
        let write = |asked: &mut ChunkRequest| (asked.chunk, asked.era) = (chunk, era);
        cluster.ask(Op::Write, write, &block(9)).map(drop)
    };
    for primary in 0..2 {
        let refused = late_write(&cluster, 1, 0).unwrap_err();
        assert_eq!(refused.code, Code::StaleWrite);
        assert_eq!(late_write(&cluster, 4, 1).unwrap_err().code, Code::Stale);
        late_write(&cluster, 5, 0).unwrap();
        if primary == 0 {
            let dead = cluster.config().primary;
            cluster.stop(dead);
        }
    }
    late_write(&cluster, 7, 1).unwrap();
    let read = |chunk, era| {
        let read = |asked: &mut ChunkRequest| {
            (asked.chunk, asked.era, asked.len) = (chunk, era, 4096);
        };
        cluster.ask(Op::Read, read, &[]).map(drop)
    };
    assert_eq!(read(1, 0).unwrap_err().code, Code::StaleWrite);
    read(1, 1).unwrap();
}
