//! What of several directories counts.

use super::*;
use crate::store::{ChunkStore, StoreConfig, StoreIdentity};
use lumeofs_base::checksum::block_checksums;
use lumeofs_base::disk::os::OsDisk;
use lumeofs_base::limits::WAL_INLINE_BYTES_MAX;
use lumeofs_base::{ChunkIndex, ChunkOp, ClusterId, Epoch, GroupId, NodeId, Sequence};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;

const CHUNK_BYTES: u32 = 1 << 20;
const GROUP: GroupId = GroupId(1);

/// Data directories of datanodes.
struct Nodes {
    dir: tempfile::TempDir,
}

impl Nodes {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn path(&self, node: u64) -> PathBuf {
        self.dir.path().join(format!("node-{node}"))
    }

    /// What a node did before it stopped.
    fn run(&self, cluster: u8, node: u64, work: impl FnOnce(&ChunkStore)) {
        std::fs::create_dir_all(self.path(node)).unwrap();
        let identity = StoreIdentity {
            cluster: ClusterId([cluster; 16]),
            node: NodeId(node),
        };
        let disk = Arc::new(OsDisk::new(self.path(node)));
        let store = ChunkStore::open(disk, identity, StoreConfig::for_disk(0)).unwrap();
        work(&store);
        store
            .set_last(GROUP, version(1_000_000))
            .expect("all is durable");
    }

    fn stopped(&self, nodes: &[u64]) -> Vec<StoppedStore> {
        let stores = nodes
            .iter()
            .map(|node| StoppedStore::open(&self.path(*node)));
        stores.collect::<FsResult<_>>().unwrap()
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn salvage(&self, nodes: &[u64]) -> FsResult<Salvaged> {
        salvage(&mut self.stopped(nodes), &self.out(), &mut |_| ())
    }

    /// Damages the first block full of `byte` on a node's disk.
    fn damage(&self, node: u64, byte: u8) {
        let path = self.path(node).join("chunks/extents/00000000.dat");
        let file = File::options().read(true).write(true).open(path).unwrap();
        let mut found = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut found, 0).unwrap();
        let mut blocks = found.chunks(BLOCK_SIZE);
        let block = blocks.position(|block| block == [byte; BLOCK_SIZE]);
        let at = block.expect("it is there") * BLOCK_SIZE;
        file.write_all_at(&[!byte], at as u64 + 100).unwrap();
    }

    fn found(&self, inode: u64) -> Option<Vec<u8>> {
        std::fs::read(self.out().join(format!("inode-{inode}"))).ok()
    }
}

fn version(sequence: u64) -> Version {
    Version {
        epoch: Epoch(1),
        sequence: Sequence(sequence),
    }
}

/// Writes a block full of `byte` at the start of a chunk: part `index` of `inode`, if it is told.
fn write(store: &ChunkStore, sequence: u64, chunk: u64, part: Option<(u64, u32)>, byte: u8) {
    put(store, sequence, chunk, part, (0, &[byte; BLOCK_SIZE]));
}

/// Writes data at an offset of a chunk.
fn put(
    store: &ChunkStore,
    sequence: u64,
    chunk: u64,
    part: Option<(u64, u32)>,
    (offset, data): (u64, &[u8]),
) {
    let data = AlignedBuf::copy_of(data);
    let op = ChunkOp::Write {
        chunk: ChunkId(chunk),
        offset,
        truncations: 0,
        era: 0,
        checksums: block_checksums(0, &data),
        part: part.map(|(inode, index)| FilePart {
            inode: InodeId(inode),
            index: ChunkIndex(index),
            chunk_size: NonZeroU32::new(CHUNK_BYTES).unwrap(),
        }),
    };
    let applied = store.apply(GROUP, version(sequence), &op, &data).unwrap();
    assert_eq!(applied.refused, None);
}

fn delete(store: &ChunkStore, sequence: u64, chunk: u64) {
    let op = ChunkOp::Delete {
        chunk: ChunkId(chunk),
    };
    let none = AlignedBuf::zeroed(0);
    store.apply(GROUP, version(sequence), &op, &none).unwrap();
}

#[test]
fn the_newest_copy_counts_in_whichever_directory_it_is() {
    let nodes = Nodes::new();
    nodes.run(1, 1, |store| {
        write(store, 1, 10, Some((7, 0)), 1);
        write(store, 2, 11, Some((7, 2)), 2);
        write(store, 3, 12, Some((8, 0)), 3);
    });
    nodes.run(1, 2, |store| {
        write(store, 1, 10, Some((7, 0)), 1);
        write(store, 4, 10, None, 4);
        write(store, 3, 12, Some((8, 0)), 3);
        delete(store, 5, 12);
    });
    let done = nodes.salvage(&[1, 2]).unwrap();
    assert_eq!((done.files, done.chunks, done.chunks_all), (1, 2, 2));
    assert_eq!((done.damaged_blocks, done.unknown_chunks), (0, 0));
    let (first, last) = (1, 1);
    let inode = InodeId(7);
    assert_eq!(done.missing, [Gap { inode, first, last }]);
    assert_eq!((done.gaps, done.conflicts), (1, 0));
    let file = nodes.found(7).unwrap();
    let second = 2 * CHUNK_BYTES as usize;
    assert_eq!(file.len(), second + BLOCK_SIZE);
    assert_eq!(file[..BLOCK_SIZE], [4; BLOCK_SIZE]);
    assert!(file[BLOCK_SIZE..second].iter().all(|byte| *byte == 0));
    assert_eq!(file[second..], [2; BLOCK_SIZE]);
    assert_eq!(nodes.found(8), None, "it was deleted");
}

#[test]
fn of_two_chunks_for_one_place_the_later_one_counts_and_one_for_no_place_is_told() {
    let nodes = Nodes::new();
    nodes.run(1, 1, |store| {
        write(store, 1, 20, Some((7, 0)), 1);
        write(store, 2, 21, Some((7, 0)), 2);
        write(store, 9, 20, None, 3);
        write(store, 10, 22, None, 4);
    });
    let done = nodes.salvage(&[1]).unwrap();
    assert_eq!(nodes.found(7), Some(vec![2; BLOCK_SIZE]));
    assert_eq!((done.unknown_chunks, done.conflicts), (1, 1));
    let conflict = Conflict {
        inode: InodeId(7),
        index: 0,
        used: ChunkId(21),
        left_out: ChunkId(20),
    };
    assert_eq!(done.conflicting, [conflict]);
}

#[test]
fn what_no_newest_copy_has_undamaged_is_taken_from_an_older_one_that_has_it() {
    let nodes = Nodes::new();
    nodes.run(1, 1, |store| {
        write(store, 1, 10, Some((7, 0)), 1);
        write(store, 2, 11, Some((7, 1)), 2);
    });
    for node in [2, 3] {
        nodes.run(1, node, |store| {
            // So much that it does not lie in the log.
            put(store, 5, 10, Some((7, 0)), (0, &[5; WAL_INLINE_BYTES_MAX]));
            let at = BLOCK_SIZE as u64;
            put(store, 6, 11, Some((7, 1)), (at, &[6; WAL_INLINE_BYTES_MAX]));
        });
    }
    nodes.damage(2, 5);
    let done = nodes.salvage(&[1, 2, 3]).unwrap();
    assert_eq!(done.damaged_blocks, 0, "the other copy has it");
    assert_eq!(nodes.found(7).unwrap()[..BLOCK_SIZE], [5; BLOCK_SIZE]);

    nodes.damage(3, 5);
    nodes.damage(2, 6);
    nodes.damage(3, 6);
    std::fs::remove_dir_all(nodes.out()).unwrap();
    let done = nodes.salvage(&[1, 2, 3]).unwrap();
    assert_eq!((done.damaged_blocks, done.older_blocks), (2, 1));
    let told = done.damaged.iter();
    let told: Vec<_> = told.map(|damage| (damage.offset, damage.older)).collect();
    // The older copy of chunk 11 has a hole there, which is not what was written.
    let second = u64::from(CHUNK_BYTES) + BLOCK_SIZE as u64;
    assert_eq!(told, [(0, Some(version(1))), (second, None)]);
    let file = nodes.found(7).unwrap();
    let block = |at: u64| file[at as usize..][..BLOCK_SIZE].to_vec();
    assert_eq!(block(0), [1; BLOCK_SIZE]);
    assert_eq!(block(BLOCK_SIZE as u64), [5; BLOCK_SIZE]);
    assert_eq!(block(second), [0; BLOCK_SIZE]);
    assert_eq!(block(second + BLOCK_SIZE as u64), [6; BLOCK_SIZE]);
}

#[test]
fn looking_changes_nothing_and_keeps_the_datanode_out() {
    let nodes = Nodes::new();
    nodes.run(1, 1, |store| write(store, 1, 20, Some((7, 0)), 1));
    std::fs::write(nodes.path(1).join("lock"), "").unwrap();
    let names = || {
        let mut found = Vec::new();
        for dir in ["", "chunks", "chunks/wal", "chunks/extents"] {
            for entry in std::fs::read_dir(nodes.path(1).join(dir)).unwrap() {
                let entry = entry.unwrap();
                let metadata = entry.metadata().unwrap();
                found.push((entry.path(), metadata.len(), metadata.modified().unwrap()));
            }
        }
        found.sort();
        found
    };
    let before = names();
    let store = nodes.stopped(&[1]).remove(0);
    let parts: Vec<_> = store
        .chunks()
        .map(|(group, state)| (group, state.part))
        .collect();
    assert_eq!(parts.len(), 1);
    assert_eq!(parts[0].1.unwrap().inode, InodeId(7));
    assert!(StoppedStore::open(&nodes.path(1)).is_ok(), "two may look");
    let lock = File::open(nodes.path(1).join("lock")).unwrap();
    let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    assert!(rustix::fs::flock(&lock, exclusive).is_err());
    drop(store);
    rustix::fs::flock(&lock, exclusive).unwrap();
    let busy = StoppedStore::open(&nodes.path(1));
    assert_eq!(busy.err().unwrap().code, Code::Busy);
    assert!(names() == before);
}

#[test]
fn directories_of_two_clusters_and_full_ones_to_write_to_are_refused() {
    let nodes = Nodes::new();
    for node in [1, 2] {
        nodes.run(node as u8, node, |store| {
            write(store, 1, 20, Some((7, 0)), 1);
        });
    }
    assert_eq!(nodes.salvage(&[1, 2]).unwrap_err().code, Code::Refused);
    nodes.salvage(&[1]).unwrap();
    assert_eq!(nodes.salvage(&[1]).unwrap_err().code, Code::Exists);
    let nothing = StoppedStore::open(&nodes.path(3));
    assert_eq!(nothing.err().unwrap().code, Code::NotFound);
}
