//! Operations on chunks, as a replica group orders them and every member applies them.

use crate::{ChunkId, Epoch, Sequence};
use serde::{Deserialize, Serialize};

/// Place of an operation in its group's order. `sequence` decides within an epoch, `epoch` first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Version {
    /// Epoch in which the operation was ordered.
    pub epoch: Epoch,
    /// Its number; never used twice in a group, contiguous.
    pub sequence: Sequence,
}

/// What is done to a chunk. The data of a write travels beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkOp {
    /// Puts bytes at `offset`. Creates the chunk if it is missing and was never deleted.
    Write {
        /// The chunk.
        chunk: ChunkId,
        /// First byte within the chunk.
        offset: u64,
        /// Truncation number of the file when the write was planned; a lower one than the chunk's is refused.
        truncations: u32,
        /// Of the data's pieces between block boundaries.
        checksums: Vec<u32>,
    },
    /// Makes a range read as zero and gives whole blocks of it back.
    Zero {
        /// The chunk.
        chunk: ChunkId,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// As of a write.
        truncations: u32,
    },
    /// Drops all bytes from `len` on and fences writes with a lower truncation number.
    Truncate {
        /// The chunk.
        chunk: ChunkId,
        /// New length.
        len: u64,
        /// The file's truncation number.
        truncations: u32,
    },
    /// Drops the chunk for ever; a tombstone refuses later writes.
    Delete {
        /// The chunk.
        chunk: ChunkId,
    },
}

impl ChunkOp {
    /// The chunk that it concerns.
    pub fn chunk(&self) -> ChunkId {
        match self {
            Self::Write { chunk, .. }
            | Self::Zero { chunk, .. }
            | Self::Truncate { chunk, .. }
            | Self::Delete { chunk } => *chunk,
        }
    }
}

/// A chunk at one member: what members compare when one joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkState {
    /// The chunk.
    pub chunk: ChunkId,
    /// The last operation that changed it. Equal versions mean equal contents.
    pub version: Version,
    /// End of its last data byte's block, at most.
    pub len: u64,
    /// Highest truncation number seen.
    pub truncations: u32,
    /// A tombstone.
    pub deleted: bool,
}
