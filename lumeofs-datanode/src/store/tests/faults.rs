//! Damaged bits, full and failing disks, directories of others.

use super::gate::{Call, GateDisk};
use super::*;
use lumeofs_base::clock::ManualClock;
use lumeofs_base::disk::OpenMode;
use std::path::Path;

fn filled(disk: &SimDisk, len: usize) -> (ChunkStore, AlignedBuf) {
    let store = open(disk);
    let data = noise(&mut SplitMix64::new(1), len);
    let applied = store
        .apply(GroupId(1), version(1), &write_op(1, 0, 0, &data), &data)
        .unwrap();
    store.sync(applied.lsn).unwrap();
    (store, data)
}

#[test]
fn a_flipped_bit_is_found_and_the_rest_is_served() {
    let disk = SimDisk::new();
    let (store, data) = filled(&disk, 40 * BLOCK_SIZE);
    let place = store.core.used_runs()[0].place;
    let file = Path::new("chunks/extents/00000000.dat");
    disk.flip_bit(file, (place + 5) * B + 77);
    let error = store.read(ChunkId(1), 0, data.len()).unwrap_err();
    assert_eq!(error.code, Code::Io);
    for part in ["c1", "block 5", "00000000.dat"] {
        assert!(error.context.contains(part), "{error}");
    }
    assert!(
        store.read(ChunkId(1), 6 * B, 20_000).unwrap().0[..] == data[6 * BLOCK_SIZE..][..20_000]
    );
    // Nothing is merged into a damaged block, but it can be replaced as a whole.
    let small = AlignedBuf::copy_of(b"abc");
    let merge = store.apply(
        GroupId(1),
        version(2),
        &write_op(1, 5 * B + 9, 0, &small),
        &small,
    );
    assert_eq!(merge.unwrap_err().code, Code::Io);
    assert_eq!(store.last(GroupId(1)), version(1));
    let block = AlignedBuf::copy_of(&[4; BLOCK_SIZE]);
    store
        .apply(
            GroupId(1),
            version(2),
            &write_op(1, 5 * B, 0, &block),
            &block,
        )
        .unwrap();
    assert!(store.read(ChunkId(1), 5 * B, BLOCK_SIZE).unwrap().0[..] == block[..]);
}

#[test]
fn a_flipped_bit_of_a_stored_checksum_is_found() {
    let disk = SimDisk::new();
    let (store, data) = filled(&disk, 40 * BLOCK_SIZE);
    let place = store.core.used_runs()[0].place;
    disk.flip_bit(Path::new("chunks/extents/00000000.crc"), (place + 1) * 4);
    assert_eq!(
        store.read(ChunkId(1), 0, data.len()).unwrap_err().code,
        Code::Io
    );
    assert!(store.read(ChunkId(1), 2 * B, 100).is_ok());
}

#[test]
fn a_full_store_refuses_writes_and_takes_them_again_after_a_delete() {
    let disk = SimDisk::new();
    let config = StoreConfig {
        capacity_bytes: Some(2 << 20),
        ..small()
    };
    let store = ChunkStore::open(Arc::new(disk.clone()), identity(), config).unwrap();
    assert_eq!(store.space(), (2 << 20, 2 << 20));
    let data = noise(&mut SplitMix64::new(2), 200_000);
    let write = |sequence, chunk| {
        store.apply(
            GroupId(1),
            version(sequence),
            &write_op(chunk, 0, 0, &data),
            &data,
        )
    };
    let mut sequence = 0;
    let error = loop {
        match write(sequence + 1, sequence + 1) {
            Ok(applied) => assert_eq!(applied.refused, None),
            Err(error) => break error,
        }
        sequence += 1;
    };
    assert_eq!(
        (error.code, sequence),
        (Code::NoSpace, (2 << 20) / (49 * B))
    );
    assert_eq!(
        (
            store.last(GroupId(1)),
            store.state(GroupId(1), ChunkId(sequence + 1))
        ),
        (version(sequence), None)
    );
    check_space(&store);
    // What is there can still be changed: long and short, aligned and not.
    let other = noise(&mut SplitMix64::new(3), 190_000);
    for offset in [0, 100] {
        let op = write_op(1, offset, 0, &other);
        sequence += 1;
        assert_eq!(
            store
                .apply(GroupId(1), version(sequence), &op, &other)
                .unwrap()
                .refused,
            None
        );
        assert!(store.read(ChunkId(1), offset, other.len()).unwrap().0[..] == other[..]);
    }
    let zero = ChunkOp::Zero {
        chunk: ChunkId(2),
        offset: 5,
        len: 20,
        truncations: 0,
        era: 0,
    };
    store
        .apply(GroupId(1), version(sequence + 1), &zero, &data)
        .unwrap();
    let delete = ChunkOp::Delete { chunk: ChunkId(2) };
    store
        .apply(GroupId(1), version(sequence + 2), &delete, &data)
        .unwrap();
    // Without a sync in between: the store itself waits until the space may be used.
    write(sequence + 3, 1000).unwrap();
    assert!(store.read(ChunkId(1000), 0, data.len()).unwrap().0[..] == data[..]);
    while store.maintain().unwrap() {}
    check_space(&store);
}

#[test]
fn a_full_disk_keeps_its_reserve() {
    let disk = SimDisk::new();
    disk.set_capacity(12 << 20);
    let config = StoreConfig {
        reserve_bytes: 4 << 20,
        ..small()
    };
    let store = ChunkStore::open(Arc::new(disk.clone()), identity(), config).unwrap();
    let data = noise(&mut SplitMix64::new(2), 300_000);
    let mut sequence = 0;
    let error = loop {
        sequence += 1;
        let op = write_op(sequence, 0, 0, &data);
        match store.apply(GroupId(1), version(sequence), &op, &data) {
            Ok(_) => drop(store.maintain().unwrap()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code, Code::NoSpace);
    assert!(sequence > 5);
    for chunk in 1..sequence {
        let op = ChunkOp::Delete {
            chunk: ChunkId(chunk),
        };
        store
            .apply(GroupId(1), version(sequence + chunk), &op, &data)
            .unwrap();
        while store.maintain().unwrap() {}
    }
    let (capacity, free) = store.space();
    assert_eq!(capacity, free);
}

#[test]
fn free_space_that_is_shown_follows_what_is_written_and_is_exact_when_it_is_scarce() {
    const EXTENT: u64 = 1 << 20;
    let disk = SimDisk::new();
    disk.set_capacity(40 << 20);
    let store = ChunkStore::open(Arc::new(disk.clone()), identity(), small()).unwrap();
    let data = noise(&mut SplitMix64::new(2), 200 << 10);
    let mut shown = Vec::new();
    let mut sequence = 0;
    while store.space().1 > 2 * EXTENT {
        sequence += 1;
        let op = write_op(sequence, 0, 0, &data);
        store
            .apply(GroupId(1), version(sequence), &op, &data)
            .unwrap();
        while store.maintain().unwrap() {}
        shown.push(store.shown_space().1);
        let (exact, shown) = (store.space().1, store.shown_space().1);
        assert!(exact <= shown && shown < exact + EXTENT);
        assert!(exact >= 8 * EXTENT || shown == exact);
    }
    // The log takes room too, a segment at a time; the files do not show.
    let roomy = shown.windows(2).take_while(|pair| pair[1] > 9 * EXTENT);
    let steps: Vec<_> = roomy.map(|pair| pair[0] as i64 - pair[1] as i64).collect();
    let len = data.len() as i64;
    let odd = steps.iter().filter(|step| (**step - len).abs() > 8192);
    assert!(odd.count() <= 4 && steps.len() > 100, "{steps:?}");
}

#[test]
fn bytes_in_flight_count_against_the_free_space() {
    let config = StoreConfig {
        capacity_bytes: Some(2 << 20),
        ..small()
    };
    let store = ChunkStore::open(Arc::new(SimDisk::new()), identity(), config).unwrap();
    let first = store.reserve(1 << 20, 0).unwrap();
    let refused = store.reserve(1 << 20, 0).err().expect("promised already");
    assert_eq!(refused.code, Code::NoSpace);
    assert!(store.reserve(512 << 10, 512 << 10).is_err());
    let second = store.reserve(512 << 10, 0).unwrap();
    drop(first);
    let third = store.reserve(1 << 20, 0).unwrap();
    // What was promised is there.
    for (chunk, len) in [(1, 512 << 10), (2, 1 << 20)] {
        let data = noise(&mut SplitMix64::new(chunk), len);
        let op = write_op(chunk, 100, 0, &data);
        store.apply(GroupId(1), version(chunk), &op, &data).unwrap();
    }
    drop((second, third));
    assert!(store.reserve(300 << 10, 0).is_ok());
}

#[test]
fn a_store_that_grows_slowly_serves_meanwhile() {
    let disk = GateDisk::new();
    let store = ChunkStore::open(Arc::new(disk.clone()), identity(), small()).unwrap();
    let data = noise(&mut SplitMix64::new(2), 700_000);
    let apply = |sequence, chunk, data: &AlignedBuf| {
        let op = write_op(chunk, 0, 0, data);
        let group = GroupId(chunk as u32);
        store.apply(group, version(sequence), &op, data).unwrap()
    };
    apply(1, 1, &data);
    disk.close_gate(Call::Allocate);
    std::thread::scope(|scope| {
        let grows = scope.spawn(|| apply(1, 2, &data));
        disk.wait_for_call();
        let others = scope.spawn(|| {
            let applied = apply(1, 3, &AlignedBuf::copy_of(&[9; 5000]));
            store.sync(applied.lsn).unwrap();
            store.space()
        });
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !others.is_finished() && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        let in_time = others.is_finished();
        disk.open_gate();
        grows.join().unwrap();
        assert!(in_time);
    });
    check_space(&store);
}

#[test]
fn a_disk_that_hangs_is_noticed_and_forgiven() {
    let (disk, clock) = (GateDisk::new(), ManualClock::default());
    let config = StoreConfig {
        clock: Arc::new(clock.clone()),
        ..small()
    };
    let store = ChunkStore::open(Arc::new(disk.clone()), identity(), config).unwrap();
    let data = noise(&mut SplitMix64::new(2), 100_000);
    let op = write_op(1, 0, 0, &data);
    let applied = store.apply(GroupId(1), version(1), &op, &data).unwrap();
    clock.advance(DISK_STALL_MAX * 2);
    // A thread of the store may have been at the disk when the clock jumped; it ends by itself.
    while store.stalled_for().is_some() {
        std::thread::yield_now();
    }
    assert_eq!(store.check(), Ok(()));
    disk.close_gate(Call::Sync);
    std::thread::scope(|scope| {
        let sync = scope.spawn(|| store.sync(applied.lsn));
        disk.wait_for_call();
        clock.advance(DISK_STALL_MAX);
        let slow = (store.stalled_for(), store.check());
        clock.advance(DISK_STALL_MAX);
        let hangs = store.check();
        disk.open_gate();
        sync.join().unwrap().unwrap();
        assert_eq!(slow, (Some(DISK_STALL_MAX), Ok(())));
        let error = hangs.unwrap_err();
        assert_eq!(error.code, Code::Io);
        for part in ["chunks", "20 s"] {
            assert!(error.context.contains(part), "{error}");
        }
    });
    assert_eq!(store.check(), Ok(()));
    assert_eq!(store.durable(GroupId(1)), version(1));
}

#[test]
fn a_store_opens_on_a_full_disk_beside_a_file_that_it_had_no_space_to_finish() {
    for unfinished in ["00000001.dat", "00000001.crc"] {
        let disk = SimDisk::new();
        let (store, data) = filled(&disk, 100_000);
        drop(store);
        let mode = OpenMode {
            create: true,
            ..OpenMode::default()
        };
        for name in ["00000001.dat", "00000001.crc"] {
            let path = Path::new("chunks/extents").join(name);
            let file = disk.open(&path, mode).unwrap();
            let len = if name == unfinished { 100 } else { 1 << 20 };
            file.set_len(len).unwrap();
        }
        disk.set_capacity(1 << 20);
        let store = open(&disk);
        assert!(store.read(ChunkId(1), 0, data.len()).unwrap().0[..] == data[..]);
        disk.set_capacity(None);
        let big = noise(&mut SplitMix64::new(5), 1 << 20);
        let op = write_op(2, 0, 0, &big);
        store.apply(GroupId(1), version(2), &op, &big).unwrap();
        assert!(store.read(ChunkId(2), 0, big.len()).unwrap().0[..] == big[..]);
        check_space(&store);
    }
}

#[test]
fn a_failed_sync_ends_the_store() {
    let disk = SimDisk::new();
    let (store, data) = filled(&disk, 100_000);
    disk.fail_syncs(std::io::ErrorKind::Other);
    let applied = store
        .apply(GroupId(1), version(2), &write_op(1, 0, 0, &data), &data)
        .unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    store.on_durable(
        applied.lsn,
        Box::new(move |result| sender.send(result).unwrap()),
    );
    assert_eq!(receiver.recv().unwrap().unwrap_err().code, Code::Io);
    disk.fail_syncs(None);
    let first = store.sync(applied.lsn).unwrap_err();
    assert_eq!(first.code, Code::Io);
    assert_eq!(store.read(ChunkId(1), 0, 10).unwrap_err(), first);
    let write = store.apply(GroupId(1), version(3), &write_op(1, 0, 0, &data), &data);
    assert_eq!(write.unwrap_err(), first);
    assert_eq!(store.maintain().unwrap_err(), first);
    assert_eq!(store.set_group_note(GroupId(1), b"").unwrap_err(), first);
}

#[test]
fn a_directory_of_another_node_or_format_is_refused() {
    let disk = SimDisk::new();
    drop(filled(&disk, 10));
    let refused = |identity| {
        ChunkStore::open(Arc::new(disk.clone()), identity, small())
            .err()
            .expect("must be refused")
    };
    let other_node = refused(StoreIdentity {
        node: NodeId(4),
        ..identity()
    });
    assert_eq!(other_node.code, Code::Refused);
    assert!(
        other_node.context.contains("n3") && other_node.context.contains("n4"),
        "{other_node}"
    );
    let cluster = ClusterId([8; 16]);
    let other_cluster = refused(StoreIdentity {
        cluster,
        ..identity()
    });
    for id in [identity().cluster, cluster] {
        assert!(
            other_cluster.context.contains(&id.to_string()),
            "{other_cluster}"
        );
    }
    let superblock = Path::new("chunks/superblock");
    disk.flip_bit(superblock, 9);
    let version = refused(identity());
    assert_eq!(version.code, Code::Invalid);
    assert!(
        version.context.contains("version 259") && version.context.contains("knows 2 to 3"),
        "{version}"
    );
    disk.flip_bit(superblock, 9);
    disk.flip_bit(superblock, 30);
    assert_eq!(refused(identity()).code, Code::Io);
    disk.remove(superblock).unwrap();
    assert_eq!(refused(identity()).code, Code::Invalid);
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let disk = SimDisk::new();
    let (store, _) = filled(&disk, 10);
    let data = noise(&mut SplitMix64::new(2), 60_000);
    for sequence in 2..8 {
        store
            .apply(
                GroupId(1),
                version(sequence),
                &write_op(1, 0, 0, &data),
                &data,
            )
            .unwrap();
    }
    while store.maintain().unwrap() {}
    drop(store);
    disk.flip_bit(Path::new("chunks/checkpoint"), 22);
    let error = ChunkStore::open(Arc::new(disk), identity(), small())
        .err()
        .unwrap();
    assert_eq!(error.code, Code::Io);
    assert!(error.context.contains("checkpoint"), "{error}");
}

#[test]
fn works_on_a_real_disk() {
    let root = std::env::temp_dir().join(format!("lumeofs-store-{}", std::process::id()));
    std::fs::create_dir_all(&root).unwrap();
    let disk = Arc::new(lumeofs_base::disk::os::OsDisk::new(&root));
    let open = || ChunkStore::open(disk.clone(), identity(), small()).unwrap();
    let (mut store, mut model) = (open(), Model::default());
    let mut rng = SplitMix64::new(21);
    for sequence in 1..=80 {
        let step = Step::random(&mut rng, sequence);
        let applied = store
            .apply(step.group, step.version, &step.op, &step.data())
            .unwrap();
        model.apply(&step);
        match rng.below(10) {
            0 => store.sync(applied.lsn).unwrap(),
            1 => {
                store = {
                    drop(store);
                    open()
                }
            }
            2..6 => drop(store.maintain().unwrap()),
            _ => {}
        }
    }
    Model::groups().for_each(|group| model.compare(&store, group));
    check_space(&store);
    drop(store);
    std::fs::remove_dir_all(&root).unwrap();
}
