//! Finding flipped bits before anybody reads them: stored blocks are compared with their checksums, as the disk has them.
//!
//! Reads of clients go through the page cache, which would hide a flip on the disk for as long as the page stays, so this
//! goes around it. Blocks whose newest image is in memory are left out: what lies at their place is about to be
//! replaced.

use super::Core;
use super::block_map::{Block, Mapped};
use super::chunk::BLOCKS_MAX;
use super::extents::Damaged;
use super::read::{damaged, part};
use lumeofs_base::disk::OpenMode;
use lumeofs_base::limits::{BLOCK_SIZE, DAMAGED_CHUNKS_MAX, IO_BYTES_MAX};
use lumeofs_base::{AlignedBuf, ChunkId, FsError, FsResult, GroupId};
use std::collections::BTreeSet;
use std::path::Path;

const BLOCK: u64 = BLOCK_SIZE as u64;
/// Blocks that one call reads at most.
const PIECE_BLOCKS: Block = (IO_BYTES_MAX / BLOCK_SIZE) as Block;
/// Chunks that are counted with one look at the catalog.
const COUNT_PAGE: usize = 1024;
const NOTE_NAME: &str = "scrub";
const NOTE_NAME_NEW: &str = "scrub.new";

/// What a piece of a chunk came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Bytes that were read.
    pub bytes: u64,
    /// Where the chunk's next piece begins, if there is one.
    pub next: Option<u64>,
    /// The first block that does not match its checksum.
    pub damaged: Option<FsError>,
}

impl Core {
    /// See [`super::ChunkStore::verify`].
    pub(super) fn verify(&self, id: ChunkId, offset: u64) -> FsResult<Verified> {
        self.health.check()?;
        let mut verified = Verified {
            bytes: 0,
            next: None,
            damaged: None,
        };
        let Some(chunk) = self.catalog.chunk(id) else {
            return Ok(verified);
        };
        let from = Block::try_from(offset / BLOCK).map_or(BLOCKS_MAX, |block| block.min(BLOCKS_MAX));
        // Held while the disk is read: no place that is looked at can get other content meanwhile.
        let content = chunk.content.read();
        let Some(first) = content.map.range(from..BLOCKS_MAX).next() else {
            return Ok(verified);
        };
        let end = BLOCKS_MAX.min(first.block + PIECE_BLOCKS);
        let mut buf = AlignedBuf::scratch(IO_BYTES_MAX);
        for mapped in content.map.range(first.block..end) {
            let mut next = mapped.block;
            let mapped_end = mapped.block + mapped.run.count;
            let in_memory = content.overlay.range(mapped.block..mapped_end);
            let ends = in_memory.map(|(block, _)| *block).chain([mapped_end]);
            for stop in ends {
                let stored = part(mapped, next..stop);
                next = stop + 1;
                let found = self.verify_stored(stored, &mut buf)?;
                verified.bytes += u64::from(stored.run.count) * BLOCK;
                if let Some(found) = found {
                    let error = damaged(&chunk, stored.block, &found);
                    verified.damaged.get_or_insert(error);
                }
            }
        }
        let more = content.map.range(end..BLOCKS_MAX).next();
        verified.next = more.map(|mapped| u64::from(mapped.block) * BLOCK);
        Ok(verified)
    }

    fn verify_stored(&self, mapped: Mapped, buf: &mut AlignedBuf) -> FsResult<Option<Damaged>> {
        if mapped.run.count == 0 {
            return Ok(None);
        }
        let buf = &mut buf[..mapped.run.count as usize * BLOCK_SIZE];
        let verified = self.extents.verify(mapped.run, buf);
        self.health.note(verified)
    }

    /// A chunk was seen to be damaged.
    pub(super) fn note_damaged(&self, chunk: ChunkId) {
        let mut damaged = self.damaged.lock();
        if damaged.len() < DAMAGED_CHUNKS_MAX {
            damaged.insert(chunk);
        }
    }

    pub(super) fn take_damaged(&self) -> BTreeSet<ChunkId> {
        std::mem::take(&mut *self.damaged.lock())
    }

    /// See [`super::ChunkStore::quarantine`].
    pub(super) fn quarantine(&self, group: GroupId, id: ChunkId) -> FsResult<()> {
        match self.catalog.chunk(id) {
            Some(chunk) if chunk.group == group => self.copy_begin(group, id),
            // It was forgotten meanwhile.
            Some(_) | None => Ok(()),
        }
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
