//! SEEK_DATA and SEEK_HOLE: chunks that are missing are holes; of the others the primary knows the
//! ranges with data. The end of the file is a hole.

use crate::client::Context;
use crate::data::primaries::{GroupOp, first_error};
use crate::inodes::Known;
use crate::link::{Asker, Link};
use lumeofs_base::limits::{CHUNKS_PER_ALLOCATION_MAX, FILE_SIZE_BYTES_MAX};
use lumeofs_base::{Code, FsError, FsResult, InodeId};
use lumeofs_meta::op::ChunkRef;
use lumeofs_proto::data::ChunkRequest;
use lumeofs_proto::frame::Op;
use std::ops::Range;

impl Link {
    /// The next data or hole from `offset` on.
    pub(crate) fn seek(
        &self,
        cx: &Context<'_>,
        ino: InodeId,
        offset: u64,
        hole: bool,
    ) -> FsResult<u64> {
        let asker = self.asker(cx);
        let inode = self.inodes.get(ino);
        let chunk_size = self.chunk_size();
        let beyond = || FsError::new(Code::NoSuchOffset, format!("{ino}: offset {offset}"));
        if offset >= FILE_SIZE_BYTES_MAX {
            return Err(beyond());
        }
        let mut at = offset;
        loop {
            // Chunks that are looked up at once; few of them are asked for their extents.
            let step = (at / chunk_size)
                .saturating_add(u64::from(CHUNKS_PER_ALLOCATION_MAX))
                .saturating_mul(chunk_size);
            let known = self.chunks(&asker, ino, &inode, &(at..at.saturating_add(1).max(step)))?;
            let size = known.attr.size;
            if offset >= size {
                return Err(beyond());
            }
            while at < step.min(size) {
                let start = at / chunk_size * chunk_size;
                let end = (start + chunk_size).min(size);
                let index = (at / chunk_size) as u32;
                let found = match known.chunks.get(&index.into()) {
                    Some(chunk) => {
                        self.seek_in_chunk(&asker, chunk, at - start..end - start, hole)?
                    }
                    None if hole => Some(at - start),
                    None => None,
                };
                if let Some(found) = found {
                    return Ok(start + found);
                }
                at = end;
            }
            if at >= size {
                return if hole { Ok(size) } else { Err(beyond()) };
            }
        }
    }

    fn seek_in_chunk(
        &self,
        asker: &Asker<'_>,
        chunk: &ChunkRef,
        range: Range<u64>,
        hole: bool,
    ) -> FsResult<Option<u64>> {
        let mut extents = self.extents(asker, &[*chunk])?;
        let extents = extents.pop().unwrap_or_default().into_iter();
        Ok(if hole {
            next_hole(extents, range)
        } else {
            next_data(extents, range)
        })
    }

    /// Of each of these chunks the ranges with data, in order.
    fn extents(&self, asker: &Asker<'_>, chunks: &[ChunkRef]) -> FsResult<Vec<Vec<Range<u64>>>> {
        let op = |chunk: &ChunkRef| {
            let header = ChunkRequest {
                chunk: chunk.chunk.get(),
                ..Default::default()
            };
            GroupOp::new(chunk.group, Op::Extents, header, &[])
        };
        let mut ops: Vec<_> = chunks.iter().map(op).collect();
        self.at_primaries(&asker.patience, &mut ops, &mut || {})?;
        first_error(&ops)?;
        let replies = ops.into_iter().map(|op| op.outcome.and_then(Result::ok));
        let ranges = replies.map(|reply| {
            let extents = reply.unwrap_or_default().extents;
            let pairs = extents.chunks_exact(2);
            pairs
                .map(|pair| pair[0]..pair[0].saturating_add(pair[1]))
                .collect()
        });
        Ok(ranges.collect())
    }

    /// The parts of a range of a file that hold data, in order.
    pub(crate) fn data_in(
        &self,
        asker: &Asker<'_>,
        known: &Known,
        range: &Range<u64>,
    ) -> FsResult<Vec<Range<u64>>> {
        let chunks: Vec<ChunkRef> = known.chunks.values().copied().collect();
        let extents = self.extents(asker, &chunks)?;
        let starts = chunks
            .iter()
            .map(|chunk| u64::from(chunk.index.get()) * self.chunk_size());
        let parts = starts.zip(extents).flat_map(|(start, extents)| {
            let parts = extents.into_iter();
            parts.map(move |part| start + part.start..start.saturating_add(part.end))
        });
        let clipped = parts.map(|part| part.start.max(range.start)..part.end.min(range.end));
        Ok(clipped.filter(|part| !part.is_empty()).collect())
    }
}

fn next_data(mut extents: impl Iterator<Item = Range<u64>>, range: Range<u64>) -> Option<u64> {
    let extent = extents.find(|extent| extent.end > range.start && !extent.is_empty())?;
    Some(extent.start.max(range.start)).filter(|at| *at < range.end)
}

fn next_hole(extents: impl Iterator<Item = Range<u64>>, range: Range<u64>) -> Option<u64> {
    let mut at = range.start;
    for extent in extents {
        if extent.start > at {
            break;
        }
        at = at.max(extent.end);
    }
    Some(at).filter(|at| *at < range.end)
}

#[cfg(test)]
#[allow(
    clippy::single_range_in_vec_init,
    reason = "a list of one extent is meant"
)]
mod tests {
    use super::*;

    #[test]
    fn data_and_holes_lie_between_extents() {
        let extents = || [0..100, 100..200, 400..500].into_iter();
        assert_eq!(next_data(extents(), 50..1000), Some(50));
        assert_eq!(next_data(extents(), 250..1000), Some(400));
        assert_eq!(next_data(extents(), 500..1000), None);
        assert_eq!(next_data(extents(), 250..400), None);
        assert_eq!(next_hole(extents(), 50..1000), Some(200));
        assert_eq!(next_hole(extents(), 450..1000), Some(500));
        assert_eq!(next_hole([0..1000].into_iter(), 3..1000), None);
    }
}
