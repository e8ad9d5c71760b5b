//! Reading: every stored block is verified, and one that is damaged is never served.

use super::Core;
use super::block_map::{Block, Mapped, Run};
use super::chunk::{BLOCKS_MAX, Chunk, Content, Image};
use super::extents::{Damaged, ReadError};
use lumeofs_base::checksum::{crc32c, pieces};
use lumeofs_base::limits::{BLOCK_SIZE, CHUNK_SIZE_BYTES};
use lumeofs_base::{AlignedBuf, ChunkId, Code, FsError, FsResult};
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;

const BLOCK: u64 = BLOCK_SIZE as u64;

static ZERO_BLOCK_SUM: LazyLock<u32> = LazyLock::new(|| crc32c(&[0; BLOCK_SIZE]));

impl Core {
    /// See [`super::ChunkStore::read`].
    pub(super) fn read(
        &self,
        chunk: ChunkId,
        offset: u64,
        len: usize,
    ) -> FsResult<(AlignedBuf, Vec<u32>)> {
        self.health.check()?;
        if len as u64 > CHUNK_SIZE_BYTES {
            let context = format!("read {len} bytes of chunk {chunk}: longer than a chunk");
            return Err(FsError::new(Code::Invalid, context));
        }
        let within = (offset % BLOCK) as usize;
        let mut buf = AlignedBuf::scratch((within + len).next_multiple_of(BLOCK_SIZE));
        let mut sums = vec![*ZERO_BLOCK_SUM; buf.len() / BLOCK_SIZE];
        let first = Block::try_from(offset / BLOCK)
            .unwrap_or(BLOCKS_MAX)
            .min(BLOCKS_MAX);
        let end = BLOCKS_MAX.min(first + sums.len() as Block);
        let mut filled = 0;
        if let Some(chunk) = self.catalog.chunk(chunk) {
            let content = chunk.content.read();
            filled = self.fill(&chunk, &content, first..end, &mut buf, &mut sums)?;
            for mapped in content.map.range(chunk.ahead.note(&(first..end))) {
                self.extents.will_read(mapped.run);
            }
        }
        buf[filled..].fill(0);
        let data = if within == 0 {
            buf.set_len(len);
            buf
        } else {
            AlignedBuf::copy_of(&buf[within..within + len])
        };
        let sum_of = |(index, range): (usize, Range<usize>)| {
            if range.len() == BLOCK_SIZE {
                sums[index]
            } else {
                crc32c(&data[range])
            }
        };
        let checksums = pieces(offset, len).enumerate().map(sum_of).collect();
        Ok((data, checksums))
    }

    /// The bytes of one block, zeros if it is a hole.
    pub(super) fn read_block(
        &self,
        chunk: &Chunk,
        content: &Content,
        block: Block,
    ) -> FsResult<AlignedBuf> {
        let mut buf = AlignedBuf::scratch(BLOCK_SIZE);
        let filled = self.fill(chunk, content, block..block + 1, &mut buf, &mut [0])?;
        buf[filled..].fill(0);
        Ok(buf)
    }

    /// Fills in the blocks of `range`, and the checksums of those that are not holes. Returns up to which
    /// byte of `buf`; what lies behind is a hole.
    fn fill(
        &self,
        chunk: &Chunk,
        content: &Content,
        range: Range<Block>,
        buf: &mut [u8],
        sums: &mut [u32],
    ) -> FsResult<usize> {
        let first = range.start;
        let mut filled = 0;
        for mapped in content.map.range(range) {
            let start = (mapped.block - first) as usize * BLOCK_SIZE;
            buf[filled..start].fill(0);
            filled = start + mapped.run.count as usize * BLOCK_SIZE;
            let mut next = mapped.block;
            let end = mapped.block + mapped.run.count;
            for (&block, image) in content.overlay.range(mapped.block..end) {
                self.fill_stored(chunk, part(mapped, next..block), first, buf, sums)?;
                let index = (block - first) as usize;
                buf[index * BLOCK_SIZE..][..BLOCK_SIZE]
                    .copy_from_slice(verified(chunk, block, image)?);
                sums[index] = image.sum;
                next = block + 1;
            }
            self.fill_stored(chunk, part(mapped, next..end), first, buf, sums)?;
        }
        Ok(filled)
    }

    fn fill_stored(
        &self,
        chunk: &Chunk,
        mapped: Mapped,
        first: Block,
        buf: &mut [u8],
        sums: &mut [u32],
    ) -> FsResult<()> {
        if mapped.run.count == 0 {
            return Ok(());
        }
        let (start, count) = ((mapped.block - first) as usize, mapped.run.count as usize);
        let blocks = &mut buf[start * BLOCK_SIZE..(start + count) * BLOCK_SIZE];
        let stored = self
            .extents
            .read(mapped.run, blocks)
            .map_err(|error| match error {
                ReadError::Disk(error) => self
                    .health
                    .note::<()>(Err(error))
                    .expect_err("an error stays one"),
                ReadError::Damaged(found) => {
                    let error = damaged(chunk, mapped.block, &found);
                    self.damaged_reads.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(%error, "damaged block");
                    self.note_damaged(chunk.id, mapped.block + found.index as Block);
                    error
                }
            })?;
        sums[start..start + count].copy_from_slice(&stored);
        Ok(())
    }
}

/// What to say of a block in a run that begins with `first`.
pub(super) fn damaged(chunk: &Chunk, first: Block, found: &Damaged) -> FsError {
    let context = format!(
        "chunk {}: block {} does not match its checksum, in {} at {}",
        chunk.id,
        first as usize + found.index,
        found.file.display(),
        found.offset
    );
    FsError::new(Code::Io, context)
}

/// The blocks of `range`, which lie in `mapped`.
pub(super) fn part(mapped: Mapped, range: Range<Block>) -> Mapped {
    let place = mapped.run.place + u64::from(range.start - mapped.block);
    Mapped {
        block: range.start,
        run: Run {
            place,
            count: range.end - range.start,
        },
    }
}

/// Memory fails too, and this image may wait in it for long.
fn verified<'a>(chunk: &Chunk, block: Block, image: &'a Image) -> FsResult<&'a [u8]> {
    if crc32c(&image.bytes) == image.sum {
        return Ok(&image.bytes);
    }
    let context = format!(
        "chunk {}: block {block} does not match its checksum, in memory",
        chunk.id
    );
    Err(FsError::new(Code::Io, context))
}
