//! From byte ranges of a file to chunks and requests.

use crate::inodes::{Inode, Known};
use crate::leases::Want;
use crate::link::{Asker, Link};
use crate::meta::unexpected;
use lumeofs_base::limits::{BLOCK_SIZE, FILE_SIZE_BYTES_MAX};
use lumeofs_base::{ChunkIndex, Code, FsError, FsResult, InodeId};
use lumeofs_meta::op::{Query, Reply};
use std::ops::Range;

/// A part of a range that goes into one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The chunk that it lies in.
    pub(crate) index: ChunkIndex,
    /// Its first byte within the chunk.
    pub(crate) within: u64,
    /// Its bytes, counted from the start of the whole range.
    pub(crate) bytes: Range<usize>,
}

/// Splits `len` bytes at `offset` at chunk boundaries and into requests of at most `most` bytes; the cuts
/// between requests are at block boundaries.
pub(crate) fn pieces(offset: u64, len: usize, chunk_size: u64, most: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < len {
        let at = offset + start as u64;
        let within = at % chunk_size;
        let in_chunk = ((len - start) as u64).min(chunk_size - within) as usize;
        let count = if in_chunk <= most {
            in_chunk
        } else {
            most - (within % BLOCK_SIZE as u64) as usize
        };
        let index = ChunkIndex((at / chunk_size) as u32);
        pieces.push(Piece {
            index,
            within,
            bytes: start..start + count,
        });
        start += count;
    }
    pieces
}

/// Chunks of a range that is not empty: the first and the last.
pub(crate) fn span(range: &Range<u64>, chunk_size: u64) -> (ChunkIndex, ChunkIndex) {
    let last = range.end.max(range.start + 1) - 1;
    (
        ChunkIndex((range.start / chunk_size) as u32),
        ChunkIndex((last / chunk_size) as u32),
    )
}

/// The range that a change concerns.
pub(crate) fn checked_range(offset: u64, len: u64) -> FsResult<Range<u64>> {
    match offset
        .checked_add(len)
        .filter(|end| *end <= FILE_SIZE_BYTES_MAX)
    {
        Some(end) => Ok(offset..end),
        None => Err(FsError::new(
            Code::FileTooBig,
            format!("{len} bytes at {offset}: a file has at most {FILE_SIZE_BYTES_MAX}"),
        )),
    }
}

/// What a chunk answer of this era or a later one says, and nothing older.
pub(crate) fn known_of(reply: Reply, era: u32) -> FsResult<Known> {
    match reply {
        Reply::Chunks { attr, chunks } => {
            let chunks = chunks
                .into_iter()
                .map(|chunk| (chunk.index, chunk))
                .collect();
            Ok(Known { attr, chunks, era })
        }
        other => Err(unexpected(&other)),
    }
}

impl Link {
    /// Bytes of a file in one chunk.
    pub(crate) fn chunk_size(&self) -> u64 {
        self.map().chunk_size
    }

    /// Attributes and chunks of a range, from the leader.
    pub(crate) fn chunks(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        range: &Range<u64>,
    ) -> FsResult<Known> {
        self.chunks_wanting(asker, ino, inode, range, Want::Shared)
    }

    /// The same, asking for a lease.
    pub(crate) fn chunks_wanting(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        range: &Range<u64>,
        want: Want,
    ) -> FsResult<Known> {
        let (first, last) = span(range, self.chunk_size());
        let count = last.get() - first.get() + 1;
        let query = Query::Chunks { ino, first, count };
        let (reply, era) = self.query_with_era(asker, ino, &query, want)?;
        let known = known_of(reply, era)?;
        inode.learn_chunks(
            &known.attr,
            &known.chunks.values().copied().collect::<Vec<_>>(),
            era,
        );
        Ok(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::limits::IO_BYTES_MAX;

    const CHUNK: u64 = 64 << 20;

    #[test]
    fn pieces_end_at_chunks_and_cuts_between_them_are_aligned() {
        assert!(pieces(7, 0, CHUNK, IO_BYTES_MAX).is_empty());
        let two = pieces(CHUNK - 10, 30, CHUNK, IO_BYTES_MAX);
        assert_eq!(
            two[0],
            Piece {
                index: ChunkIndex(0),
                within: CHUNK - 10,
                bytes: 0..10
            }
        );
        assert_eq!(
            two[1],
            Piece {
                index: ChunkIndex(1),
                within: 0,
                bytes: 10..30
            }
        );
        assert_eq!(pieces(5, IO_BYTES_MAX, CHUNK, IO_BYTES_MAX).len(), 1);
        let many = pieces(5, 3 * IO_BYTES_MAX, CHUNK, IO_BYTES_MAX);
        assert!(
            many[1..]
                .iter()
                .all(|piece| piece.within % BLOCK_SIZE as u64 == 0)
        );
        assert!(many.iter().all(|piece| piece.bytes.len() <= IO_BYTES_MAX));
        assert_eq!(many.last().unwrap().bytes.end, 3 * IO_BYTES_MAX);
    }

    #[test]
    fn spans_include_the_last_byte_only() {
        assert_eq!(span(&(0..CHUNK), CHUNK), (ChunkIndex(0), ChunkIndex(0)));
        assert_eq!(span(&(0..CHUNK + 1), CHUNK), (ChunkIndex(0), ChunkIndex(1)));
        assert_eq!(span(&(CHUNK..CHUNK), CHUNK), (ChunkIndex(1), ChunkIndex(1)));
        assert_eq!(
            checked_range(u64::MAX, 2).unwrap_err().code,
            Code::FileTooBig
        );
    }
}
