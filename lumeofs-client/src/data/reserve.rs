//! Allocating chunks, and fallocate(2).

use crate::client::{Context, Range as Change};
use crate::data::chunks::known_of;
use crate::data::chunks::{checked_range, span};
use crate::data::primaries::{GroupOp, first_error};
use crate::data::write::{again, note_unsynced};
use crate::inodes::{Inode, Known};
use crate::link::{Asker, Link};
use lumeofs_base::limits::{CHUNKS_PER_ALLOCATION_MAX, FILE_SIZE_BYTES_MAX};
use lumeofs_base::{ChunkIndex, Code, FsError, FsResult, InodeId};
use lumeofs_meta::op::Mutation;
use lumeofs_proto::data::ChunkRequest;
use lumeofs_proto::frame::Op;
use std::ops::Range;

/// Chunks that are allocated ahead of a growing file at most.
const AHEAD_MAX: u32 = 8;

impl Link {
    /// Allocates what is missing of a range. Ahead of a file that grows at its end more is allocated, up to what it has
    /// already, so that a stream seldom waits for it.
    pub(crate) fn with_all_chunks(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        mut known: Known,
        range: &Range<u64>,
    ) -> FsResult<Known> {
        let chunk_size = self.chunk_size();
        let (first, last) = span(range, chunk_size);
        let is_missing = |index: &u32| !known.chunks.contains_key(&ChunkIndex(*index));
        let Some(missing) = (first.get()..=last.get()).find(is_missing) else {
            return Ok(known);
        };
        let is_stream = range.end > known.attr.size && range.start <= known.attr.size;
        let ahead = if is_stream { missing.min(AHEAD_MAX) } else { 0 };
        let limit = (FILE_SIZE_BYTES_MAX / chunk_size) as u32 - 1;
        let until = last.get().saturating_add(ahead).min(limit.max(last.get()));
        let truncations = known.attr.truncations;
        let mut next = missing;
        while next <= last.get() {
            let count = (until - next + 1).min(CHUNKS_PER_ALLOCATION_MAX);
            let allocated = self.allocate_rows(asker, ino, inode, ChunkIndex(next), count)?;
            if allocated.attr.truncations != truncations {
                return Err(FsError::new(
                    Code::StaleWrite,
                    format!("{ino} was truncated"),
                ));
            }
            known.chunks.extend(allocated.chunks);
            next += count;
        }
        Ok(known)
    }

    fn allocate_rows(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        first: ChunkIndex,
        count: u32,
    ) -> FsResult<Known> {
        let allocate = Mutation::Allocate { ino, first, count };
        let era = self.era();
        let known = known_of(self.mutate(asker, ino, &allocate)?, era)?;
        inode.learn_chunks(
            &known.attr,
            &known.chunks.values().copied().collect::<Vec<_>>(),
            era,
        );
        Ok(known)
    }

    /// fallocate(2).
    pub(crate) fn allocate(
        &self,
        cx: &Context<'_>,
        ino: InodeId,
        offset: u64,
        len: u64,
        change: Change,
    ) -> FsResult<()> {
        let asker = self.asker(cx);
        let range = checked_range(offset, len)?;
        let inode = self.inodes.get(ino);
        let _held = inode.ranges.own(range.clone(), &asker.patience)?;
        self.allocate_held(&asker, ino, &inode, &range, change)
    }

    /// As [`Link::allocate`], where the caller owns the range.
    pub(crate) fn allocate_held(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        range: &Range<u64>,
        change: Change,
    ) -> FsResult<()> {
        if range.is_empty() {
            return Err(FsError::new(Code::Invalid, "a range of no bytes"));
        }
        again(asker, ino, || {
            let done = match change {
                Change::Allocate { keep_size } => {
                    self.reserve_once(asker, ino, inode, range, !keep_size)
                }
                Change::Punch => self.zero_once(asker, ino, inode, range, false),
                Change::Zero { keep_size } => self.zero_once(asker, ino, inode, range, !keep_size),
            };
            match done {
                Err(error) if error.code == Code::StaleWrite => {
                    inode.unlearn();
                    Ok(None)
                }
                other => other.map(Some),
            }
        })
    }

    fn reserve_once(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        range: &Range<u64>,
        grows: bool,
    ) -> FsResult<()> {
        // What is not there must fit; this is no promise that it still does when it is written.
        let known = self.chunks(asker, ino, inode, &(range.start..range.start + 1))?;
        let (wanted, (_, free)) = (range.end - range.start, self.space(&asker.patience));
        let room = free + known.attr.allocated + self.chunk_size();
        if wanted > room {
            let text = format!("allocate {wanted} bytes: {free} are free");
            return Err(FsError::new(Code::NoSpace, text));
        }
        let (first, last) = span(range, self.chunk_size());
        let mut next = first.get();
        while next <= last.get() {
            let count = (last.get() - next + 1).min(CHUNKS_PER_ALLOCATION_MAX);
            self.allocate_rows(asker, ino, inode, ChunkIndex(next), count)?;
            next += count;
        }
        let end = if grows { range.end } else { 0 };
        self.publish_size(asker, ino, inode, end)
    }

    /// Makes a range read as zeros, and the file at least as long if it `grows`.
    fn zero_once(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        range: &Range<u64>,
        grows: bool,
    ) -> FsResult<()> {
        let chunk_size = self.chunk_size();
        let mut next = range.start;
        while next < range.end {
            // As many chunks as one allocation may name: bounds the answer and the requests.
            let step = (next / chunk_size + u64::from(CHUNKS_PER_ALLOCATION_MAX)) * chunk_size;
            let known = self.chunks(asker, ino, inode, &(next..range.end.min(step)))?;
            // There is nothing but zeros past the end.
            let until = range.end.min(step).min(known.attr.size);
            if next < until {
                self.zero_chunks(asker, inode, &known, &(next..until))?;
            }
            if step >= known.attr.size {
                break;
            }
            next = step;
        }
        let end = if grows { range.end } else { 0 };
        self.publish_size(asker, ino, inode, end)
    }

    fn zero_chunks(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        known: &Known,
        range: &Range<u64>,
    ) -> FsResult<()> {
        let mut ops = Vec::new();
        self.plan_zeros(known, range, &mut ops);
        self.change_chunks(asker, inode, &mut ops)
    }

    /// Requests that make a range of those chunks that there are a hole.
    pub(crate) fn plan_zeros(&self, known: &Known, range: &Range<u64>, ops: &mut Vec<GroupOp<'_>>) {
        let chunk_size = self.chunk_size();
        let durable = self.map().always_durable;
        for chunk in known.chunks.values() {
            let start = u64::from(chunk.index.get()) * chunk_size;
            let from = range.start.max(start);
            let until = range.end.min(start + chunk_size);
            if from >= until {
                continue;
            }
            let header = ChunkRequest {
                chunk: chunk.chunk.get(),
                offset: from - start,
                len: until - from,
                truncations: known.attr.truncations,
                era: known.era,
                durable,
                ..Default::default()
            };
            ops.push(GroupOp::new(chunk.group, Op::Zero, header, &[]));
        }
    }

    /// Sends changes of chunks that carry no data. `StaleWrite` if they were planned before a truncate.
    pub(crate) fn change_chunks(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        ops: &mut [GroupOp<'_>],
    ) -> FsResult<()> {
        self.bind(asker)?;
        let result = self.at_primaries(&asker.patience, ops, &mut || {});
        note_unsynced(inode, ops);
        let result = result
            .and_then(|()| first_error(ops))
            .map_err(|error| self.shut_out(asker, error));
        if result
            .as_ref()
            .is_err_and(|error| error.code == Code::StaleWrite)
        {
            for op in ops {
                self.generations.raise(op.group, op.generation);
            }
        }
        result
    }

    /// Publishes a change that no write made: mtime, and a size unless `end` is 0.
    pub(crate) fn publish_size(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        end: u64,
    ) -> FsResult<()> {
        let known = self.chunks(asker, ino, inode, &(0..1))?;
        let mut attr = known.attr;
        if end > attr.size && attr.tail_unclean {
            attr = self.clean_tail(asker, ino, inode, attr)?;
        }
        let grows = end > attr.size;
        // All that is new is a gap.
        let publish = Mutation::Extend {
            ino,
            from: u64::MAX,
            size: if grows { end } else { 0 },
            truncations: attr.truncations,
            clear_suid: false,
        };
        let published = self.mutate_attr(asker, ino, &publish);
        match &published {
            Ok(attr) => inode.learn(attr),
            Err(error) if grows && error.code == Code::StaleWrite => {
                self.clean_tail_if_needed(asker, ino, inode)?;
            }
            Err(_) => {}
        }
        published.map(drop)
    }
}
