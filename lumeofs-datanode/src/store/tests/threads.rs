//! Many threads at once.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

/// Tells the other threads to end, also when the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn readers_see_one_write_or_another_while_places_are_used_again() {
    let config = StoreConfig {
        capacity_bytes: Some(1 << 20),
        ..small()
    };
    let store = ChunkStore::open(Arc::new(SimDisk::new()), identity(), config).unwrap();
    let done = AtomicBool::new(false);
    let fill = |value: u8, len: usize| AlignedBuf::copy_of(&vec![value; len]);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    // Each block is written as a whole, so it is of one value.
                    let (data, sums) = store
                        .read(ChunkId(1 + reader % 2), 0, 40 * BLOCK_SIZE)
                        .unwrap();
                    assert!(
                        data.chunks(BLOCK_SIZE)
                            .all(|block| block.iter().all(|b| *b == block[0]))
                    );
                    assert_eq!(sums, block_checksums(0, &data));
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.maintain().unwrap();
            }
        });
        let writers: Vec<_> = (1..=2)
            .map(|chunk| {
                let (store, fill) = (&store, &fill);
                scope.spawn(move || {
                    for sequence in 1..=150 {
                        let len = if sequence % 3 == 0 { 2 } else { 40 } * BLOCK_SIZE;
                        let data = fill(sequence as u8, len);
                        let op = write_op(chunk, 0, 0, &data);
                        let group = GroupId(chunk as u32);
                        store.apply(group, version(sequence), &op, &data).unwrap();
                    }
                })
            })
            .collect();
        let _ends = Ends(&done);
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
    });
    check_space(&store);
}

#[test]
fn callbacks_come_in_order_and_may_use_the_store() {
    let store = Arc::new(open(&SimDisk::new()));
    let (sender, receiver) = mpsc::channel();
    for sequence in 1..=50 {
        let data = AlignedBuf::copy_of(&[sequence as u8; 100]);
        let op = write_op(1, 0, 0, &data);
        let applied = store
            .apply(GroupId(1), version(sequence), &op, &data)
            .unwrap();
        let (sender, used) = (sender.clone(), Arc::downgrade(&store));
        let done = move |result: FsResult<()>| {
            let used = used.upgrade().unwrap();
            assert!(used.durable(GroupId(1)) >= version(sequence));
            used.read(ChunkId(1), 0, 10).unwrap();
            sender.send((sequence, result)).unwrap();
        };
        store.on_durable(applied.lsn, Box::new(done));
    }
    for sequence in 1..=50 {
        assert_eq!(receiver.recv().unwrap(), (sequence, Ok(())));
    }
}

#[test]
fn syncs_of_many_threads_share_rounds() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let data = AlignedBuf::copy_of(&[1; 100]);
    let apply = |sequence| {
        let op = write_op(1, 0, 0, &data);
        store
            .apply(GroupId(1), version(sequence), &op, &data)
            .unwrap()
            .lsn
    };
    let positions: Vec<Lsn> = (1..=60).map(apply).collect();
    let before = disk.sync_count();
    std::thread::scope(|scope| {
        for share in positions.chunks(15) {
            let store = &store;
            scope.spawn(move || share.iter().for_each(|lsn| store.sync(*lsn).unwrap()));
        }
    });
    assert_eq!(store.durable(GroupId(1)), version(60));
    // One round; the log's own syncs, among them those that prepare its next segment, come on top.
    assert!(disk.sync_count() - before < 30);
}

#[test]
fn the_upkeep_thread_makes_durable_what_nobody_syncs() {
    let store = open(&SimDisk::new());
    let upkeep = store.start_upkeep().unwrap();
    let data = AlignedBuf::copy_of(b"data");
    let applied = store
        .apply(GroupId(1), version(1), &write_op(1, 0, 0, &data), &data)
        .unwrap();
    let (sender, receiver) = mpsc::channel();
    store.on_durable(
        applied.lsn,
        Box::new(move |result| sender.send(result).unwrap()),
    );
    receiver.recv().unwrap().unwrap();
    store
        .apply(GroupId(1), version(2), &write_op(1, 0, 0, &data), &data)
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while store.durable(GroupId(1)) < version(2) {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    drop(upkeep);
}
