//! Writing: chunks where they are missing, data to the primaries, then the new size to the leader.
//!
//! A write that was planned before a truncate is refused, by a datanode or by the leader, with
//! `StaleWrite`: then it is planned and done again as a whole. Where the chunks are known from an
//! earlier answer, the leader confirms them: by publishing the size of a growing file, else by a query that is under
//! way together with the data.

use crate::client::Written;
use crate::data::chunks::{checked_range, pieces, span};
use crate::data::primaries::{GroupOp, first_error};
use crate::inodes::{Inode, Known};
use crate::link::{Asker, Link};
use crate::meta::unexpected;
use lumeofs_base::checksum::block_checksums;
use lumeofs_base::clock::{Clock, SystemClock};
use lumeofs_base::limits::IO_BYTES_MAX;
use lumeofs_base::{Attr, Code, FsError, FsResult, InodeId};
use lumeofs_meta::op::{Mutation, Query, Reply};
use lumeofs_proto::data::{ChunkRequest, FilePart};
use lumeofs_proto::frame::Op;
use std::ops::Range;
use std::time::Duration;

/// Times that a write is done again because the file was truncated under it.
const REDO_MAX: u32 = 64;

/// How a write is to be done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// Return when it is on disk.
    pub(crate) durable: bool,
    /// Return when all in-sync replicas have it. Where nothing is kept in memory that is so in any case.
    pub(crate) direct: bool,
    /// Clear suid and sgid.
    pub(crate) clear_suid: bool,
}

impl Link {
    /// Writes `data` at `offset`.
    pub(crate) fn write(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        offset: u64,
        data: &[u8],
        how: How,
    ) -> FsResult<Written> {
        let range = checked_range(offset, data.len() as u64)?;
        if data.is_empty() {
            let attr = self.query_attr(asker, ino, &Query::GetAttr { ino })?;
            return Ok(Written { offset, attr });
        }
        let inode = self.inodes.get(ino);
        inode.take_lost()?;
        let _held = inode.ranges.own(range.clone(), &asker.patience)?;
        let mut refused = false;
        let attr = again(asker, ino, || {
            self.write_once(asker, ino, &inode, &range, data, how, &mut refused)
        });
        let attr = self.told(asker, &inode, attr)?;
        Ok(Written { offset, attr })
    }

    /// Writes `data` at the end: the leader reserves the place.
    pub(crate) fn append(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        data: &[u8],
        how: How,
    ) -> FsResult<Written> {
        if data.is_empty() {
            let attr = self.query_attr(asker, ino, &Query::GetAttr { ino })?;
            return Ok(Written {
                offset: attr.size,
                attr,
            });
        }
        checked_range(0, data.len() as u64)?;
        let inode = self.inodes.get(ino);
        inode.take_lost()?;
        let written = again(asker, ino, || {
            self.append_once(asker, ino, &inode, data, how)
        });
        self.told(asker, &inode, written)
    }

    /// One attempt at a write. `None`: the file was truncated meanwhile, or its publication was `refused`, as it is
    /// too if a lost writer's bytes may lie between the old size and the range.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of a write, not an interface"
    )]
    fn write_once(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        range: &Range<u64>,
        data: &[u8],
        how: How,
        refused: &mut bool,
    ) -> FsResult<Option<Attr>> {
        let (first, last) = span(range, self.chunk_size());
        if *refused {
            self.clean_tail_if_needed(asker, ino, inode)?;
        }
        let remembered = inode
            .known(first, last)
            .filter(|known| !known.attr.tail_unclean && !*refused);
        let is_remembered = remembered.is_some();
        let known = match remembered {
            Some(known) => known,
            None => match self.place(asker, ino, inode, range) {
                Err(error) if error.code == Code::StaleWrite => return Ok(None),
                known => known?,
            },
        };
        let grows = range.end > known.attr.size;
        let publishes = grows || how.clear_suid;
        let mut answer = None;
        let mut confirm = || {
            if is_remembered && !publishes {
                answer = Some(self.chunks(asker, ino, inode, range));
            }
        };
        let parts = [(range.start, data)];
        if !self.send(
            asker,
            inode,
            &known,
            &parts,
            how,
            is_remembered,
            &mut confirm,
        )? {
            return Ok(None);
        }
        let known = match answer {
            Some(answer) => {
                Some(answer?).filter(|new| new.attr.truncations == known.attr.truncations)
            }
            None => Some(known),
        };
        let Some(known) = known else { return Ok(None) };
        if !publishes {
            self.inodes.mark_dirty(ino, inode);
            let now = SystemClock.wall();
            return Ok(Some(Attr {
                mtime: now,
                ctime: now,
                ..known.attr
            }));
        }
        let published = self.publish_written(asker, inode, &known.attr, range, how.clear_suid)?;
        *refused |= published.is_none();
        Ok(published)
    }

    /// Tells the leader of data that was sent for a range of a file that was as `attr` says. `None`: it was truncated
    /// meanwhile, or a lost writer's bytes may lie between its end and the range.
    pub(crate) fn publish_written(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        attr: &Attr,
        range: &Range<u64>,
        clear_suid: bool,
    ) -> FsResult<Option<Attr>> {
        self.still_bound(asker)?;
        let (ino, truncations) = (attr.ino, attr.truncations);
        let grows = range.end > attr.size;
        let size = if grows { range.end } else { 0 };
        let publish = if range.start > attr.size {
            Mutation::Extend {
                ino,
                from: range.start,
                size,
                truncations,
                clear_suid,
            }
        } else {
            Mutation::Publish {
                ino,
                size,
                truncations,
                clear_suid,
            }
        };
        // What is published includes the time of all writes before.
        let dirty = self.inodes.take_dirty(ino, inode);
        let published = self.mutate_attr(asker, ino, &publish);
        if dirty && published.is_err() {
            self.inodes.mark_dirty(ino, inode);
        }
        match published {
            Ok(attr) => {
                inode.learn(&attr);
                Ok(Some(attr))
            }
            Err(error) if error.code == Code::StaleWrite => {
                inode.unlearn();
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Chunks for a write, with a clean tail if it grows the file.
    fn place(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        range: &Range<u64>,
    ) -> FsResult<Known> {
        let known = self.with_clean_tail(asker, ino, inode, range)?;
        self.with_all_chunks(asker, ino, inode, known, range)
    }

    /// What there is of a range, with a clean tail if a write of it grows the file.
    pub(crate) fn with_clean_tail(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        range: &Range<u64>,
    ) -> FsResult<Known> {
        let mut known = self.chunks(asker, ino, inode, range)?;
        if range.end > known.attr.size && known.attr.tail_unclean {
            known.attr = self.clean_tail(asker, ino, inode, known.attr)?;
        }
        Ok(known)
    }

    /// One attempt at an append: reserves a range and fills it. A refusal that no truncate caused, but a connection
    /// generation that another write raised, sends the data to the same range again: a new range would leave zeros
    /// in this one, or the data twice if it had arrived. `None`: the file was truncated, and the range is void.
    fn append_once(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        data: &[u8],
        how: How,
    ) -> FsResult<Option<Written>> {
        let len = data.len() as u64;
        let Some((offset, reserved)) = self.reserve_end(asker, ino, inode, len, how)? else {
            return Ok(None);
        };
        let attr = reserved.attr.clone();
        let range = checked_range(offset, len)?;
        let _held = inode.ranges.own(range.clone(), &asker.patience)?;
        let mut reserved = Some(reserved);
        again(asker, ino, || {
            let known = match reserved.take() {
                Some(known) => known,
                None => self.chunks(asker, ino, inode, &range)?,
            };
            if known.attr.truncations != attr.truncations {
                return Ok(Some(None));
            }
            let known = match self.with_all_chunks(asker, ino, inode, known, &range) {
                Err(error) if error.code == Code::StaleWrite => return Ok(Some(None)),
                known => known?,
            };
            let parts = [(offset, data)];
            let sent = self.send(asker, inode, &known, &parts, how, false, &mut || {})?;
            let attr = attr.clone();
            Ok(sent.then_some(Some(Written { offset, attr })))
        })
    }

    /// Has the leader move the end of the file by `len` bytes, and says where it was. `None`: the tail had to be
    /// cleaned first.
    fn reserve_end(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        len: u64,
        how: How,
    ) -> FsResult<Option<(u64, Known)>> {
        let append = Mutation::Append {
            ino,
            len,
            clear_suid: how.clear_suid,
        };
        let era = self.era();
        let (offset, attr, chunks) = match self.mutate(asker, ino, &append) {
            Ok(Reply::Appended {
                offset,
                attr,
                chunks,
            }) => (offset, attr, chunks),
            Ok(other) => return Err(unexpected(&other)),
            Err(error) if error.code == Code::StaleWrite => {
                self.clean_tail_if_needed(asker, ino, inode)?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        inode.learn_chunks(&attr, &chunks, era);
        let chunks = chunks
            .into_iter()
            .map(|chunk| (chunk.index, chunk))
            .collect();
        Ok(Some((offset, Known { attr, chunks, era })))
    }

    /// Sends data, each part with its offset, to the primaries. False if it was planned before a truncate.
    #[expect(
        clippy::too_many_arguments,
        reason = "one step of a write, not an interface"
    )]
    pub(crate) fn send(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        known: &Known,
        parts: &[(u64, &[u8])],
        how: How,
        is_remembered: bool,
        meanwhile: &mut dyn FnMut(),
    ) -> FsResult<bool> {
        let map = self.map();
        let durable = how.durable || map.always_durable;
        let mut ops = Vec::new();
        for (offset, data) in parts {
            for piece in pieces(*offset, data.len(), map.chunk_size, IO_BYTES_MAX) {
                let chunk = known.chunks.get(&piece.index).ok_or_else(|| {
                    FsError::new(Code::Io, format!("chunk {} was not allocated", piece.index))
                })?;
                let payload = &data[piece.bytes];
                let header = ChunkRequest {
                    chunk: chunk.chunk.get(),
                    offset: piece.within,
                    len: payload.len() as u64,
                    truncations: known.attr.truncations,
                    era: known.era,
                    checksums: block_checksums(piece.within, payload),
                    durable,
                    part: Some(FilePart {
                        inode: known.attr.ino.get(),
                        index: piece.index.get(),
                        // A cluster's is at most 64 MiB.
                        chunk_size: map.chunk_size as u32,
                    }),
                    ..Default::default()
                };
                ops.push(GroupOp::new(chunk.group, Op::Write, header, payload));
            }
        }
        self.bind(asker)?;
        let patience = &asker.patience;
        let result = if is_remembered {
            self.at_primaries_once(patience, &mut ops, meanwhile)
        } else {
            self.at_primaries(patience, &mut ops, meanwhile)
        };
        if !durable {
            note_unsynced(inode, &ops);
        }
        let Err(error) = result.and_then(|()| first_error(&ops)) else {
            return Ok(true);
        };
        if error.code == Code::SessionExpired {
            return Err(self.shut_out(asker, error));
        }
        if error.code == Code::Interrupted || (!is_remembered && error.code != Code::StaleWrite) {
            return Err(error);
        }
        inode.unlearn();
        if !is_remembered {
            // The plan was fresh, so perhaps it was not a truncate but the generation.
            for op in &ops {
                self.generations.raise(op.group, op.generation);
            }
        }
        Ok(false)
    }
}

/// Remembers what a sync must cover.
pub(crate) fn note_unsynced(inode: &Inode, ops: &[GroupOp<'_>]) {
    for op in ops {
        if let Some(version) = op.version() {
            inode.acknowledged(op.group, version, op.data_len());
        }
    }
}

/// Does something again as long as truncates get in its way.
pub(crate) fn again<T>(
    asker: &Asker<'_>,
    ino: InodeId,
    mut once: impl FnMut() -> FsResult<Option<T>>,
) -> FsResult<T> {
    for redone in 0..REDO_MAX {
        if let Some(done) = once()? {
            return Ok(done);
        }
        if redone > 0 {
            asker
                .patience
                .pause(Duration::from_millis(u64::from(redone)))?;
        }
    }
    Err(FsError::new(
        Code::Io,
        format!("{ino} was truncated, or its connection replaced, again and again during the call"),
    ))
}
