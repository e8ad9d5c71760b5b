//! The data cache as the only holder of a lease would use it, and a second client that looks afterwards.

use super::cluster::{Answer, CHUNK, Cluster, cx};
use super::files::{file, get, put, truncate};
use crate::client::{Client, Range as Change};
use crate::data::write::How;
use crate::pages::testing::Random;
use lumeofs_base::{Code, FsError, FsResult, InodeId};
use lumeofs_meta::op::{Mutation, SetAttr, SetTime};
use lumeofs_proto::data::ChunkRequest;
use lumeofs_proto::frame::Op;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const HOW: How = How {
    durable: false,
    direct: false,
    clear_suid: false,
};

pub(super) fn write_at(
    client: &Client,
    ino: InodeId,
    offset: Option<u64>,
    data: &[u8],
) -> FsResult<u64> {
    let (link, cx) = (&client.link, cx());
    let inode = link.inodes.get(ino);
    let written = link.buffered_write(
        &link.asker(&cx),
        &link.tenure(ino),
        &inode,
        offset,
        data,
        HOW,
    )?;
    let written = written.expect("nobody drops it");
    assert_eq!(
        written.attr.size,
        link.local_state(ino).unwrap().0.attr().size
    );
    Ok(written.offset)
}

pub(super) fn write(client: &Client, ino: InodeId, offset: u64, data: &[u8]) {
    write_at(client, ino, Some(offset), data).unwrap();
}

pub(super) fn read(client: &Client, ino: InodeId, offset: u64, len: usize) -> Vec<u8> {
    let (link, cx) = (&client.link, cx());
    let mut buf = vec![0xEE; len];
    let inode = link.inodes.get(ino);
    let count = link.read_file(
        &link.asker(&cx),
        &link.pages.file(ino),
        &inode,
        offset,
        &mut buf,
    );
    buf.truncate(count.unwrap());
    buf
}

pub(super) fn flush(client: &Client, ino: InodeId) {
    client
        .link
        .flush_data(&client.link.asker(&cx()), ino)
        .unwrap();
}

pub(super) fn sync(client: &Client, ino: InodeId) -> FsResult<()> {
    let link = &client.link;
    link.sync_data(&link.asker(&cx()), ino, &link.inodes.get(ino), false)
}

pub(super) fn resize(client: &Client, ino: InodeId, size: u64) {
    let attr = client.link.cached_set_attr(
        &client.link.asker(&cx()),
        &client.link.tenure(ino),
        truncate(size),
    );
    assert_eq!(attr.unwrap().size, size);
}

/// How many requests of a kind the datanodes get from now on.
pub(super) fn requests(cluster: &Cluster, op: Op) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    for node in &cluster.nodes {
        let count = count.clone();
        node.hook(move |frame, _| {
            count.fetch_add(usize::from(frame.fixed.op == op), Ordering::SeqCst);
            None
        });
    }
    count
}

pub(super) fn publications(cluster: &Cluster) -> usize {
    let mutations = &cluster.world.state.lock().mutations;
    let publish =
        |mutation: &Mutation| matches!(mutation, Mutation::Flush { .. } | Mutation::Extend { .. });
    mutations
        .iter()
        .filter(|(_, mutation)| publish(mutation))
        .count()
}

#[test]
fn random_calls_with_little_memory_agree_with_bytes_in_a_row() {
    let cluster = Cluster::start(1);
    let (client, other) = (cluster.client_with_cache(1 << 20), cluster.client());
    for seed in 1..4 {
        let ino = file(&client, &format!("f{seed}"));
        let (mut random, mut model) = (Random(seed), Vec::<u8>::new());
        for step in 0..400_u64 {
            let large = random.below(3) == 0;
            let most = if large { 2 * CHUNK } else { 9000 };
            let (offset, len) = (random.below(8 * CHUNK), 1 + random.below(most));
            let end = (offset + len) as usize;
            let byte = 1 + (step % 250) as u8;
            match random.below(20) {
                0..=6 => {
                    model.resize(model.len().max(end), 0);
                    model[offset as usize..end].fill(byte);
                    write(&client, ino, offset, &vec![byte; len as usize]);
                }
                7 => {
                    let data = vec![byte; len as usize % 20_000];
                    let at = write_at(&client, ino, None, &data).unwrap();
                    assert_eq!(at, model.len() as u64);
                    model.extend(data);
                }
                8 => {
                    let size = offset.min(model.len() as u64 + 5000);
                    model.resize(size as usize, 0);
                    resize(&client, ino, size);
                }
                9 => {
                    let change = match step % 3 {
                        0 => Change::Punch,
                        1 => Change::Zero { keep_size: true },
                        _ => Change::Zero { keep_size: false },
                    };
                    let link = &client.link;
                    link.cached_allocate(&cx(), &link.pages.file(ino), offset, len, change)
                        .unwrap();
                    if step % 3 == 2 {
                        model.resize(model.len().max(end), 0);
                    }
                    let until = end.min(model.len());
                    model[until.min(offset as usize)..until].fill(0);
                }
                10 => {
                    flush(&client, ino);
                    let len = model.len();
                    assert!(get(&other, ino, 0, len + 10) == model, "{seed} {step}");
                }
                11 => {
                    flush(&client, ino);
                    client.link.drop_data(ino);
                }
                12 => sync(&client, ino).unwrap(),
                _ => {
                    let until = end.min(model.len());
                    let want = &model[until.min(offset as usize)..until];
                    let got = read(&client, ino, offset, len as usize);
                    assert!(got == want, "{seed} {step} {offset}");
                }
            }
        }
        flush(&client, ino);
        assert!(get(&other, ino, 0, model.len() + 10) == model);
        assert_eq!(other.getattr(cx(), ino).unwrap().size, model.len() as u64);
    }
    let stats = client.cache_stats();
    assert_eq!(stats.dirty_bytes, 0);
    assert!(stats.memory_bytes <= 3 << 19, "{stats:?}");
    assert!(stats.hit_bytes > 0 && stats.missed_bytes > 0, "{stats:?}");
}

#[test]
fn a_flush_sends_large_requests_and_publishes_once() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    let writes = requests(&cluster, Op::Write);
    for at in 0..100 {
        write(&client, ino, at * 1000, &[at as u8; 1000]);
    }
    assert_eq!(client.link.local_state(ino).unwrap().0.attr().size, 100_000);
    let shown = client.link.local_state(ino).unwrap().0.attr().mtime;
    assert!(client.cache_stats().dirty_bytes == 100_000 && publications(&cluster) == 0);
    flush(&client, ino);
    assert_eq!(
        (writes.load(Ordering::SeqCst), publications(&cluster)),
        (1, 1)
    );
    assert_eq!(client.cache_stats().dirty_bytes, 0);
    // What was shown is what others see.
    assert_eq!(client.link.local_state(ino).unwrap().0.attr().mtime, shown);
    assert_eq!(client.getattr(cx(), ino).unwrap().mtime, shown);
    // Nothing is left to do, and what was written is still there.
    flush(&client, ino);
    let reads = requests(&cluster, Op::Read);
    assert!(
        read(&client, ino, 0, 200_000)
            .chunks(1000)
            .zip(0..)
            .all(|(part, at)| part == [at; 1000])
    );
    assert_eq!(
        (reads.load(Ordering::SeqCst), publications(&cluster)),
        (0, 1)
    );
}

#[test]
fn what_was_written_is_sent_by_itself_after_a_second() {
    let cluster = Cluster::start(1);
    let (client, other) = (cluster.client(), cluster.client());
    let ino = file(&client, "f");
    write(&client, ino, 0, b"data");
    let until = crate::wait::now() + Duration::from_secs(20);
    while get(&other, ino, 0, 10) != b"data" {
        assert!(crate::wait::now() < until, "never sent");
    }
    let unsent = || client.cache_stats().dirty_bytes;
    assert_eq!(unsent(), 0);
}

#[test]
fn a_sequential_reader_finds_its_data_and_nothing_is_fetched_twice() {
    let cluster = Cluster::start(1);
    let (client, writer) = (cluster.client(), cluster.client());
    let ino = file(&writer, "f");
    let data: Vec<u8> = (0..16 * CHUNK as u32).map(|n| (n / 9) as u8).collect();
    put(&writer, ino, 0, &data);
    let fetched = Arc::new(Mutex::new(Vec::new()));
    for node in &cluster.nodes {
        let fetched = fetched.clone();
        node.hook(move |frame, _| {
            let asked: ChunkRequest = frame.decode().unwrap();
            fetched.lock().push((asked.chunk, asked.offset, asked.len));
            None
        });
    }
    for at in (0..data.len()).step_by(65_536) {
        assert!(read(&client, ino, at as u64, 65_536) == data[at..at + 65_536]);
    }
    let bytes: u64 = fetched.lock().iter().map(|(_, _, len)| len).sum();
    assert_eq!(bytes, data.len() as u64);
    let stats = client.cache_stats();
    assert!(stats.ahead_bytes > data.len() as u64 / 2, "{stats:?}");
    assert_eq!(stats.ahead_used_bytes, stats.ahead_bytes);
    assert_eq!(stats.ahead_wasted_bytes, 0);
}

#[test]
fn readers_of_the_same_bytes_fetch_them_once() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    put(&client, ino, 0, &[5; 8192]);
    let reads = requests(&cluster, Op::Read);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(read(&client, ino, 100, 5000), [5; 5000]));
        }
    });
    assert!(reads.load(Ordering::SeqCst) <= 2);
}

#[test]
fn a_failed_fetch_is_told_to_its_reader_and_tried_again_by_the_next() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    put(&client, ino, 0, &[5; 100]);
    for node in &cluster.nodes {
        node.hook(|_, _| Some(Answer::Fail(FsError::new(Code::Io, "bad disk"))));
    }
    let link = &client.link;
    let inode = link.inodes.get(ino);
    let failed = link.read_file(
        &link.asker(&cx()),
        &link.pages.file(ino),
        &inode,
        0,
        &mut [0; 10],
    );
    assert_eq!(failed.unwrap_err().code, Code::Io);
    for node in &cluster.nodes {
        node.hook(|_, _| None);
    }
    assert_eq!(read(&client, ino, 0, 10), [5; 10]);
}

#[test]
fn a_truncation_discards_what_was_not_sent_and_times_that_are_set_stay() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    write(&client, ino, 0, &[1; 100_000]);
    let writes = requests(&cluster, Op::Write);
    resize(&client, ino, 0);
    assert_eq!(
        (
            writes.load(Ordering::SeqCst),
            client.cache_stats().dirty_bytes
        ),
        (0, 0)
    );
    assert_eq!(read(&client, ino, 0, 10), b"");
    write(&client, ino, 0, b"short");
    let mtime = lumeofs_base::Timestamp { secs: 5, nanos: 6 };
    let set = SetAttr {
        mtime: Some(SetTime::At(mtime)),
        ..SetAttr::default()
    };
    let link = &client.link;
    link.cached_set_attr(&link.asker(&cx()), &link.tenure(ino), set)
        .unwrap();
    // It did not have to be sent for that.
    assert!(writes.load(Ordering::SeqCst) == 0 && link.pages.shared.dirty() == 5);
    assert_eq!(link.local_state(ino).unwrap().0.attr().mtime, mtime);
    assert_eq!(link.cached_seek(&cx(), ino, 1, false).unwrap(), 1);
    assert_eq!(link.cached_seek(&cx(), ino, 1, true).unwrap(), 5);
    flush(&client, ino);
    let other = cluster.client();
    let attr = other.getattr(cx(), ino).unwrap();
    assert_eq!((attr.size, attr.mtime), (5, mtime));
    assert_eq!(get(&other, ino, 0, 10), b"short");
}

#[test]
fn nothing_that_was_being_fetched_when_data_was_dropped_comes_in() {
    let cluster = Cluster::start(1);
    let (client, other) = (cluster.client(), cluster.client());
    let ino = file(&client, "f");
    put(&other, ino, 0, &[1; 4 * CHUNK as usize]);
    for round in 2..12 {
        // Starts a read-ahead of what comes after it.
        read(&client, ino, 0, 65_536);
        client.link.drop_data(ino);
        put(&other, ino, 0, &[round; 4 * CHUNK as usize]);
        let got = read(&client, ino, 0, 4 * CHUNK as usize);
        assert!(got.iter().all(|byte| *byte == round), "{round}");
        client.link.drop_data(ino);
    }
}

#[test]
fn threads_that_read_and_write_one_file_see_whole_writes() {
    let cluster = Cluster::start(1);
    let client = cluster.client_with_cache(1 << 20);
    let ino = file(&client, "f");
    write(&client, ino, 0, &vec![0; 6 * CHUNK as usize]);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let client = &client;
            scope.spawn(move || {
                let mut random = Random(thread + 1);
                for step in 0..60_u64 {
                    // Each block of 10 kB is written as a whole.
                    let at = random.below(100) * 10_000;
                    if random.below(2) == 0 {
                        write(client, ino, at, &[(4 * step + thread) as u8; 10_000]);
                    } else {
                        let got = read(client, ino, at, 10_000);
                        assert!(got.iter().all(|byte| *byte == got[0]), "{at}");
                    }
                    if step % 20 == 19 {
                        sync(client, ino).unwrap();
                    }
                }
            });
        }
    });
    let got = read(&client, ino, 0, 6 * CHUNK as usize);
    flush(&client, ino);
    assert!(get(&cluster.client(), ino, 0, 6 * CHUNK as usize) == got);
}

#[test]
fn attributes_that_came_with_the_lease_are_not_asked_for_and_others_do_not_shrink_what_was_written()
{
    let cluster = Cluster::start(1);
    let client = cluster.client();
    let ino = file(&client, "f");
    let asker = client.link.asker(&cx());
    client.getattr(cx(), ino).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    cluster.masters[0].hook(move |frame, _| {
        count.fetch_add(usize::from(frame.fixed.op == Op::Query), Ordering::SeqCst);
        None
    });
    write(&client, ino, 0, &[1; 1000]);
    assert_eq!(read(&client, ino, 500, 1000), [1; 500]);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    // The metadata group still thinks that it is empty.
    let set = SetAttr {
        mode: Some(0o600),
        ..SetAttr::default()
    };
    let attr = client
        .link
        .cached_set_attr(&asker, &client.link.tenure(ino), set)
        .unwrap();
    assert_eq!((attr.size, attr.mode), (1000, 0o600));
    assert_eq!(read(&client, ino, 0, 2000).len(), 1000);
    flush(&client, ino);
    let attr = cluster.client().getattr(cx(), ino).unwrap();
    assert_eq!((attr.size, attr.mode), (1000, 0o600));
}
