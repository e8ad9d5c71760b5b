//! Damage is found without being read, and gives way to a good block only.

use super::*;
use crate::store::{GoodBlock, Mended};
use std::path::Path;

const DATA: &str = "chunks/extents/00000000.dat";
const SUMS: &str = "chunks/extents/00000000.crc";
const BLOCKS: usize = 80;

/// With extent files whose checksums fill a block, and hardly any memory for what is to be moved.
fn open(disk: &SimDisk) -> ChunkStore {
    let config = StoreConfig {
        extent_file_bytes: 4 << 20,
        overlay_bytes_max: BLOCK_SIZE,
        ..small()
    };
    ChunkStore::open(Arc::new(disk.clone()), identity(), config).unwrap()
}

/// A store with a chunk of noise, all of it at its place.
fn filled(disk: &SimDisk) -> (ChunkStore, AlignedBuf, u64) {
    let store = open(disk);
    let data = noise(&mut SplitMix64::new(7), BLOCKS * BLOCK_SIZE);
    write(&store, 1, 0, &data);
    let place = store.core.used_runs()[0].place;
    (store, data, place)
}

fn write(store: &ChunkStore, sequence: u64, offset: u64, data: &AlignedBuf) {
    let op = write_op(1, offset, 0, data);
    let applied = store.apply(GroupId(1), version(sequence), &op, data);
    store.sync(applied.unwrap().lsn).unwrap();
}

fn good(sequence: u64, data: &[u8]) -> GoodBlock {
    GoodBlock {
        version: version(sequence),
        data: AlignedBuf::copy_of(data),
    }
}

fn block(data: &AlignedBuf, number: usize) -> &[u8] {
    &data[number * BLOCK_SIZE..][..BLOCK_SIZE]
}

fn mend(store: &ChunkStore, found: &crate::store::Verified, good: &GoodBlock) -> Mended {
    let (group, chunk) = (GroupId(1), ChunkId(1));
    store
        .mend(group, chunk, found.version, &found.damaged[0], good)
        .unwrap()
}

#[test]
fn flips_in_data_and_checksums_are_found_and_mended_and_stay_so_after_a_crash() {
    let disk = SimDisk::new();
    let (store, data, place) = filled(&disk);
    disk.flip_bit(Path::new(DATA), (place + 3) * B + 77);
    disk.flip_bit(Path::new(SUMS), (place + 5) * 4);
    // Both of one block.
    disk.flip_bit(Path::new(DATA), (place + 9) * B);
    disk.flip_bit(Path::new(SUMS), (place + 9) * 4 + 1);
    disk.flip_bit(Path::new(DATA), (place + 70) * B);
    let found = store.verify(ChunkId(1), 100).unwrap();
    let offsets: Vec<_> = found.damaged.iter().map(|block| block.offset / B).collect();
    assert_eq!(offsets, [3, 5, 9]);
    assert!(
        found.damaged[0].error.context.contains("block 3"),
        "{:?}",
        found.damaged
    );
    assert_eq!((found.bytes, found.next), (64 * B, Some(64 * B)));
    let next = store.verify(ChunkId(1), 64 * B).unwrap();
    assert_eq!(
        (next.bytes, next.next, next.damaged.len()),
        (16 * B, None, 1)
    );
    for found in [&found, &next] {
        for damaged in &found.damaged {
            let bytes = block(&data, (damaged.offset / B) as usize);
            let mended = store.mend(
                GroupId(1),
                ChunkId(1),
                found.version,
                damaged,
                &good(1, bytes),
            );
            assert_eq!(mended.unwrap(), Mended::Whole);
        }
    }
    let state = store.state(GroupId(1), ChunkId(1)).unwrap();
    assert_eq!(
        (state.version, store.last(GroupId(1))),
        (version(1), version(1))
    );
    store
        .set_group_note(GroupId(1), b"all before is durable")
        .unwrap();
    let disk = disk.crash(1);
    let store = open(&disk);
    assert!(store.read(ChunkId(1), 0, data.len()).unwrap().0[..] == data[..]);
    while store.maintain().unwrap() {}
    assert!(store.verify(ChunkId(1), 0).unwrap().damaged.is_empty());
    check_space(&store);
}

#[test]
fn only_what_the_block_should_be_takes_its_place() {
    let disk = SimDisk::new();
    let (store, data, place) = filled(&disk);
    let other = noise(&mut SplitMix64::new(8), BLOCK_SIZE);
    // Another block of the chunk moves on meanwhile.
    write(&store, 2, 40 * B, &other);
    disk.flip_bit(Path::new(DATA), (place + 3) * B);
    let found = store.verify(ChunkId(1), 0).unwrap();
    assert_eq!((found.version, found.damaged.len()), (version(2), 1));
    let right = block(&data, 3);
    // Who lacks an operation may have an older block that looks right.
    assert_eq!(mend(&store, &found, &good(1, right)), Mended::Differs);
    // Who has a later one may have another block.
    assert_eq!(mend(&store, &found, &good(3, &other)), Mended::Differs);
    write(&store, 3, 41 * B, &other);
    assert_eq!(mend(&store, &found, &good(3, right)), Mended::Whole);
    assert!(store.read(ChunkId(1), 3 * B, BLOCK_SIZE).unwrap().0[..] == *right);
    assert!(store.read(ChunkId(1), 40 * B, BLOCK_SIZE).unwrap().0[..] == other[..]);
    // What is on its way to the place already is not taken for the damaged one.
    assert_eq!(mend(&store, &found, &good(2, &other)), Mended::Gone);
    assert!(store.read(ChunkId(1), 3 * B, BLOCK_SIZE).unwrap().0[..] == *right);
    let op = ChunkOp::Delete { chunk: ChunkId(1) };
    store
        .apply(GroupId(1), version(4), &op, &AlignedBuf::zeroed(0))
        .unwrap();
    assert_eq!(mend(&store, &found, &good(4, right)), Mended::Gone);
}

#[test]
fn a_read_that_comes_upon_damage_says_where() {
    let disk = SimDisk::new();
    let (store, data, place) = filled(&disk);
    assert!(store.take_damaged().is_empty());
    disk.flip_bit(Path::new(DATA), (place + 70) * B);
    store.read(ChunkId(1), 0, data.len()).unwrap_err();
    assert_eq!(
        store.take_damaged().into_iter().collect::<Vec<_>>(),
        [(ChunkId(1), 64 * B)]
    );
    assert!(store.take_damaged().is_empty());
}

#[test]
fn the_record_of_the_scrub_is_kept_as_a_whole() {
    let disk = SimDisk::new();
    let store = open(&disk);
    assert_eq!(store.scrub_note(), None);
    store.keep_scrub_note(b"a long record").unwrap();
    store.keep_scrub_note(b"short").unwrap();
    assert_eq!(open(&disk.crash(1)).scrub_note().unwrap(), b"short");
}
