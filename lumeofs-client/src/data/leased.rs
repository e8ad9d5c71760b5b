//! Which way data goes: through memory where a lease allows that, else to and from the datanodes.
//!
//! Only callers whose rights the kernel has checked use memory. For the others, what this client has in memory of the
//! file is sent first.

use crate::client::{Context, Range as Change, Written};
use crate::data::cached::gave_up;
use crate::data::chunks::checked_range;
use crate::data::write::How;
use crate::inodes::Inode;
use crate::leases::Right;
use crate::link::{Asker, Link};
use crate::pages::file::File;
use crate::pages::local::Local;
use lumeofs_base::{Attr, FsResult, InodeId};
use lumeofs_meta::op::{Mutation, Query, SetAttr};
use std::sync::Arc;

/// The extended attribute that a write takes away together with suid and sgid.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";
/// Extended attributes that go with a mode: the other one is the mode, seen another way.
const RIGHTS: [&[u8]; 2] = [CAPABILITY, b"system.posix_acl_access"];

/// How a file may be read now.
pub(crate) enum Reading {
    /// From memory: of this, which the end of the lease takes out of it.
    Cached(Arc<File>),
    /// From the datanodes, which have everything.
    Through,
    /// Not at all: there may be writes in memory, and it is not known whether they still count.
    Wait,
}

impl Link {
    /// read(2).
    pub(crate) fn read_leased(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        offset: u64,
        buf: &mut [u8],
    ) -> FsResult<usize> {
        if !asker.caller.trusted {
            self.flush_data(asker, ino)?;
            return self.read(asker, ino, offset, buf);
        }
        let inode = self.inodes.get(ino);
        loop {
            match self.reading(ino) {
                Reading::Cached(file) => {
                    return self.read_file(asker, &file, &inode, offset, buf);
                }
                // Its answer brings a lease for the next time.
                Reading::Through => return self.read(asker, ino, offset, buf),
                Reading::Wait => self.wait_for_leases(asker)?,
            }
        }
    }

    /// write(2), at the end without an offset.
    pub(crate) fn write_leased(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        offset: Option<u64>,
        data: &[u8],
        how: How,
    ) -> FsResult<Written> {
        // An append asks for a place of its own, wherever that is.
        let range = checked_range(offset.unwrap_or(0), data.len() as u64)?;
        let how = How {
            durable: how.durable || self.map().always_durable,
            direct: how.direct || self.is_short_of_space(),
            ..how
        };
        let inode = self.inodes.get(ino);
        let _writing = loop {
            let writing = self.begin_write(asker, ino, &range)?;
            let Right::Buffered(tenure) = &writing.right else {
                break writing;
            };
            if !asker.caller.trusted {
                self.leave_memory(asker, ino)?;
                break writing;
            }
            if let Some(written) = self.buffered_write(asker, tenure, &inode, offset, data, how)? {
                return Ok(written);
            }
            if writing.is_over() {
                return Err(gave_up(ino));
            }
            // Dropped by a caller who does not use memory.
        };
        let written = match offset {
            Some(offset) => self.write(asker, ino, offset, data, how),
            None => self.append(asker, ino, data, how),
        };
        let anew = self.read_anew(asker, ino);
        written.and_then(|written| anew.map(|()| written))
    }

    /// For a caller who does not use memory: has what is in it sent and dropped. Nobody writes in between, who would be told
    /// of nothing.
    fn leave_memory(&self, asker: &Asker<'_>, ino: InodeId) -> FsResult<()> {
        let Some(file) = self.pages.find(ino) else {
            return Ok(());
        };
        let _closed = file.io.own(0..u64::MAX, &asker.patience)?;
        self.flush_data(asker, ino)?;
        self.drop_data(ino);
        Ok(())
    }

    /// After something was done at the datanodes: if another thread has got the right to use memory meanwhile, what it
    /// has read may be older.
    pub(crate) fn read_anew(&self, asker: &Asker<'_>, ino: InodeId) -> FsResult<()> {
        let Some(file) = self.pages.find(ino) else {
            return Ok(());
        };
        let asker = asker.trusted();
        let read = self.change_cached(&asker, &file, 0..u64::MAX, u64::MAX, |_| {
            self.query_attr(&asker, ino, &Query::GetAttr { ino })
        });
        self.note_local(ino);
        read.map(drop)
    }

    /// Sets attributes of anything.
    pub(crate) fn set_attr_leased(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        set: SetAttr,
    ) -> FsResult<Attr> {
        if set.atime.is_some() {
            self.atimes.give_up(ino, &asker.patience)?;
        }
        if let Some(attr) = self.set_ahead(asker, ino, &set) {
            return Ok(attr);
        }
        // What memory may be ahead in.
        let is_local = set.mode.is_some()
            || set.clear_sgid
            || set.uid.is_some()
            || set.gid.is_some()
            || set.atime.is_some()
            || set.mtime.is_some();
        let concerns_data = set.size.is_some() || (is_local && self.is_writer(ino));
        if !concerns_data {
            return self.set_attr(asker, ino, set);
        }
        let writing = self.begin_write(asker, ino, &(0..1))?;
        if let Right::Buffered(tenure) = &writing.right {
            if asker.caller.trusted {
                let attr = self.cached_set_attr(asker, tenure, set);
                self.note_local(ino);
                return attr;
            }
            self.leave_memory(asker, ino)?;
        }
        let attr = self.set_attr(asker, ino, set);
        let anew = self.read_anew(asker, ino);
        attr.and_then(|attr| anew.map(|()| attr))
    }

    /// Whether something was written here that the leader does not know of, but for data alone: with that goes the
    /// capability. A change of the mode is in memory only together with a write.
    pub(crate) fn has_taken_capability(&self, ino: InodeId) -> bool {
        let file = self.pages.find(ino);
        let is_unpublished = file.is_some_and(|file| {
            file.look(|state| {
                let local = state.local.as_ref();
                local.is_some_and(|local| !local.is_published())
            })
        });
        let is_modified = |inode: Arc<Inode>| inode.is_modified();
        is_unpublished || self.inodes.find(ino).is_some_and(is_modified)
    }

    /// Sets or removes an extended attribute of anything.
    pub(crate) fn set_xattr_leased(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        set: &Mutation,
    ) -> FsResult<()> {
        let is_right = matches!(
            set,
            Mutation::SetXattr { name, .. } | Mutation::RemoveXattr { name, .. } if RIGHTS.contains(&&name[..])
        );
        let mut writing = None;
        if is_right && self.is_writer(ino) {
            writing = Some(self.begin_write(asker, ino, &(0..1))?);
            // As where a mode is set.
            self.flush_data(asker, ino)?;
        }
        if is_right {
            // A write that is published afterwards would take it away.
            self.publish(asker, ino)?;
        }
        let done = self.mutate(asker, ino, set).map(drop);
        drop(writing);
        done
    }

    /// fallocate(2).
    pub(crate) fn allocate_leased(
        &self,
        cx: &Context<'_>,
        ino: InodeId,
        offset: u64,
        len: u64,
        change: Change,
    ) -> FsResult<()> {
        let asker = self.asker(cx);
        let writing = self.begin_write(&asker, ino, &(offset..offset.saturating_add(1)))?;
        if let Right::Buffered(tenure) = &writing.right {
            if asker.caller.trusted {
                let done = self.cached_allocate(cx, &tenure.file, offset, len, change);
                self.note_local(ino);
                return done;
            }
            self.leave_memory(&asker, ino)?;
        }
        let done = self.allocate(cx, ino, offset, len, change);
        let anew = self.read_anew(&asker, ino);
        done.and(anew)
    }

    /// `SEEK_DATA` and `SEEK_HOLE`: the datanodes know where there is data.
    pub(crate) fn seek_leased(
        &self,
        cx: &Context<'_>,
        ino: InodeId,
        offset: u64,
        hole: bool,
    ) -> FsResult<u64> {
        match self.pages.find(ino) {
            Some(_) => self.cached_seek(cx, ino, offset, hole),
            None => self.seek(cx, ino, offset, hole),
        }
    }

    /// fsync(2).
    pub(crate) fn fsync_leased(
        &self,
        cx: &Context<'_>,
        ino: InodeId,
        data_only: bool,
    ) -> FsResult<()> {
        self.wait_told(&self.asker(cx), ino)?;
        if self.pages.find(ino).is_none() {
            return self.fsync(cx, ino, data_only);
        }
        let asker = self.asker(cx);
        let inode = self.inodes.get(ino);
        let synced = self.sync_data(&asker, ino, &inode, data_only);
        // Of what was written before there was a lease to buffer.
        let published = match data_only {
            true => Ok(()),
            false => self.publish(&asker, ino).map(drop),
        };
        synced.and(published)
    }

    /// Attributes as the leader told them, with what was written and set here and was not published then.
    pub(crate) fn with_local_changes(&self, attr: Attr) -> Attr {
        let Some(file) = self.pages.find(attr.ino) else {
            return attr;
        };
        let is_writer = self.is_writer(attr.ino);
        let shown = file.look(|state| Some(state.local.as_ref()?.over(&attr, is_writer)));
        shown.unwrap_or(attr)
    }

    /// What this client has changed of a file under its lease, and whether the servers have all that was
    /// written: what is published may be ahead of what was written over and is not sent.
    pub(crate) fn local_state(&self, ino: InodeId) -> Option<(Local, bool)> {
        let file = self.pages.find(ino)?;
        file.look(|state| Some((state.local.clone()?, !state.is_changed())))
    }
}
