//! copy_file_range(2): the datanodes copy among each other, the client only tells them what.
//!
//! What is in any mount's memory of the source is with the datanodes before anything is copied. Nothing of the source is held
//! while the right to write to the destination is: two mounts that copy between the same files, one this way and one
//! that, would wait for each other. A truncation of either file in between is found by its number, and all is planned
//! again.

use crate::client::Context;
use crate::data::chunks::{checked_range, pieces};
use crate::data::primaries::GroupOp;
use crate::data::write::again;
use crate::inodes::{Inode, Known};
use crate::leases::Right;
use crate::link::{Asker, Link};
use crate::wait::{SLICE, now};
use lumeofs_base::limits::{
    CHUNKS_PER_ALLOCATION_MAX, FILE_SIZE_BYTES_MAX, IO_BYTES_MAX, REQUEST_TIMEOUT,
};
use lumeofs_base::{Attr, Code, FsError, FsResult, InodeId};
use lumeofs_proto::data::{ChunkRequest, CopySource, FilePart};
use lumeofs_proto::frame::Op;
use std::ops::Range;
use std::time::Duration;

/// Bytes that one call copies at most: for so long the destination is closed to all others.
const COPY_BYTES_MAX: u64 = 32 << 20;

/// How long datanodes may not answer before the destination is left to others for a moment: the copy may wait for a source
/// for as long as the mount waits for a cluster, and who does not give a lease back for that long loses its session.
const ATTEMPT: Duration = REQUEST_TIMEOUT;

/// What is to be copied, as the datanodes have it.
struct Source {
    known: Known,
    range: Range<u64>,
    /// The parts of the range that hold data; the rest is holes.
    data: Vec<Range<u64>>,
}

impl Link {
    /// Copies up to `len` bytes; how many it were.
    pub(crate) fn copy_leased(
        &self,
        cx: &Context<'_>,
        from: (InodeId, u64),
        to: (InodeId, u64),
        len: u64,
        clear_suid: bool,
    ) -> FsResult<u64> {
        let asker = self.asker(cx);
        let asker = Asker {
            patience: asker.patience.with_datanodes(ATTEMPT),
            ..asker
        };
        if from.0 == to.0 && from.1.abs_diff(to.1) < len {
            let what = format!(
                "copy {len} bytes of {} from {} to {}: the ranges overlap",
                from.0, from.1, to.1
            );
            return Err(FsError::new(Code::Invalid, what));
        }
        // So many chunks are named by one answer, wherever the range begins in the first.
        let chunks = u64::from(CHUNKS_PER_ALLOCATION_MAX - 1);
        let len = len.min(COPY_BYTES_MAX).min(chunks * self.chunk_size());
        let (ino, inode) = (to.0, self.inodes.get(to.0));
        inode.take_error().map_or(Ok(()), Err)?;
        let mut failing_since = None;
        let copied = loop {
            let began = now();
            let copied = again(&asker, ino, || {
                self.copy_once(&asker, from, (&inode, to), len, clear_suid)
            });
            let Err(error) = &copied else { break copied };
            if !matches!(error.code, Code::Unavailable | Code::Timeout)
                || self.still_bound(&asker).is_err()
            {
                break copied;
            }
            let lasted = now() - *failing_since.get_or_insert(began);
            if (asker.patience.limit_now()).is_some_and(|limit| lasted >= limit) {
                break copied;
            }
            if let Err(error) = asker.patience.pause(SLICE) {
                break Err(error);
            }
        };
        self.told(&asker, &inode, copied)
    }

    /// One attempt. `None` if either file was truncated meanwhile.
    fn copy_once(
        &self,
        asker: &Asker<'_>,
        from: (InodeId, u64),
        (inode, (ino, at)): (&Inode, (InodeId, u64)),
        len: u64,
        clear_suid: bool,
    ) -> FsResult<Option<u64>> {
        let Some(source) = self.copy_source(asker, from, len)? else {
            return Ok(None);
        };
        let len = source.range.end - source.range.start;
        if len == 0 {
            return Ok(Some(0));
        }
        let range = checked_range(at, len)?;
        match self.copy_to(asker, ino, inode, &range, &source, clear_suid) {
            Ok(_) => Ok(Some(len)),
            Err(error) if error.code == Code::StaleWrite => {
                inode.unlearn();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Has the source written back wherever it is in memory, and finds it. `None` if it was truncated meanwhile.
    fn copy_source(
        &self,
        asker: &Asker<'_>,
        (ino, offset): (InodeId, u64),
        len: u64,
    ) -> FsResult<Option<Source>> {
        let inode = self.inodes.get(ino);
        self.flush_data(asker, ino)?;
        let offset = offset.min(FILE_SIZE_BYTES_MAX);
        let range = offset..(offset + len).min(FILE_SIZE_BYTES_MAX);
        let known = self.chunks(asker, ino, &inode, &range)?;
        let range = range.start..range.end.min(known.attr.size).max(range.start);
        let data = self.data_in(asker, &known, &range)?;
        // What was cut off meanwhile may have been taken for a hole.
        let now = self.chunks(asker, ino, &inode, &range)?;
        let is_same = now.attr.truncations == known.attr.truncations;
        Ok(is_same.then_some(Source { known, range, data }))
    }

    /// Copies to a range. `StaleWrite` if either file was truncated since the source was looked at.
    fn copy_to(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        range: &Range<u64>,
        source: &Source,
        clear_suid: bool,
    ) -> FsResult<Attr> {
        let writing = self.begin_write(asker, ino, range)?;
        if let Right::Buffered(tenure) = &writing.right {
            if asker.caller.trusted {
                let change =
                    |inode: &Inode| self.copy_held(asker, ino, inode, range, source, clear_suid);
                let copied =
                    self.change_cached(asker, &tenure.file, range.clone(), u64::MAX, change);
                self.note_local(ino);
                return copied;
            }
            self.leave_memory(asker, ino)?;
        }
        let held = inode.ranges.own(range.clone(), &asker.patience)?;
        let copied = self.copy_held(asker, ino, inode, range, source, clear_suid);
        drop(held);
        let anew = self.read_anew(asker, ino);
        copied.and_then(|attr| anew.map(|()| attr))
    }

    /// Copies to a range that the caller owns.
    fn copy_held(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        range: &Range<u64>,
        source: &Source,
        clear_suid: bool,
    ) -> FsResult<Attr> {
        let to = |part: &Range<u64>| {
            let within = part.start - source.range.start..part.end - source.range.start;
            range.start + within.start..range.start + within.end
        };
        let mut known = self.with_clean_tail(asker, ino, inode, range)?;
        let mut ops = Vec::new();
        let mut hole = range.start;
        for part in source.data.iter().map(to) {
            // A chunk that is not there is as good as a hole.
            self.plan_zeros(&known, &(hole..part.start), &mut ops);
            hole = part.end;
        }
        self.plan_zeros(&known, &(hole..range.end), &mut ops);
        for part in &source.data {
            known = self.with_all_chunks(asker, ino, inode, known, &to(part))?;
            self.plan_copies(&known, to(part).start, source, part, &mut ops)?;
        }
        self.change_chunks(asker, inode, &mut ops)?;
        match self.publish_written(asker, inode, &known.attr, range, clear_suid)? {
            Some(attr) => Ok(attr),
            None => {
                self.clean_tail_if_needed(asker, ino, inode)?;
                Err(Code::StaleWrite.into())
            }
        }
    }

    /// Requests that copy a part with data to `at`, each from one chunk to one chunk.
    fn plan_copies(
        &self,
        known: &Known,
        at: u64,
        source: &Source,
        part: &Range<u64>,
        ops: &mut Vec<GroupOp<'_>>,
    ) -> FsResult<()> {
        let map = self.map();
        let chunk_size = map.chunk_size;
        let missing = |index| FsError::new(Code::Io, format!("chunk {index} was not allocated"));
        let len = (part.end - part.start) as usize;
        for piece in pieces(at, len, chunk_size, IO_BYTES_MAX) {
            let to = known.chunks.get(&piece.index);
            let to = to.ok_or_else(|| missing(piece.index))?;
            let start = part.start + piece.bytes.start as u64;
            for from in pieces(start, piece.bytes.len(), chunk_size, IO_BYTES_MAX) {
                let chunk = source.known.chunks.get(&from.index);
                let chunk = chunk.ok_or_else(|| missing(from.index))?;
                let header = ChunkRequest {
                    chunk: to.chunk.get(),
                    offset: piece.within + from.bytes.start as u64,
                    len: from.bytes.len() as u64,
                    truncations: known.attr.truncations,
                    era: known.era,
                    durable: map.always_durable,
                    part: Some(FilePart {
                        inode: known.attr.ino.get(),
                        index: piece.index.get(),
                        // A cluster's is at most 64 MiB.
                        chunk_size: chunk_size as u32,
                    }),
                    source: Some(CopySource {
                        group: chunk.group.get(),
                        chunk: chunk.chunk.get(),
                        offset: from.within,
                        truncations: source.known.attr.truncations,
                        era: source.known.era,
                    }),
                    ..Default::default()
                };
                ops.push(GroupOp::new(to.group, Op::Copy, header, &[]));
            }
        }
        Ok(())
    }
}
