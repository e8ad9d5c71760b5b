//! What the store writes into its log.
//!
//! Records are physical: they say where blocks lie now, not what was asked for. Applying a record
//! again, or a whole tail of the log on top of a newer state, therefore ends in the same state, which
//! is what lets a checkpoint be written while operations go on.
//!
//! ```text
//! 0  4  bytes of the body
//! 4  n  body: a `Record` in postcard's encoding; then, if there is news of it, `Edit::part`, a `FilePart`
//! .. m  the images of the blocks in `Edit::inlined`, 4096 bytes each, in order
//! ```
//! The log keeps the checksum of the whole.

use super::block_map::{Block, Mapped, Run};
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::{ChunkId, Code, FilePart, FsError, FsResult, GroupId, Past, Timestamp, Version};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    /// An operation of a group; without an edit if it changed nothing.
    Operation {
        group: GroupId,
        version: Version,
        wall: Timestamp,
        edit: Option<Edit>,
    },
    /// A step of catching up, outside the group's order.
    Copied { edit: Edit },
    /// A chunk was forgotten with its tombstone.
    Forgotten { chunk: ChunkId },
    /// The group's last operation, after catching up.
    Last { group: GroupId, version: Version },
    /// The note of the replication layer.
    Note { group: GroupId, note: Vec<u8> },
}

/// Change of one chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Edit {
    pub(super) chunk: ChunkId,
    pub(super) group: GroupId,
    /// The chunk's head after the change.
    pub(super) head: Head,
    /// Blocks that become holes, before anything is placed.
    pub(super) cleared: Option<(Block, Block)>,
    /// Blocks whose data is in the extent files.
    pub(super) placed: Vec<Placement>,
    /// Blocks whose data follows the body and reaches the extent files later.
    pub(super) inlined: Vec<Placement>,
    /// Checksums of the blocks placed, then of those inlined.
    pub(super) sums: Vec<u32>,
    /// Where the chunk belongs, if that was not known before. Stored behind the record, where format 2 has nothing.
    #[serde(skip)]
    pub(super) part: Option<FilePart>,
}

/// What a chunk is apart from its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) version: Version,
    pub(super) truncations: u32,
    pub(super) deleted: bool,
}

impl Head {
    pub(super) fn past(&self) -> Past {
        Past {
            truncations: self.truncations,
            deleted: self.deleted,
        }
    }
}

/// First block, place of it, count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Placement(pub(super) Block, pub(super) u64, pub(super) u32);

impl Placement {
    pub(super) fn mapped(self) -> Mapped {
        Mapped {
            block: self.0,
            run: Run {
                place: self.1,
                count: self.2,
            },
        }
    }
}

impl From<Mapped> for Placement {
    fn from(mapped: Mapped) -> Self {
        Self(mapped.block, mapped.run.place, mapped.run.count)
    }
}

impl Edit {
    /// An edit that changes nothing but the head.
    pub(super) fn of_head(chunk: ChunkId, group: GroupId, head: Head) -> Self {
        let (placed, inlined, sums) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            chunk,
            group,
            head,
            cleared: None,
            placed,
            inlined,
            sums,
            part: None,
        }
    }

    pub(super) fn cleared_range(&self) -> Range<Block> {
        self.cleared.map_or(0..0, |(start, end)| start..end)
    }

    /// Checksums of the inlined blocks.
    pub(super) fn inlined_sums(&self) -> &[u32] {
        &self.sums[count_of(&self.placed)..]
    }

    fn is_consistent(&self, images: &[u8]) -> bool {
        let inlined = count_of(&self.inlined);
        count_of(&self.placed) + inlined == self.sums.len() && images.len() == inlined * BLOCK_SIZE
    }
}

impl Record {
    /// The change of a chunk in it.
    pub(super) fn edit(&self) -> Option<&Edit> {
        match self {
            Self::Operation { edit, .. } => edit.as_ref(),
            Self::Copied { edit } => Some(edit),
            Self::Forgotten { .. } | Self::Last { .. } | Self::Note { .. } => None,
        }
    }

    fn edit_mut(&mut self) -> Option<&mut Edit> {
        match self {
            Self::Operation { edit, .. } => edit.as_mut(),
            Self::Copied { edit } => Some(edit),
            Self::Forgotten { .. } | Self::Last { .. } | Self::Note { .. } => None,
        }
    }

    /// Length and body, for the images to follow.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = postcard::to_extend(self, vec![0; 4]);
        if let Some(part) = self.edit().and_then(|edit| edit.part) {
            body = body.and_then(|body| postcard::to_extend(&part, body));
        }
        let mut body = body.expect("a record holds nothing that cannot be encoded");
        let len = u32::try_from(body.len() - 4).expect("records are far below 4 GiB");
        body[..4].copy_from_slice(&len.to_le_bytes());
        body
    }

    /// The record and its images.
    pub(super) fn decode(bytes: &[u8]) -> FsResult<(Record, &[u8])> {
        let malformed = || FsError::new(Code::Io, "malformed record in the chunk store's log");
        let (len, rest) = bytes.split_first_chunk::<4>().ok_or_else(malformed)?;
        let len = u32::from_le_bytes(*len) as usize;
        let (body, images) = rest.split_at_checked(len).ok_or_else(malformed)?;
        let (mut record, part): (Record, _) =
            postcard::take_from_bytes(body).map_err(|_| malformed())?;
        if !part.is_empty() {
            let part = postcard::from_bytes(part).map_err(|_| malformed())?;
            record.edit_mut().ok_or_else(malformed)?.part = Some(part);
        }
        let consistent = match record.edit() {
            Some(edit) => edit.is_consistent(images),
            None => images.is_empty(),
        };
        if consistent {
            Ok((record, images))
        } else {
            Err(malformed())
        }
    }
}

fn count_of(placements: &[Placement]) -> usize {
    placements
        .iter()
        .map(|placement| placement.2 as usize)
        .sum()
}
