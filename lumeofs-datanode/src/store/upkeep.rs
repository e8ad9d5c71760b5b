//! Background work, in bounded steps: moving images from memory to their places, and checkpoints.
//!
//! A checkpoint takes several steps while operations go on:
//! 1. note where the log ends now;
//! 2. move every image that is in memory now to its place, sync data and checksums;
//! 3. write the index as it is, chunk by chunk;
//! 4. sync everything queued by then, so that the file names nothing that the log could still lose;
//! 5. rename, and cut the log at the end noted in 1.
//!
//! What the file holds of operations after 1 is made again when the log is replayed, with the same
//! result. An image that was replaced during 2 is in no place, but its successor is in the log by 4.

use super::block_map::{Block, Run};
use super::checkpoint::{self, Item, Writer};
use super::chunk::{Chunk, Image};
use super::record::Placement;
use super::{Core, Lsn};
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::{AlignedBuf, ChunkId, FsResult};
use parking_lot::{RwLockUpgradableReadGuard, RwLockWriteGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Blocks that one step moves.
const STEP_BLOCKS: usize = 256;

/// Chunks that one step writes to the checkpoint.
const STEP_CHUNKS: usize = 256;

/// How many times its limit the log may grow before operations wait for the checkpoint. Bounds the
/// memory of a recovery, which cannot move images before it has read the whole log.
const LOG_FACTOR_MAX: u64 = 4;

/// What is under way.
#[derive(Default)]
pub(super) struct Upkeep {
    work: Work,
}

#[derive(Default)]
enum Work {
    #[default]
    Idle,
    Moving(Pass),
    Checkpoint {
        mark: Mark,
        pass: Pass,
    },
    Writing {
        mark: Mark,
        writer: Writer,
        after: Option<ChunkId>,
    },
}

/// Where the log ended when a checkpoint began.
#[derive(Clone, Copy)]
struct Mark {
    end: lumeofs_wal::Lsn,
    bytes: u64,
}

/// One round over the chunks that had images when it began.
struct Pass {
    chunks: VecDeque<ChunkId>,
    next: Block,
}

impl Core {
    /// See [`super::ChunkStore::maintain`].
    pub(super) fn maintain(&self) -> FsResult<bool> {
        self.health.check()?;
        if self.journal.has_pending() {
            self.journal.sync(self.journal.last())?;
        }
        self.advance()
    }

    /// Does a step; whether there is more to do.
    pub(super) fn advance(&self) -> FsResult<bool> {
        let mut upkeep = self.upkeep.lock();
        self.health.note(self.space.grow_ahead())?;
        let work = std::mem::take(&mut upkeep.work);
        upkeep.work = self.health.note(self.step(work))?;
        Ok(!matches!(upkeep.work, Work::Idle) || self.is_due())
    }

    /// Whether operations must help before they add more.
    pub(super) fn is_overfull(&self) -> bool {
        self.overlay_bytes() > self.overlay_bytes_max
            || self.log_bytes() > self.checkpoint_wal_bytes * LOG_FACTOR_MAX
    }

    fn is_due(&self) -> bool {
        self.is_checkpoint_due() || self.overlay_bytes() > self.overlay_bytes_max / 2
    }

    fn is_checkpoint_due(&self) -> bool {
        self.log_bytes() > self.checkpoint_wal_bytes
    }

    fn overlay_bytes(&self) -> usize {
        self.overlay_blocks.load(Ordering::Relaxed) * BLOCK_SIZE
    }

    /// Bytes of the log that the last checkpoint does not cover.
    fn log_bytes(&self) -> u64 {
        self.journal
            .bytes()
            .saturating_sub(self.checkpointed_bytes.load(Ordering::Relaxed))
    }

    fn step(&self, work: Work) -> FsResult<Work> {
        match work {
            Work::Idle | Work::Moving(_) if self.is_checkpoint_due() => {
                let mark = Mark {
                    end: self.journal.wal().last(),
                    bytes: self.journal.bytes(),
                };
                Ok(Work::Checkpoint {
                    mark,
                    pass: self.pass(),
                })
            }
            Work::Idle if self.is_due() => Ok(Work::Moving(self.pass())),
            Work::Idle => Ok(Work::Idle),
            Work::Moving(mut pass) => Ok(if self.move_images(&mut pass)? {
                Work::Moving(pass)
            } else {
                Work::Idle
            }),
            Work::Checkpoint { mark, mut pass } => {
                if self.move_images(&mut pass)? {
                    return Ok(Work::Checkpoint { mark, pass });
                }
                self.extents.sync_data()?;
                self.extents.sync_sums()?;
                let writer = Writer::create(self.disk.clone(), &self.directory)?;
                Ok(Work::Writing {
                    mark,
                    writer,
                    after: None,
                })
            }
            Work::Writing {
                mark,
                writer,
                after,
            } => {
                let written = self.write_checkpoint(mark, writer, after);
                if written.is_err() {
                    checkpoint::remove_unfinished(&*self.disk, &self.directory);
                }
                written
            }
        }
    }

    fn pass(&self) -> Pass {
        Pass {
            chunks: self.dirty.lock().iter().copied().collect(),
            next: 0,
        }
    }

    /// Moves some images of the pass to their places; whether there are more.
    fn move_images(&self, pass: &mut Pass) -> FsResult<bool> {
        let Some(&id) = pass.chunks.front() else {
            return Ok(false);
        };
        let moved = match self.catalog.chunk(id) {
            Some(chunk) => self.move_images_of(&chunk, pass.next)?,
            None => None,
        };
        match moved {
            Some(next) => pass.next = next,
            None => {
                pass.chunks.pop_front();
                pass.next = 0;
            }
        }
        Ok(!pass.chunks.is_empty())
    }

    /// Moves images from block `from` on. Where to go on, if there may be more.
    fn move_images_of(&self, chunk: &Chunk, from: Block) -> FsResult<Option<Block>> {
        // Keeps changes away, but not readers: they see the images until these are in place.
        let content = chunk.content.upgradable_read();
        let images: Vec<(Block, Arc<Image>)> = content
            .overlay
            .range(from..)
            .take(STEP_BLOCKS)
            .map(|(&block, image)| (block, image.clone()))
            .collect();
        let Some(&(last, _)) = images.last() else {
            return Ok(None);
        };
        // The old contents of the places are needed until the log has the new.
        self.journal.sync(Lsn(content.last_entry))?;
        let mut run: Vec<&Image> = Vec::new();
        let mut start = 0;
        for (block, image) in &images {
            let place = content
                .map
                .get(*block)
                .expect("a block with an image has a place");
            if start + run.len() as u64 != place {
                self.write_images(start, &run)?;
                run.clear();
                start = place;
            }
            run.push(image);
        }
        self.write_images(start, &run)?;
        let mut content = RwLockUpgradableReadGuard::upgrade(content);
        let before = content.overlay.len();
        for (block, _) in &images {
            content.overlay.remove(block);
        }
        self.count_overlay(before, content.overlay.len());
        if content.overlay.is_empty() {
            self.dirty.lock().remove(&chunk.id);
        }
        // Readers that waited go first; the next step takes the lock anew.
        RwLockWriteGuard::unlock_fair(content);
        Ok((images.len() == STEP_BLOCKS).then_some(last + 1))
    }

    fn write_images(&self, place: u64, images: &[&Image]) -> FsResult<()> {
        if images.is_empty() {
            return Ok(());
        }
        let mut buf = AlignedBuf::zeroed(images.len() * BLOCK_SIZE);
        for (block, image) in buf.chunks_exact_mut(BLOCK_SIZE).zip(images) {
            block.copy_from_slice(&image.bytes);
        }
        let sums: Vec<u32> = images.iter().map(|image| image.sum).collect();
        let run = Run {
            place,
            count: images.len() as u32,
        };
        self.extents.write(run, &buf)?;
        self.extents.write_sums(run, &sums)
    }

    fn write_checkpoint(
        &self,
        mark: Mark,
        mut writer: Writer,
        after: Option<ChunkId>,
    ) -> FsResult<Work> {
        let chunks = self.catalog.chunks_after(after, STEP_CHUNKS);
        for chunk in &chunks {
            items_of(chunk).try_for_each(|item| writer.push(item))?;
        }
        if let Some(last) = chunks.last() {
            return Ok(Work::Writing {
                mark,
                writer,
                after: Some(last.id),
            });
        }
        for group in self.catalog.groups() {
            let (last, _) = self.catalog.versions(group);
            writer.push(Item::Group {
                group,
                last,
                note: self.catalog.note(group),
            })?;
        }
        writer.finish()?;
        self.journal.sync(self.journal.last())?;
        writer.publish()?;
        self.checkpointed_bytes.store(mark.bytes, Ordering::Relaxed);
        self.journal.wal().truncate_before(mark.end)?;
        Ok(Work::Idle)
    }
}

fn items_of(chunk: &Chunk) -> impl Iterator<Item = Item> + use<> {
    let content = chunk.content.read();
    let runs = content.map.iter().map(Placement::from).collect();
    let (head, part, chunk, group) = (content.head, content.part, chunk.id, chunk.group);
    let place = part.map(|part| Item::Part { chunk, part });
    let item = Item::Chunk {
        chunk,
        group,
        head,
        runs,
    };
    std::iter::once(item).chain(place)
}
