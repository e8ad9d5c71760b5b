//! One chunk in memory: its head, where its blocks lie, and the blocks that only the log has yet.

use super::block_map::{Block, BlockMap, Mapped, Run};
use super::read_ahead::ReadAhead;
use super::record::{Edit, Head, Placement};
use lumeofs_base::checksum::crc32c;
use lumeofs_base::limits::{BLOCK_SIZE, CHUNK_SIZE_BYTES};
use lumeofs_base::{ChunkId, ChunkState, FilePart, GroupId};
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One past the last block that a chunk can have.
pub(super) const BLOCKS_MAX: Block = (CHUNK_SIZE_BYTES / BLOCK_SIZE as u64) as Block;

/// A chunk. Readers hold the lock during their disk reads: a block that they see cannot be freed,
/// let alone used again, before they are done.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) id: ChunkId,
    pub(super) group: GroupId,
    pub(super) content: RwLock<Content>,
    pub(super) ahead: ReadAhead,
}

impl Chunk {
    pub(super) fn new(id: ChunkId, group: GroupId) -> Self {
        Self {
            id,
            group,
            content: RwLock::default(),
            ahead: ReadAhead::default(),
        }
    }

    /// What members compare.
    pub(super) fn state(&self) -> ChunkState {
        let content = self.content.read();
        ChunkState {
            chunk: self.id,
            version: content.head.version,
            len: u64::from(content.map.end()) * BLOCK_SIZE as u64,
            truncations: content.head.truncations,
            deleted: content.head.deleted,
            part: content.part,
        }
    }
}

/// What a chunk's lock protects.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) head: Head,
    /// Where the chunk belongs, if that is known. A tombstone belongs nowhere.
    pub(super) part: Option<FilePart>,
    pub(super) map: BlockMap,
    /// Newer than what lies at the block's place. Every block here is in the map too: its space was
    /// taken when it was written, so that moving it there cannot fail for want of space.
    pub(super) overlay: BTreeMap<Block, Arc<Image>>,
    /// The chunk's last entry in the log.
    pub(super) last_entry: u64,
}

/// A block's bytes and their checksum.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) bytes: Box<[u8]>,
    pub(super) sum: u32,
}

impl Image {
    pub(super) fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        let bytes = bytes.into();
        debug_assert_eq!(bytes.len(), BLOCK_SIZE);
        let sum = crc32c(&bytes);
        Self { bytes, sum }
    }
}

impl Content {
    /// Makes a change. Returns the places that the chunk no longer uses.
    pub(super) fn apply(&mut self, edit: &Edit, images: &[Arc<Image>]) -> Vec<Run> {
        let mut freed = Vec::new();
        self.head = edit.head;
        self.part = edit.part.or(self.part).filter(|_| !edit.head.deleted);
        self.clear(edit.cleared_range(), &mut freed);
        for mapped in edit.placed.iter().copied().map(Placement::mapped) {
            self.clear(mapped.block..mapped.block + mapped.run.count, &mut freed);
            self.map.insert(mapped, &mut freed);
        }
        let mut images = images.iter();
        for mapped in edit.inlined.iter().copied().map(Placement::mapped) {
            for index in 0..mapped.run.count {
                let block = mapped.block + index;
                let place = mapped.run.place + u64::from(index);
                // The usual case: the block stays where it is.
                if self.map.get(block) != Some(place) {
                    self.map.insert(
                        Mapped {
                            block,
                            run: Run { place, count: 1 },
                        },
                        &mut freed,
                    );
                }
                let image = images
                    .next()
                    .expect("an edit has an image for each inlined block");
                self.overlay.insert(block, image.clone());
            }
        }
        freed
    }

    /// Drops everything that a chunk can have. Returns the places.
    pub(super) fn wipe(&mut self) -> Vec<Run> {
        let mut freed = Vec::new();
        self.head = Head::default();
        self.clear(0..BLOCKS_MAX, &mut freed);
        freed
    }

    fn clear(&mut self, range: std::ops::Range<Block>, freed: &mut Vec<Run>) {
        if range.is_empty() {
            return;
        }
        let mut tail = self.overlay.split_off(&range.start);
        self.overlay.append(&mut tail.split_off(&range.end));
        self.map.remove(range, freed);
    }
}
