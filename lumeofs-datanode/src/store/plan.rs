//! What an operation does to the blocks of its chunk, worked out before anything is changed.
//!
//! Long stretches of whole blocks go to new places at once and are only named in the log. Everything
//! else becomes images of whole blocks that travel inside the log record and reach their places later
//! (C2). An image needs a place only if its block is a hole, so changing what is there never needs
//! space: on a full disk long writes over existing data take this way too.

use super::Core;
use super::block_map::{Block, Mapped, Place, Run};
use super::chunk::{BLOCKS_MAX, Chunk, Content, Image};
use super::record::{Edit, Placement};
use super::space::Allocation;
use lumeofs_base::limits::{BLOCK_SIZE, WAL_INLINE_BYTES_MAX};
use lumeofs_base::{AlignedBuf, Code, FsResult};
use std::ops::Range;
use std::sync::Arc;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Blocks of whole data from which they are written to new places.
const DIRECT_BLOCKS_MIN: usize = WAL_INLINE_BYTES_MAX / BLOCK_SIZE;

/// A change of a chunk that has its space and its data, but is not yet made.
#[derive(Default)]
pub(super) struct Plan<'a> {
    cleared: Option<(Block, Block)>,
    placed: Vec<Placement>,
    placed_sums: Vec<u32>,
    inlined: Vec<Placement>,
    pub(super) images: Vec<Arc<Image>>,
    allocations: Vec<Allocation<'a>>,
}

impl<'a> Plan<'a> {
    /// Drops every block.
    pub(super) fn wipe() -> Self {
        Self {
            cleared: Some((0, BLOCKS_MAX)),
            ..Self::default()
        }
    }

    /// Makes `start..end` read as zeros.
    pub(super) fn zero(core: &'a Core, chunk: &Chunk, start: u64, end: u64) -> FsResult<Self> {
        let mut plan = Self::default();
        if start >= end {
            return Ok(plan);
        }
        let (first, last) = (start.div_ceil(BLOCK), end / BLOCK);
        if first < last {
            plan.cleared = Some((first as Block, last as Block));
        }
        let content = chunk.content.read();
        let mut edges = Vec::new();
        if !start.is_multiple_of(BLOCK) {
            edges.push(start..end.min(first * BLOCK));
        }
        // Both ends may lie in one block, which the first edge then covers.
        if !end.is_multiple_of(BLOCK) && first <= last {
            edges.push(last * BLOCK..end);
        }
        for edge in edges {
            let block = (edge.start / BLOCK) as Block;
            if let Some(place) = content.map.get(block) {
                let mut bytes = core.read_block(chunk, &content, block)?;
                let within = (edge.start % BLOCK) as usize;
                bytes[within..within + (edge.end - edge.start) as usize].fill(0);
                plan.inline(block, place, Image::new(&bytes[..]));
            }
        }
        Ok(plan)
    }

    /// Writes `data` at `offset`. `checksums`, which match the data, are kept for whole blocks.
    pub(super) fn write(
        core: &'a Core,
        chunk: &Chunk,
        offset: u64,
        data: &AlignedBuf,
        checksums: &[u32],
    ) -> FsResult<Self> {
        let mut plan = Self::default();
        let pieces = Pieces::of(offset, data.len());
        let content = chunk.content.read();
        let mut inline = pieces.clone();
        if pieces.whole.len() >= DIRECT_BLOCKS_MIN {
            match plan.place(core, &content, &pieces, data, checksums) {
                Ok(()) => inline.whole = 0..0,
                Err(error) if error.code == Code::NoSpace => {}
                Err(error) => return Err(error),
            }
        }
        let blocks: Vec<Block> = inline
            .head
            .iter()
            .copied()
            .chain(inline.whole.clone())
            .chain(inline.tail)
            .collect();
        let places = plan.places(core, &content, &blocks)?;
        for (&block, place) in blocks.iter().zip(places) {
            let range = pieces.bytes_of(block);
            let image = if range.len() == BLOCK_SIZE {
                Image {
                    bytes: data[range].into(),
                    sum: checksums[pieces.index_of(block)],
                }
            } else {
                let mut bytes = core.read_block(chunk, &content, block)?;
                let at = (offset.max(u64::from(block) * BLOCK) % BLOCK) as usize;
                bytes[at..at + range.len()].copy_from_slice(&data[range]);
                Image::new(&bytes[..])
            };
            plan.inline(block, place, image);
        }
        Ok(plan)
    }

    /// The plan as an edit; `edit` has its head. The space is the chunk's from here on.
    pub(super) fn commit(self, edit: &mut Edit) -> Vec<Arc<Image>> {
        edit.cleared = self.cleared;
        edit.placed = self.placed;
        edit.inlined = self.inlined;
        edit.sums = self.placed_sums;
        edit.sums.extend(self.images.iter().map(|image| image.sum));
        self.allocations.into_iter().for_each(Allocation::commit);
        self.images
    }

    /// Writes the whole blocks to new places.
    fn place(
        &mut self,
        core: &'a Core,
        content: &Content,
        pieces: &Pieces,
        data: &AlignedBuf,
        checksums: &[u32],
    ) -> FsResult<()> {
        let whole = &pieces.whole;
        let hint = place_after(content, whole.start);
        let allocation = core.allocate(whole.len() as u32, hint)?;
        let bytes = &data[pieces.bytes_of(whole.start).start..pieces.bytes_of(whole.end - 1).end];
        // The disk takes aligned memory only; data that starts within a block is not.
        let aligned = (!(bytes.as_ptr() as usize).is_multiple_of(BLOCK_SIZE))
            .then(|| AlignedBuf::copy_of(bytes));
        let bytes = aligned.as_deref().unwrap_or(bytes);
        let sums = &checksums[pieces.index_of(whole.start)..][..whole.len()];
        let mut done = 0;
        for &run in allocation.runs() {
            let count = run.count as usize;
            core.health.note(
                core.extents
                    .write(run, &bytes[done * BLOCK_SIZE..][..count * BLOCK_SIZE]),
            )?;
            core.health
                .note(core.extents.write_sums(run, &sums[done..][..count]))?;
            self.placed.push(
                Mapped {
                    block: whole.start + done as Block,
                    run,
                }
                .into(),
            );
            done += count;
        }
        self.placed_sums = sums.to_vec();
        self.allocations.push(allocation);
        Ok(())
    }

    /// Where each of `blocks` is or will be.
    fn places(
        &mut self,
        core: &'a Core,
        content: &Content,
        blocks: &[Block],
    ) -> FsResult<Vec<Place>> {
        let mut places: Vec<Option<Place>> =
            blocks.iter().map(|&block| content.map.get(block)).collect();
        let missing = places.iter().filter(|place| place.is_none()).count();
        if missing > 0 {
            let hole = places
                .iter()
                .position(Option::is_none)
                .expect("one is missing");
            let just_placed = self.placed.last().map(|placement| placement.mapped());
            let after_placed = just_placed
                .filter(|mapped| mapped.block + mapped.run.count == blocks[hole])
                .map(|mapped| mapped.run.place + u64::from(mapped.run.count));
            let hint = after_placed.or_else(|| place_after(content, blocks[hole]));
            let allocation = core.allocate(missing as u32, hint)?;
            let mut new = allocation
                .runs()
                .iter()
                .flat_map(|run| run.place..run.place + u64::from(run.count));
            places
                .iter_mut()
                .filter(|place| place.is_none())
                .for_each(|place| *place = new.next());
            self.allocations.push(allocation);
        }
        Ok(places
            .into_iter()
            .map(|place| place.expect("all were filled in"))
            .collect())
    }

    fn inline(&mut self, block: Block, place: Place, image: Image) {
        match self.inlined.last_mut() {
            Some(Placement(first, start, count))
                if *first + *count == block && *start + u64::from(*count) == place =>
            {
                *count += 1;
            }
            _ => self.inlined.push(
                Mapped {
                    block,
                    run: Run { place, count: 1 },
                }
                .into(),
            ),
        }
        self.images.push(Arc::new(image));
    }
}

/// Where a block would continue the one before it.
fn place_after(content: &Content, block: Block) -> Option<Place> {
    block
        .checked_sub(1)
        .and_then(|before| content.map.get(before))
        .map(|place| place + 1)
}

/// The blocks that a write touches.
#[derive(Clone)]
struct Pieces {
    offset: u64,
    len: usize,
    /// A first block that is not covered from its start, or not to its end.
    head: Option<Block>,
    /// Blocks that are covered wholly.
    whole: Range<Block>,
    /// A last block that is not covered to its end.
    tail: Option<Block>,
}

impl Pieces {
    fn of(offset: u64, len: usize) -> Self {
        let end = offset + len as u64;
        let (first, last) = (offset.div_ceil(BLOCK), end / BLOCK);
        let block_of = |position: u64| (position / BLOCK) as Block;
        let head = (!offset.is_multiple_of(BLOCK) && len > 0).then(|| block_of(offset));
        let tail = (!end.is_multiple_of(BLOCK) && len > 0).then(|| block_of(end));
        let tail = tail.filter(|tail| Some(*tail) != head);
        let whole = if first < last {
            first as Block..last as Block
        } else {
            0..0
        };
        Self {
            offset,
            len,
            head,
            whole,
            tail,
        }
    }

    /// Which part of the data lies in `block`.
    fn bytes_of(&self, block: Block) -> Range<usize> {
        let start = (u64::from(block) * BLOCK).saturating_sub(self.offset) as usize;
        let end = ((u64::from(block) + 1) * BLOCK - self.offset) as usize;
        start..end.min(self.len)
    }

    /// Which of the data's checksums is the block's.
    fn index_of(&self, block: Block) -> usize {
        (u64::from(block) - self.offset / BLOCK) as usize
    }
}
