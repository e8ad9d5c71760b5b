//! Reads and writes through the data cache.
//!
//! Whoever calls holds a lease on the inode, for as long as the call lasts: a read needs `Shared` or `Exclusive`, a write
//! `Exclusive`. When the lease goes, the holder flushes and drops: [`Link::flush_data`], [`Link::drop_data`].

use crate::client::Written;
use crate::data::chunks::{checked_range, span};
use crate::data::read::is_gone;
use crate::data::write::How;
use crate::inodes::{Inode, Known};
use crate::link::{Asker, Link};
use crate::pages::file::File;
use crate::pages::local::Local;
use crate::pages::{count, without};
use crate::ranges::Held;
use lumeofs_base::buf::AlignedBuf;
use lumeofs_base::clock::{Clock, SystemClock};
use lumeofs_base::limits::{BLOCK_SIZE, FILE_SIZE_BYTES_MAX};
use lumeofs_base::{Code, FsError, FsResult, InodeId};
use lumeofs_meta::op::{Query, Reply};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Times that a fetch is planned anew because its chunks were freed under it.
const REDO_MAX: u32 = 16;

/// A file in the cache, as it was found together with the right to write to it.
#[derive(Debug)]
pub(crate) struct Tenure {
    pub(crate) file: Arc<File>,
    /// How often its data had been dropped. After another time the right may be over.
    pub(crate) drops: u64,
}

impl Link {
    /// To be called with the right at hand, so that its end finds the file.
    pub(crate) fn tenure(&self, ino: InodeId) -> Tenure {
        let file = self.pages.file(ino);
        let drops = file.look(|state| state.drops);
        Tenure { file, drops }
    }

    /// Reads into `buf`; short only at the end of the file. The caller holds `Shared` or `Exclusive`; if that ends meanwhile,
    /// `file` is no part of the cache any more.
    pub(crate) fn read_file(
        &self,
        asker: &Asker<'_>,
        file: &Arc<File>,
        inode: &Inode,
        offset: u64,
        buf: &mut [u8],
    ) -> FsResult<usize> {
        let len = (buf.len() as u64).min(FILE_SIZE_BYTES_MAX.saturating_sub(offset));
        if len == 0 {
            return Ok(0);
        }
        let _held = file.io.share(offset..offset + len, &asker.patience)?;
        let size = self.local_size(asker, file.ino, inode, file)?;
        if offset >= size {
            return Ok(0);
        }
        let range = offset..size.min(offset + len);
        let count = (range.end - range.start) as usize;
        // Ahead first: what this read fetches itself is under way beside it.
        self.read_ahead(file, &range, size);
        self.read_through(asker, inode, file, &range, size, &mut buf[..count])?;
        Ok(count)
    }

    /// Copies a range below the size, fetching what is not there.
    fn read_through(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        file: &Arc<File>,
        range: &Range<u64>,
        size: u64,
        buf: &mut [u8],
    ) -> FsResult<()> {
        let counters = &self.pages.shared.counters;
        let mut missing = file.read(range, buf);
        let missed: u64 = missing.iter().map(|part| part.end - part.start).sum();
        count(&counters.missed_bytes, missed);
        count(&counters.hit_bytes, range.end - range.start - missed);
        while !missing.is_empty() {
            let seen = file.events();
            let blocks: Vec<_> = missing
                .iter()
                .map(|part| whole_blocks(part, size))
                .collect();
            let (id, ranges) = file.change(|state| state.begin_fill(&blocks, false));
            if ranges.is_empty() {
                // Others fetch it, or have just done so.
                let mut left = Vec::new();
                for part in missing {
                    left.extend(read_part(file, range, &part, buf));
                }
                missing = left;
                if !missing.is_empty() {
                    file.wait(seen, &asker.patience)?;
                }
                continue;
            }
            let fetched = self.fetch_fill(asker, file, inode, id, &ranges)?;
            let mut left = Vec::new();
            for part in missing {
                left.extend(copy_fetched(range, &part, &ranges, &fetched, buf));
            }
            // What was not fetched here was there, or was fetched by others.
            missing = left
                .into_iter()
                .flat_map(|part| read_part(file, range, &part, buf))
                .collect();
        }
        Ok(())
    }

    /// Fetches what was announced, and puts it into the cache.
    pub(crate) fn fetch_fill(
        &self,
        asker: &Asker<'_>,
        file: &Arc<File>,
        inode: &Inode,
        id: u64,
        ranges: &[Range<u64>],
    ) -> FsResult<AlignedBuf> {
        let len: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        // Fresh pages would cost more than filling them.
        let mut data = AlignedBuf::scratch(len as usize);
        let fetched = self.fetch_ranges(asker, file.ino, inode, ranges, &mut data);
        file.end_fill(id, fetched.is_ok().then_some(&data[..]));
        fetched.map(|()| data)
    }

    fn fetch_ranges(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        ranges: &[Range<u64>],
        data: &mut [u8],
    ) -> FsResult<()> {
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
            return Ok(());
        };
        let whole = first.start..last.end;
        let mut known = self.known_chunks(ino, inode, &whole);
        for redone in 0.. {
            let known = match known.take() {
                Some(known) => known,
                None => self.chunks(asker, ino, inode, &whole)?,
            };
            match self.fetch_parts(&asker.patience, &known, ranges, data) {
                // Its chunk was freed, so it was known from before the lease.
                Err(error) if is_gone(&error) && redone < REDO_MAX => {
                    inode.unlearn();
                    asker
                        .patience
                        .pause(Duration::from_millis(u64::from(redone)))?;
                }
                Err(error) if is_gone(&error) => {
                    return Err(FsError::new(Code::Io, format!("{ino}: {error}")));
                }
                other => return other,
            }
        }
        Ok(())
    }

    fn known_chunks(&self, ino: InodeId, inode: &Inode, range: &Range<u64>) -> Option<Known> {
        let (first, last) = span(range, self.chunk_size());
        let known = inode.known(first, last)?;
        // From before the lease it may be of a file that was cut since.
        let is_of_now = self.truncations_under_lease(ino) == Some(known.attr.truncations);
        is_of_now.then_some(known)
    }

    /// Writes into the cache, at `offset` or at the end, and returns; with `how.durable` once it is on disk, with
    /// `how.direct` once all in-sync replicas have it. The caller holds `Exclusive`.
    /// `None` if the data was dropped since the right began and no error is known of that.
    ///
    /// # Errors
    /// Also those of earlier writes that could not be sent, once.
    pub(crate) fn buffered_write(
        &self,
        asker: &Asker<'_>,
        tenure: &Tenure,
        inode: &Inode,
        offset: Option<u64>,
        data: &[u8],
        how: How,
    ) -> FsResult<Option<Written>> {
        if let Some(error) = inode.take_error() {
            return Err(error);
        }
        let file = &tenure.file;
        let ino = file.ino;
        let (offset, held) = self.hold_place(asker, ino, inode, file, offset, data.len() as u64)?;
        let size = self.local_size(asker, ino, inode, file)?;
        if !data.is_empty() {
            if offset > size {
                self.grow_over_gap(asker, ino, inode, file, offset)?;
            }
            self.pages
                .shared
                .make_room(data.len() as u64, &asker.patience)?;
        }
        let now = SystemClock.wall();
        let attr = file.change(|state| {
            let local = state
                .local
                .as_ref()
                .filter(|_| state.drops == tenure.drops)?;
            if !data.is_empty() && local.size() >= offset {
                state.write(offset, data, now, how.clear_suid);
            } else if !data.is_empty() {
                return None;
            }
            state.local.as_ref().map(Local::attr)
        });
        self.note_local(ino);
        drop(held);
        let Some(attr) = attr else {
            return inode.take_error().map_or(Ok(None), Err);
        };
        match how {
            _ if data.is_empty() => {}
            How { durable: true, .. } => self.sync_data(asker, ino, inode, false)?,
            How { direct: true, .. } => self.send_data(asker, ino, inode)?,
            How { .. } => {}
        }
        Ok(Some(Written { offset, attr }))
    }

    /// Where a write goes, and the right to that range.
    fn hold_place<'f>(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        file: &'f Arc<File>,
        offset: Option<u64>,
        len: u64,
    ) -> FsResult<(u64, Held<'f>)> {
        if let Some(offset) = offset {
            let range = checked_range(offset, len)?;
            return Ok((offset, file.io.own(range, &asker.patience)?));
        }
        loop {
            let end = self.local_size(asker, ino, inode, file)?;
            checked_range(end, len)?;
            let held = file.io.own(end..u64::MAX, &asker.patience)?;
            if self.local_size(asker, ino, inode, file)? == end {
                return Ok((end, held));
            }
        }
    }

    /// The size as this client sees it; asks for it if that is not known under this lease.
    pub(crate) fn local_size(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        file: &Arc<File>,
    ) -> FsResult<u64> {
        if let Some(size) = file.look(|state| Some(state.local.as_ref()?.size())) {
            return Ok(size);
        }
        let attr = match self.remembered(&Query::GetAttr { ino }) {
            Some(Ok(Reply::Attr(attr))) => attr,
            _ => self.chunks(asker, ino, inode, &(0..1))?.attr,
        };
        let size = file.change(|state| {
            let local = state.local.get_or_insert_with(|| Local::new(attr));
            local.size()
        });
        Ok(size)
    }

    /// Drops all data of an inode, also what was not sent: the lease is given up (after [`Link::flush_data`]) or was lost,
    /// or the file is gone. Nobody is reading or writing it through the cache; what is being read ahead does not come in.
    pub(crate) fn drop_data(&self, ino: InodeId) {
        self.pages.forget(ino);
        if let Some(inode) = self.inodes.find(ino) {
            inode.unlearn();
        }
    }
}

/// A range widened to whole blocks, as far as the file goes: checksums are of blocks.
pub(crate) fn whole_blocks(range: &Range<u64>, size: u64) -> Range<u64> {
    let block = BLOCK_SIZE as u64;
    let end = range.end.div_ceil(block).saturating_mul(block);
    range.start / block * block..end.min(size).max(range.end)
}

fn read_part(
    file: &File,
    range: &Range<u64>,
    part: &Range<u64>,
    buf: &mut [u8],
) -> Vec<Range<u64>> {
    let (from, until) = (part.start - range.start, part.end - range.start);
    file.read(part, &mut buf[from as usize..until as usize])
}

/// Copies what was fetched of `part` into the buffer of `range`. The rest comes back.
fn copy_fetched(
    range: &Range<u64>,
    part: &Range<u64>,
    ranges: &[Range<u64>],
    data: &[u8],
    buf: &mut [u8],
) -> Vec<Range<u64>> {
    let mut start = 0;
    for fetched in ranges {
        let (from, until) = (fetched.start.max(part.start), fetched.end.min(part.end));
        if from < until {
            let at = start + (from - fetched.start) as usize;
            let to = (from - range.start) as usize;
            let len = (until - from) as usize;
            buf[to..to + len].copy_from_slice(&data[at..at + len]);
        }
        start += (fetched.end - fetched.start) as usize;
    }
    without(part, ranges)
}

/// What was to be changed had been dropped.
pub(crate) fn gave_up(ino: InodeId) -> FsError {
    FsError::new(
        Code::Io,
        format!("the data of {ino} was dropped during the call"),
    )
}
