//! Tests of the whole store: a model to compare with, and a workload that exercises every path.

mod crash;
mod faults;
pub(crate) mod gate;
mod model;
mod parts;
mod scrub;
mod threads;

use super::*;
use lumeofs_base::checksum::block_checksums;
use lumeofs_base::disk::sim::SimDisk;
use lumeofs_base::rng::SplitMix64;
use lumeofs_base::{ChunkIndex, Epoch, FilePart, InodeId, Sequence};
use std::collections::BTreeMap;
use std::num::NonZeroU32;

const B: u64 = BLOCK_SIZE as u64;

/// Bytes of a chunk that the workload touches.
const AREA: usize = 96 * BLOCK_SIZE;

pub(crate) fn identity() -> StoreIdentity {
    StoreIdentity {
        cluster: ClusterId([7; 16]),
        node: NodeId(3),
    }
}

/// So small that checkpoints, growth and back-pressure happen all the time.
pub(crate) fn small() -> StoreConfig {
    StoreConfig {
        extent_file_bytes: 1 << 20,
        reserve_bytes: 0,
        overlay_bytes_max: 128 << 10,
        checkpoint_wal_bytes: 192 << 10,
        wal: WalConfig {
            segment_bytes: 512 << 10,
            ..WalConfig::default()
        },
        ..StoreConfig::default()
    }
}

fn open(disk: &SimDisk) -> ChunkStore {
    ChunkStore::open(Arc::new(disk.clone()), identity(), small()).unwrap()
}

fn version(sequence: u64) -> Version {
    Version {
        epoch: Epoch(1),
        sequence: Sequence(sequence),
    }
}

fn noise(rng: &mut SplitMix64, len: usize) -> AlignedBuf {
    let mut data = AlignedBuf::zeroed(len);
    rng.fill(&mut data);
    data
}

fn write_op(chunk: u64, offset: u64, truncations: u32, data: &[u8]) -> ChunkOp {
    let checksums = block_checksums(offset, data);
    ChunkOp::Write {
        chunk: ChunkId(chunk),
        offset,
        truncations,
        era: 0,
        checksums,
        part: None,
    }
}

/// Part `index` of the file that stands for a chunk here.
fn part_of(chunk: ChunkId, index: u32) -> FilePart {
    FilePart {
        inode: InodeId(chunk.get() + 7000),
        index: ChunkIndex(index),
        chunk_size: NonZeroU32::new(64 << 20).unwrap(),
    }
}

fn cut_op(chunk: u64, len: u64, truncations: u32) -> ChunkOp {
    ChunkOp::Truncate {
        chunk: ChunkId(chunk),
        len,
        truncations,
        era: 0,
    }
}

fn era_op(era: u32) -> ChunkOp {
    ChunkOp::Truncate {
        chunk: ERA_MARK,
        len: 0,
        truncations: era,
        era,
    }
}

/// An operation as the workload plans it; the seed of its data stands for the data.
#[derive(Clone, Debug)]
struct Step {
    group: GroupId,
    version: Version,
    op: ChunkOp,
    data_seed: u64,
    data_len: usize,
}

impl Step {
    /// Some operation on a chunk of some group. Chunk ids are `group * 100 + 0..4`.
    fn random(rng: &mut SplitMix64, sequence: u64) -> Step {
        let group = GroupId(1 + rng.below(3) as u32);
        let chunk = ChunkId(u64::from(group.0) * 100 + rng.below(4));
        let truncations = rng.below(2) as u32 + (sequence / 40) as u32;
        let current_era = (sequence / 25) as u32;
        let planned_era = current_era.saturating_sub(rng.below(2) as u32);
        let data_seed = rng.next_u64();
        let offset = if rng.percent(50) {
            rng.below(64) * B
        } else {
            rng.below(AREA as u64)
        };
        let room = AREA - offset as usize;
        let mut data_len = 0;
        let op = match rng.below(100) {
            0..75 => {
                data_len = match rng.below(4) {
                    0 => 1 + rng.below(500) as usize,
                    1 => BLOCK_SIZE * (1 + rng.below(8) as usize),
                    2 => 1 + rng.below(60_000) as usize,
                    _ => 60_000 + rng.below(200_000) as usize,
                }
                .min(room);
                ChunkOp::Write {
                    chunk,
                    offset,
                    truncations,
                    era: planned_era,
                    checksums: block_checksums(offset, &data_of(data_seed, data_len)),
                    // No two say the same, so that it shows which one counts.
                    part: rng.percent(50).then(|| part_of(chunk, sequence as u32)),
                }
            }
            75..85 => ChunkOp::Zero {
                chunk,
                offset,
                len: 1 + rng.below(100_000),
                truncations,
                era: planned_era,
            },
            85..95 => ChunkOp::Truncate {
                chunk,
                len: offset,
                truncations,
                era: planned_era,
            },
            95..98 => ChunkOp::Delete { chunk },
            _ => era_op(current_era),
        };
        Step {
            group,
            version: version(sequence),
            op,
            data_seed,
            data_len,
        }
    }

    fn data(&self) -> AlignedBuf {
        data_of(self.data_seed, self.data_len)
    }
}

fn data_of(seed: u64, len: usize) -> AlignedBuf {
    noise(&mut SplitMix64::new(seed), len)
}

/// A chunk as the rules say it must be, kept as naively as possible.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ModelChunk {
    bytes: Vec<u8>,
    mapped: Vec<bool>,
    version: Version,
    truncations: u32,
    deleted: bool,
    part: Option<FilePart>,
}

#[derive(Clone, Debug, Default)]
struct Model {
    chunks: BTreeMap<ChunkId, (GroupId, ModelChunk)>,
    last: BTreeMap<GroupId, Version>,
    /// Only those that have begun one.
    eras: BTreeMap<GroupId, (u32, Version)>,
}

impl Model {
    /// Applies a step; the code with which it must be refused.
    fn apply(&mut self, step: &Step) -> Option<Code> {
        self.last.insert(step.group, step.version);
        let id = step.op.chunk();
        let era = self.eras.get(&step.group).map_or(0, |(era, _)| *era);
        if let ChunkOp::Truncate {
            chunk: ERA_MARK,
            truncations,
            ..
        } = &step.op
        {
            return self.begin_era(step, era, *truncations);
        }
        let known = self.chunks.get(&id).map(|(_, chunk)| chunk);
        let refuse = |truncations: u32, planned_era: u32| {
            let Some(chunk) = known else {
                return (planned_era < era).then_some(Code::StaleWrite);
            };
            if chunk.deleted {
                return Some(Code::Stale);
            }
            (truncations < chunk.truncations).then_some(Code::StaleWrite)
        };
        let refused = match &step.op {
            ChunkOp::Write {
                truncations, era, ..
            }
            | ChunkOp::Zero {
                truncations, era, ..
            }
            | ChunkOp::Truncate {
                truncations, era, ..
            } => refuse(*truncations, *era),
            ChunkOp::Delete { .. } | ChunkOp::Fence { .. } => None,
        };
        if refused.is_some() {
            return refused;
        }
        // Only the first truncation of a number cuts. Number 0 is no truncation.
        if let ChunkOp::Truncate { truncations, .. } = &step.op
            && *truncations == known.map_or(0, |chunk| chunk.truncations)
        {
            return None;
        }
        let chunk = ModelChunk {
            bytes: vec![0; AREA],
            mapped: vec![false; AREA / BLOCK_SIZE],
            version: step.version,
            truncations: 0,
            deleted: false,
            part: None,
        };
        let (_, chunk) = self.chunks.entry(id).or_insert((step.group, chunk));
        chunk.version = step.version;
        chunk.part = chunk.part.or(step.op.part());
        match &step.op {
            ChunkOp::Write { offset, .. } => {
                let (start, end) = (*offset as usize, *offset as usize + step.data_len);
                chunk.bytes[start..end].copy_from_slice(&step.data());
                chunk.mapped[start / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE)].fill(true);
            }
            ChunkOp::Zero { offset, len, .. } => {
                chunk.zero(*offset as usize, (*offset + *len).min(AREA as u64) as usize);
            }
            ChunkOp::Truncate {
                len, truncations, ..
            } => {
                chunk.truncations = *truncations;
                chunk.zero(*len as usize, AREA);
            }
            ChunkOp::Fence { .. } => {}
            ChunkOp::Delete { .. } => {
                chunk.deleted = true;
                chunk.part = None;
                chunk.zero(0, AREA);
            }
        }
        None
    }

    fn begin_era(&mut self, step: &Step, era: u32, next: u32) -> Option<Code> {
        if next > era {
            self.eras.insert(step.group, (next, step.version));
            self.chunks
                .retain(|_, (group, chunk)| *group != step.group || !chunk.deleted);
        }
        (next < era).then_some(Code::StaleWrite)
    }

    /// Panics unless the store's chunks of `group` are the model's.
    fn compare(&self, store: &ChunkStore, group: GroupId) {
        let mine = || self.chunks.iter().filter(|(_, (owner, _))| *owner == group);
        let listed: Vec<ChunkId> = store
            .list(group, None, usize::MAX)
            .iter()
            .map(|state| state.chunk)
            .collect();
        let mark = self.eras.get(&group);
        let expected = mark.map(|_| ERA_MARK).into_iter();
        let expected = expected.chain(mine().map(|(id, _)| *id));
        assert_eq!(listed, expected.collect::<Vec<_>>());
        let found = store.state(group, ERA_MARK);
        let found = found.map(|mark| (mark.truncations, mark.version));
        assert_eq!(found.as_ref(), mark);
        for (&id, (_, chunk)) in mine() {
            let state = store.state(group, id).unwrap();
            let last_mapped = chunk.mapped.iter().rposition(|mapped| *mapped);
            let len = last_mapped.map_or(0, |last| (last as u64 + 1) * B);
            let expected = ChunkState {
                chunk: id,
                version: chunk.version,
                len,
                truncations: chunk.truncations,
                deleted: chunk.deleted,
                part: chunk.part,
            };
            assert_eq!(state, expected);
            let (bytes, _) = store.read(id, 0, AREA + 5000).unwrap();
            assert!(
                bytes[..AREA] == chunk.bytes[..],
                "bytes of {id} at {:?}",
                chunk.version
            );
            assert!(bytes[AREA..].iter().all(|byte| *byte == 0));
            let mut mapped = vec![false; AREA / BLOCK_SIZE];
            for (start, len) in store.extents(id) {
                mapped[(start / B) as usize..((start + len) / B) as usize].fill(true);
            }
            assert_eq!(mapped, chunk.mapped);
        }
    }

    fn groups() -> impl Iterator<Item = GroupId> {
        (1..=3).map(GroupId)
    }
}

impl ModelChunk {
    fn zero(&mut self, start: usize, end: usize) {
        if start < end {
            self.bytes[start..end].fill(0);
            let (first, last) = (start.div_ceil(BLOCK_SIZE), end / BLOCK_SIZE);
            if first < last {
                self.mapped[first..last].fill(false);
            }
        }
    }
}

/// Everything is either used by one chunk or free. Waits for records that free something.
fn check_space(store: &ChunkStore) {
    store.sync(store.core.journal.last()).unwrap();
    let runs = store.core.used_runs();
    let overlaps = runs
        .windows(2)
        .any(|pair| pair[0].place + u64::from(pair[0].count) > pair[1].place);
    assert!(!overlaps, "two chunks share a place");
    let used: u64 = runs.iter().map(|run| u64::from(run.count)).sum();
    let (capacity, free) = store.space();
    assert_eq!(capacity - free, used * B);
}
