//! Finding flipped bits before anybody reads them, and putting good blocks in their place.
//!
//! Reads of clients go through the page cache, which would hide a flip on the disk for as long as the page stays, so this
//! goes around it. A good block of another member takes the way of every short write, through the log: a power cut
//! leaves the old block or the new one.

use super::Core;
use super::block_map::{Block, Mapped, Place};
use super::chunk::BLOCKS_MAX;
use super::extents::Mismatch;
use super::plan::Plan;
use super::read::{damaged, part};
use lumeofs_base::checksum::crc32c;
use lumeofs_base::disk::OpenMode;
use lumeofs_base::limits::{BLOCK_SIZE, DAMAGED_PIECES_MAX, SCRUB_PIECE_BYTES};
use lumeofs_base::{AlignedBuf, ChunkId, Code, FsError, FsResult, GroupId, Version};
use std::collections::BTreeSet;
use std::path::Path;

const BLOCK: u64 = BLOCK_SIZE as u64;
const PIECE: u64 = SCRUB_PIECE_BYTES as u64;
const PIECE_BLOCKS: Block = (SCRUB_PIECE_BYTES / BLOCK_SIZE) as Block;
/// Chunks that are counted with one look at the catalog.
const COUNT_PAGE: usize = 1024;
const NOTE_NAME: &str = "scrub";
const NOTE_NAME_NEW: &str = "scrub.new";

/// What a piece of a chunk came to.
#[derive(Debug, Default)]
pub struct Verified {
    /// Bytes that were read.
    pub bytes: u64,
    /// Where the chunk's next piece with data begins, if there is one.
    pub next: Option<u64>,
    /// The chunk's last operation.
    pub version: Version,
    /// Blocks that do not match.
    pub damaged: Vec<DamagedBlock>,
}

/// A block that does not match its checksum.
#[derive(Debug)]
pub struct DamagedBlock {
    /// Within the chunk.
    pub offset: u64,
    /// Says which block of which chunk, and where it lies.
    pub error: FsError,
    place: Place,
    stored: u32,
    found: u32,
}

/// A block as another member has it.
#[derive(Debug)]
pub struct GoodBlock {
    /// The last operation on its chunk there.
    pub version: Version,
    /// Its bytes.
    pub data: AlignedBuf,
}

/// What became of a damaged block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mended {
    /// The good one has its place.
    Whole,
    /// It was overwritten or given up meanwhile.
    Gone,
    /// The other member's is not what this one should have: it has not as many operations, or others.
    Differs,
}

impl Core {
    /// See [`super::ChunkStore::verify`].
    pub(super) fn verify(&self, id: ChunkId, offset: u64) -> FsResult<Verified> {
        self.health.check()?;
        let Some(chunk) = self.catalog.chunk(id) else {
            return Ok(Verified::default());
        };
        let piece = Block::try_from(offset / PIECE * PIECE / BLOCK).unwrap_or(BLOCKS_MAX);
        let first = piece.min(BLOCKS_MAX);
        let end = BLOCKS_MAX.min(first + PIECE_BLOCKS);
        let mut buf = AlignedBuf::scratch(SCRUB_PIECE_BYTES);
        // Held while the disk is read: no place that is looked at can get other content meanwhile.
        let content = chunk.content.read();
        let mut verified = Verified {
            version: content.head.version,
            ..Verified::default()
        };
        for mapped in content.map.range(first..end) {
            let mut next = mapped.block;
            let mapped_end = mapped.block + mapped.run.count;
            let in_memory = content.overlay.range(mapped.block..mapped_end);
            let ends = in_memory.map(|(block, _)| *block).chain([mapped_end]);
            for stop in ends {
                let stored = part(mapped, next..stop);
                next = stop + 1;
                verified.bytes += u64::from(stored.run.count) * BLOCK;
                for mismatch in self.verify_stored(stored, &mut buf)? {
                    let index = mismatch.damaged.index as u32;
                    verified.damaged.push(DamagedBlock {
                        offset: u64::from(stored.block + index) * BLOCK,
                        error: damaged(&chunk, stored.block, &mismatch.damaged),
                        place: stored.run.place + u64::from(index),
                        stored: mismatch.stored,
                        found: mismatch.found,
                    });
                }
            }
        }
        let more = content.map.range(end..BLOCKS_MAX).next();
        verified.next = more.map(|mapped| u64::from(mapped.block) * BLOCK / PIECE * PIECE);
        Ok(verified)
    }

    fn verify_stored(&self, mapped: Mapped, buf: &mut AlignedBuf) -> FsResult<Vec<Mismatch>> {
        if mapped.run.count == 0 {
            return Ok(Vec::new());
        }
        let buf = &mut buf[..mapped.run.count as usize * BLOCK_SIZE];
        let verified = self.extents.verify(mapped.run, buf);
        self.health.note(verified)
    }

    /// See [`super::ChunkStore::mend`].
    pub(super) fn mend(
        &self,
        group: GroupId,
        id: ChunkId,
        version: Version,
        block: &DamagedBlock,
        good: &GoodBlock,
    ) -> FsResult<Mended> {
        self.health.check()?;
        if good.data.len() != BLOCK_SIZE || !block.offset.is_multiple_of(BLOCK) {
            let context = format!(
                "mend {} bytes at {} of chunk {id}: want one block",
                good.data.len(),
                block.offset
            );
            return Err(FsError::new(Code::Invalid, context));
        }
        self.make_room()?;
        let _order = self.order_of(id);
        let Some(chunk) = self.catalog.chunk(id).filter(|chunk| chunk.group == group) else {
            return Ok(Mended::Gone);
        };
        let number = (block.offset / BLOCK) as Block;
        let content = chunk.content.read();
        let is_there = content.map.get(number) == Some(block.place)
            && !content.overlay.contains_key(&number)
            && self.health.note(self.extents.sum_of(block.place))? == block.stored;
        let head = content.head;
        drop(content);
        if !is_there {
            return Ok(Mended::Gone);
        }
        // The block is as it was at `version`. Whoever has had the operations up to there, and perhaps more, has it
        // too, unless one of the later ones changed it; that would show.
        let sum = crc32c(&good.data);
        let is_same = good.version == version
            || good.version > version && (sum == block.stored || sum == block.found);
        // What is being copied from a primary has no version, and comes whole from there.
        if version == Version::default() || !is_same {
            return Ok(Mended::Differs);
        }
        let plan = Plan::write(self, &chunk, block.offset, &good.data, &[sum])?;
        self.publish_copy(&chunk, plan, head, None);
        Ok(Mended::Whole)
    }

    /// A block was seen to be damaged.
    pub(super) fn note_damaged(&self, chunk: ChunkId, block: Block) {
        let mut damaged = self.damaged.lock();
        if damaged.len() < DAMAGED_PIECES_MAX {
            damaged.insert((chunk, u64::from(block) * BLOCK / PIECE * PIECE));
        }
    }

    pub(super) fn take_damaged(&self) -> BTreeSet<(ChunkId, u64)> {
        std::mem::take(&mut *self.damaged.lock())
    }

    /// The first chunk above `after`, with its group.
    pub(super) fn chunk_above(&self, after: Option<ChunkId>) -> Option<(GroupId, ChunkId)> {
        let chunk = self.catalog.chunks_after(after, 1).pop()?;
        Some((chunk.group, chunk.id))
    }

    /// Bytes in whole blocks that all chunks have.
    pub(super) fn stored_bytes(&self) -> u64 {
        let (mut after, mut blocks) = (None, 0);
        loop {
            let page = self.catalog.chunks_after(after, COUNT_PAGE);
            let Some(last) = page.last() else {
                return blocks * BLOCK;
            };
            after = Some(last.id);
            for chunk in &page {
                let content = chunk.content.read();
                let counts = content.map.iter().map(|mapped| u64::from(mapped.run.count));
                blocks += counts.sum::<u64>();
            }
        }
    }

    /// Keeps the scrub's own record, which takes the place of the last one as a whole.
    pub(super) fn keep_scrub_note(&self, note: &[u8]) -> FsResult<()> {
        self.health.check()?;
        let (new, kept) = (
            self.directory.join(NOTE_NAME_NEW),
            self.directory.join(NOTE_NAME),
        );
        // A longer one that was not finished must not show its end.
        let _ = self.disk.remove(&new);
        let create = OpenMode {
            create: true,
            ..OpenMode::default()
        };
        let written = self.disk.open(&new, create).and_then(|file| {
            file.write_all_at(note, 0)?;
            // The rename must not become durable before the bytes it gives a name to.
            file.sync()?;
            self.disk.rename(&new, &kept)?;
            self.disk.sync_dir(&self.directory)
        });
        let context = |error| FsError::from_disk(&error, format_args!("write {}", kept.display()));
        self.health.note(written.map_err(context))
    }

    /// The record, if there is one that can be read.
    pub(super) fn scrub_note(&self) -> Option<Vec<u8>> {
        let names = self.disk.list(&self.directory).ok()?;
        if !names.iter().any(|name| name == Path::new(NOTE_NAME)) {
            return None;
        }
        let path = self.directory.join(NOTE_NAME);
        let file = self.disk.open(&path, OpenMode::default()).ok()?;
        let len = file.len().ok()?.min(BLOCK);
        let mut note = vec![0; len as usize];
        file.read_exact_at(&mut note, 0).ok()?;
        Some(note)
    }
}
