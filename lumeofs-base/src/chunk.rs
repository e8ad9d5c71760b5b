//! Operations on chunks, as a replica group orders them and every member applies them.

use crate::{ChunkId, ChunkIndex, Code, Epoch, Fence, InodeId, Sequence};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;

/// The chunk without data that says which era a group is in: its truncation number. Truncating it begins
/// an era, in which the group forgets the chunks that were deleted in earlier ones and refuses to make a
/// chunk for a plan of an earlier one. Every group has its own; no file has this id.
pub const ERA_MARK: ChunkId = ChunkId(0);

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

/// Which part of which file a chunk is. It never changes. Nothing is decided by it: it is for people who have lost all
/// masters, so it says by itself where the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FilePart {
    /// The file.
    pub inode: InodeId,
    /// The chunk's position among the file's.
    pub index: ChunkIndex,
    /// Bytes of a file in one chunk.
    pub chunk_size: NonZeroU32,
}

impl FilePart {
    /// The first byte of the file in this chunk.
    pub fn offset(&self) -> u64 {
        u64::from(self.index.get()) * u64::from(self.chunk_size.get())
    }
}

/// What is done to a chunk. The data of a write travels beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkOp {
    /// Puts bytes at `offset`. Creates the chunk if it is missing, unless it may have been deleted.
    Write {
        /// The chunk.
        chunk: ChunkId,
        /// First byte within the chunk.
        offset: u64,
        /// Truncation number of the file when the write was planned; a lower one than the chunk's is
        /// refused. It does not raise the chunk's: the cut of that number may be still to come.
        truncations: u32,
        /// Era in which the file was known to have this chunk. A missing chunk is not made for an era
        /// before the group's: it may have been deleted and forgotten.
        era: u32,
        /// Of the data's pieces between block boundaries.
        checksums: Vec<u32>,
        /// What the writer knows of the chunk's place. A chunk keeps the first that it is told.
        part: Option<FilePart>,
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
        /// As of a write.
        era: u32,
    },
    /// Drops all bytes from `len` on and fences writes with a lower truncation number. Only the first of
    /// a number cuts: what lies past `len` when another one comes was written after that cut.
    Truncate {
        /// The chunk.
        chunk: ChunkId,
        /// New length.
        len: u64,
        /// The file's truncation number.
        truncations: u32,
        /// As of a write.
        era: u32,
    },
    /// Drops the chunk for ever; a tombstone refuses later writes.
    Delete {
        /// The chunk.
        chunk: ChunkId,
    },
    /// Shuts ended sessions out of the group (rule S3). Concerns no chunk, and so changes none; its place in the order
    /// is what counts.
    Fence {
        /// Who may change data from here on.
        fence: Fence,
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
            Self::Fence { .. } => ERA_MARK,
        }
    }

    /// Where the chunk belongs, if the operation says so.
    pub fn part(&self) -> Option<FilePart> {
        match self {
            Self::Write { part, .. } => *part,
            Self::Zero { .. }
            | Self::Truncate { .. }
            | Self::Delete { .. }
            | Self::Fence { .. } => None,
        }
    }

    /// What becomes of it at a chunk, `None` = a missing one, of a group in `group_era`. Depends on the
    /// group's history alone, so that all members decide alike.
    pub fn verdict(&self, chunk: Option<Past>, group_era: u32) -> Verdict {
        let (truncations, era) = match self {
            Self::Delete { .. } => return Verdict::Change,
            Self::Fence { .. } => return Verdict::Nothing,
            Self::Write {
                truncations, era, ..
            }
            | Self::Zero {
                truncations, era, ..
            }
            | Self::Truncate {
                truncations, era, ..
            } => (*truncations, *era),
        };
        if chunk.is_none() && era < group_era {
            return Verdict::Refuse(Code::StaleWrite);
        }
        let past = chunk.unwrap_or_default();
        if past.deleted {
            Verdict::Refuse(Code::Stale)
        } else if truncations < past.truncations {
            Verdict::Refuse(Code::StaleWrite)
        } else if truncations == past.truncations && matches!(self, Self::Truncate { .. }) {
            Verdict::Nothing
        } else {
            Verdict::Change
        }
    }

    /// The truncation number of a chunk that it changed.
    pub fn truncations_after(&self, chunk_truncations: u32) -> u32 {
        match self {
            Self::Truncate { truncations, .. } => *truncations,
            Self::Write { .. } | Self::Zero { .. } | Self::Delete { .. } | Self::Fence { .. } => {
                chunk_truncations
            }
        }
    }
}

/// What of a chunk's history decides about the next operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Number of the last truncation that cut it; 0 = none did.
    pub truncations: u32,
    /// It was deleted, and that is not forgotten.
    pub deleted: bool,
}

/// What becomes of an operation that took its place in its group's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It changes the chunk.
    Change,
    /// It succeeds and leaves the chunk as it is, its version too.
    Nothing,
    /// It fails and leaves the chunk as it is.
    Refuse(Code),
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
    /// Number of the last truncation that cut it; 0 = none did.
    pub truncations: u32,
    /// A tombstone.
    pub deleted: bool,
    /// Where it belongs, if any of its writes said so. A tombstone belongs nowhere.
    pub part: Option<FilePart>,
}

// Every chunk of a datanode has one in memory.
const _: () = assert!(size_of::<Option<FilePart>>() == 16);
