//! A store in memory that loses what was not synced when its node crashes.

use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::rng::SplitMix64;
use lumeofs_base::{ChunkId, ChunkOp, ChunkState, FilePart, Past, Verdict, Version};
use lumeofs_replica::{CopyStep, Entry, Note, Outcome, Piece};
use std::collections::BTreeMap;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Blocks of a piece of a copied chunk: few, so that chunks take several.
const PIECE_BLOCKS: u64 = 2;

/// Contents and state of a chunk. A block is told by the number in its first bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) version: Version,
    pub(crate) truncations: u32,
    pub(crate) deleted: bool,
    pub(crate) part: Option<FilePart>,
    pub(crate) blocks: BTreeMap<u64, u64>,
}

/// All that a node keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) chunks: BTreeMap<ChunkId, Chunk>,
    pub(crate) last: Version,
    pub(crate) note: Note,
}

/// A change, as the log would keep it.
#[derive(Clone, Debug)]
enum Change {
    Apply(Entry<Vec<u8>>),
    Patch(Entry<Vec<u8>>),
    Copy(CopyStep<Vec<u8>>),
    Last(Version),
    Note(Note),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) now: Contents,
    synced: Contents,
    log: Vec<Change>,
}

/// Data of whole blocks with these numbers.
pub(crate) fn data(numbers: &[u64]) -> Vec<u8> {
    let mut data = vec![0; numbers.len() * BLOCK_SIZE];
    for (number, block) in numbers.iter().zip(data.chunks_mut(BLOCK_SIZE)) {
        block[..8].copy_from_slice(&number.to_le_bytes());
    }
    data
}

fn numbers(data: &[u8]) -> Vec<u64> {
    let number = |block: &[u8]| u64::from_le_bytes(block[..8].try_into().unwrap());
    data.chunks(BLOCK_SIZE).map(number).collect()
}

impl Chunk {
    fn put(&mut self, offset: u64, data: &[u8]) {
        for (at, number) in numbers(data).into_iter().enumerate() {
            self.blocks.insert(offset / BLOCK + at as u64, number);
        }
    }

    fn change(&mut self, op: &ChunkOp, data: &[u8]) {
        match op {
            ChunkOp::Write { offset, .. } => self.put(*offset, data),
            ChunkOp::Zero { offset, len, .. } => {
                self.blocks
                    .retain(|block, _| !(offset / BLOCK..(offset + len) / BLOCK).contains(block));
            }
            ChunkOp::Truncate { len, .. } => self.blocks.retain(|block, _| *block < len / BLOCK),
            ChunkOp::Delete { .. } => self.blocks.clear(),
            ChunkOp::Fence { .. } => {}
        }
    }
}

impl Contents {
    fn change(&mut self, change: &Change) -> Outcome {
        match change {
            Change::Apply(entry) => return self.apply(entry),
            Change::Patch(entry) => {
                self.chunks
                    .entry(entry.op.chunk())
                    .or_default()
                    .change(&entry.op, &entry.data);
            }
            Change::Copy(CopyStep::Begin { chunk }) => {
                self.chunks.insert(*chunk, Chunk::default());
            }
            Change::Copy(CopyStep::Piece {
                chunk,
                offset,
                data,
                ..
            }) => {
                self.chunks.get_mut(chunk).unwrap().put(*offset, data);
            }
            Change::Copy(CopyStep::End { state }) => {
                let chunk = self.chunks.get_mut(&state.chunk).unwrap();
                chunk.version = state.version;
                chunk.truncations = state.truncations;
                chunk.deleted = state.deleted;
                chunk.part = state.part;
                if chunk.deleted {
                    chunk.blocks.clear();
                }
            }
            Change::Copy(CopyStep::Drop { chunk }) => {
                self.chunks.remove(chunk);
            }
            Change::Last(version) => self.last = *version,
            Change::Note(note) => self.note = note.clone(),
        }
        Outcome::Applied
    }

    fn apply(&mut self, entry: &Entry<Vec<u8>>) -> Outcome {
        self.last = entry.version;
        let id = entry.op.chunk();
        let past = self.chunks.get(&id).map(|chunk| Past {
            truncations: chunk.truncations,
            deleted: chunk.deleted,
        });
        match entry.op.verdict(past, 0) {
            Verdict::Change => {}
            Verdict::Nothing => return Outcome::Applied,
            Verdict::Refuse(code) => return Outcome::Refused(code),
        }
        let chunk = self.chunks.entry(id).or_default();
        chunk.truncations = entry.op.truncations_after(chunk.truncations);
        chunk.version = entry.version;
        chunk.part = chunk.part.or(entry.op.part());
        chunk.deleted = matches!(entry.op, ChunkOp::Delete { .. });
        if chunk.deleted {
            chunk.part = None;
        }
        chunk.change(&entry.op, &entry.data);
        Outcome::Applied
    }
}

impl Store {
    fn change(&mut self, change: Change) -> Outcome {
        let outcome = self.now.change(&change);
        self.log.push(change);
        outcome
    }

    pub(crate) fn apply(&mut self, entry: &Entry<Vec<u8>>) -> Outcome {
        self.change(Change::Apply(entry.clone()))
    }

    pub(crate) fn patch(&mut self, entry: &Entry<Vec<u8>>) {
        self.change(Change::Patch(entry.clone()));
    }

    pub(crate) fn copy(&mut self, step: CopyStep<Vec<u8>>) {
        self.change(Change::Copy(step));
    }

    pub(crate) fn set_last(&mut self, version: Version) {
        self.change(Change::Last(version));
    }

    pub(crate) fn set_note(&mut self, note: Note) {
        self.change(Change::Note(note));
    }

    pub(crate) fn sync(&mut self) {
        self.synced = self.now.clone();
        self.log.clear();
    }

    /// Power goes: any beginning of what was not synced is kept.
    pub(crate) fn crash(&mut self, rng: &mut SplitMix64) {
        let all = self.log.len() as u64;
        let kept = if rng.percent(50) {
            0
        } else {
            rng.below(all + 1) as usize
        };
        self.now = self.synced.clone();
        let log = std::mem::take(&mut self.log);
        for change in log.iter().take(kept) {
            self.now.change(change);
        }
        self.synced = self.now.clone();
    }

    pub(crate) fn list(&self, after: Option<ChunkId>, max: usize) -> (Vec<ChunkState>, bool) {
        let above = self
            .now
            .chunks
            .iter()
            .filter(|(id, _)| after.is_none_or(|after| **id > after));
        let list: Vec<_> = above
            .map(|(id, chunk)| state(*id, chunk))
            .take(max)
            .collect();
        let end = list.len() < max;
        (list, end)
    }

    pub(crate) fn piece(&self, id: ChunkId, offset: u64) -> Piece<Vec<u8>> {
        let chunk = &self.now.chunks[&id];
        let first = chunk
            .blocks
            .range(offset / BLOCK..)
            .next()
            .map(|(block, _)| *block);
        let Some(first) = first else {
            let end = Some(state(id, chunk));
            let (checksums, data, truncations) = (Vec::new(), Vec::new(), chunk.truncations);
            return Piece {
                chunk: id,
                offset,
                checksums,
                data,
                truncations,
                end,
            };
        };
        let run =
            (first..first + PIECE_BLOCKS).map_while(|block| chunk.blocks.get(&block).copied());
        let run: Vec<u64> = run.collect();
        let next = first + run.len() as u64;
        let end = chunk
            .blocks
            .range(next..)
            .next()
            .is_none()
            .then(|| state(id, chunk));
        let (offset, data, truncations) = (first * BLOCK, data(&run), chunk.truncations);
        Piece {
            chunk: id,
            offset,
            checksums: Vec::new(),
            data,
            truncations,
            end,
        }
    }
}

fn state(id: ChunkId, chunk: &Chunk) -> ChunkState {
    ChunkState {
        chunk: id,
        version: chunk.version,
        len: chunk
            .blocks
            .last_key_value()
            .map_or(0, |(block, _)| (block + 1) * BLOCK),
        truncations: chunk.truncations,
        deleted: chunk.deleted,
        part: chunk.part,
    }
}
