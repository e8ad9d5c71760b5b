//! Where chunks belong: what a store is told of it survives whatever the chunk survives.

use super::*;

const GROUP: GroupId = GroupId(1);

/// A write that says where the chunk belongs.
fn told(chunk: u64, index: Option<u32>, data: &[u8]) -> ChunkOp {
    let mut op = write_op(chunk, 0, 0, data);
    if let ChunkOp::Write { chunk, part, .. } = &mut op {
        *part = index.map(|index| part_of(*chunk, index));
    }
    op
}

fn part_in(store: &ChunkStore, chunk: u64) -> Option<FilePart> {
    store.state(GROUP, ChunkId(chunk)).unwrap().part
}

fn checkpoint(store: &ChunkStore, disk: &SimDisk) {
    let noise = noise(&mut SplitMix64::new(1), 64 << 10);
    for sequence in 1000.. {
        let op = write_op(99, 0, 0, &noise);
        store.apply(GROUP, version(sequence), &op, &noise).unwrap();
        while store.maintain().unwrap() {}
        if checkpoint_bytes(disk).is_some() {
            return;
        }
    }
}

fn checkpoint_bytes(disk: &SimDisk) -> Option<Vec<u8>> {
    bytes_of(disk, "chunks/checkpoint")
}

fn bytes_of(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
    let file = disk.open(path.as_ref(), Default::default()).ok()?;
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

fn put(disk: &SimDisk, path: &str, at: u64, bytes: &[u8]) {
    let file = disk.open(path.as_ref(), Default::default()).unwrap();
    file.write_all_at(bytes, at).unwrap();
    file.sync().unwrap();
}

#[test]
fn the_first_write_that_says_where_a_chunk_belongs_is_believed_for_ever() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let data = AlignedBuf::copy_of(b"data");
    let apply = |store: &ChunkStore, sequence, op| {
        store.apply(GROUP, version(sequence), &op, &data).unwrap();
    };
    apply(&store, 1, told(5, None, &data));
    assert_eq!(part_in(&store, 5), None);
    apply(&store, 2, told(5, Some(3), &data));
    apply(&store, 3, told(5, Some(4), &data));
    let expected = Some(part_of(ChunkId(5), 3));
    assert_eq!(part_in(&store, 5), expected);
    drop(store);
    let store = open(&disk);
    assert_eq!(part_in(&store, 5), expected, "from the log");
    checkpoint(&store, &disk);
    drop(store);
    let store = open(&disk);
    assert_eq!(part_in(&store, 5), expected, "from the checkpoint");
    apply(&store, 5000, told(5, Some(6), &data));
    assert_eq!(part_in(&store, 5), expected);
}

#[test]
fn a_copied_chunk_belongs_where_its_source_does() {
    let (disk, data) = (SimDisk::new(), AlignedBuf::copy_of(&[3; BLOCK_SIZE]));
    let source = open(&SimDisk::new());
    let op = told(8, Some(2), &data);
    source.apply(GROUP, version(4), &op, &data).unwrap();
    let state = source.state(GROUP, ChunkId(8)).unwrap();
    let store = open(&disk);
    store.copy_begin(GROUP, state.chunk).unwrap();
    let sums = block_checksums(0, &data);
    store
        .copy_piece(GROUP, state.chunk, 0, &data, &sums)
        .unwrap();
    store.copy_end(GROUP, &state).unwrap();
    store.set_last(GROUP, version(4)).unwrap();
    assert_eq!(part_in(&store, 8), Some(part_of(ChunkId(8), 2)));
    let store = open(&disk.crash(1));
    assert_eq!(store.state(GROUP, ChunkId(8)), Some(state));
}

#[test]
fn a_store_of_the_format_before_is_read_and_becomes_one_of_this() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let data = AlignedBuf::copy_of(b"old");
    let op = told(5, None, &data);
    store.apply(GROUP, version(1), &op, &data).unwrap();
    checkpoint(&store, &disk);
    store.apply(GROUP, version(2000), &op, &data).unwrap();
    drop(store);
    // Of chunks whose place is not known both formats have the same bytes.
    let mut superblock = bytes_of(&disk, "chunks/superblock").unwrap();
    superblock[8..12].copy_from_slice(&2u32.to_le_bytes());
    let sum = lumeofs_base::checksum::crc32c(&superblock[..44]);
    put(&disk, "chunks/superblock", 8, &superblock[8..12]);
    put(&disk, "chunks/superblock", 44, &sum.to_le_bytes());
    put(&disk, "chunks/checkpoint", 8, &2u32.to_le_bytes());

    let store = open(&disk);
    assert_eq!(store.last(GROUP), version(2000));
    assert_eq!(part_in(&store, 5), None);
    assert_eq!(store.read(ChunkId(5), 0, 3).unwrap().0[..], *b"old");
    let op = told(5, Some(1), &data);
    store.apply(GROUP, version(2001), &op, &data).unwrap();
    drop(store);
    assert_eq!(bytes_of(&disk, "chunks/superblock").unwrap()[8], 3);
    let store = open(&disk.crash(1));
    assert_eq!(part_in(&store, 5), Some(part_of(ChunkId(5), 1)));
}
