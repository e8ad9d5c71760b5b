//! What changes a cached file in another way than by writing: truncation, times, `fallocate`.
//!
//! The file is closed to readers, writers and write-behind, what is to stay is flushed, the servers make the change, and
//! then the cache forgets the range that it concerned. The caller holds `Exclusive`.

use crate::client::{Context, Range as Change};
use crate::data::cached::{Tenure, gave_up};
use crate::data::chunks::checked_range;
use crate::inodes::Inode;
use crate::link::{Asker, Link};
use crate::pages::file::File;
use crate::pages::local::Local;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{Attr, Code, FsError, FsResult, InodeId};
use lumeofs_meta::attributes;
use lumeofs_meta::op::{Mutation, Query, Reply, SetAttr};
use std::ops::Range;
use std::sync::Arc;

impl Link {
    /// Sets attributes of a cached file. With a smaller size, what was written past it need not be sent.
    pub(crate) fn cached_set_attr(
        &self,
        asker: &Asker<'_>,
        tenure: &Tenure,
        set: SetAttr,
    ) -> FsResult<Attr> {
        let file = &tenure.file;
        let Some(size) = set.size else {
            return match self.set_locally(asker, tenure, &set)? {
                Some(attr) => Ok(attr),
                None => self.set_cached_times(asker, file, set),
            };
        };
        self.change_cached(asker, file, size..u64::MAX, size, |inode| {
            self.resize_held(asker, file.ino, inode, size, set)
        })
    }

    /// Sets attributes but the size of a file that has something to be published anyway: that carries them along.
    fn set_locally(
        &self,
        asker: &Asker<'_>,
        tenure: &Tenure,
        set: &SetAttr,
    ) -> FsResult<Option<Attr>> {
        attributes::check_times(set)?;
        let ino = tenure.file.ino;
        // With the mode an ACL changes, which nothing here can show. What is taken away is so from the mode that the leader has.
        if set.clear_sgid || (set.mode.is_some() && !self.has_no_xattrs(ino)) {
            return Ok(None);
        }
        // Whoever replaces what is known of the file keeps this out.
        let held = tenure.file.io.share(0..1, &asker.patience)?;
        let now = SystemClock.wall();
        let attr = tenure.file.change(|state| {
            let is_held = state.drops == tenure.drops;
            let local = state
                .local
                .as_mut()
                .filter(|local| is_held && !local.is_published() && set.ctime.is_none())?;
            local.set(asker.caller, set, now);
            Some(local.attr())
        });
        drop(held);
        let Some(attr) = attr else {
            return Ok(None);
        };
        self.note_local(ino);
        // The rest may have been changed by others since it was said to this file.
        Ok(Some(match self.remembered(&Query::GetAttr { ino }) {
            Some(Ok(Reply::Attr(attr))) => self.with_own_writes(attr),
            _ => attr,
        }))
    }

    /// Whether it is known that an inode has no extended attributes.
    fn has_no_xattrs(&self, ino: InodeId) -> bool {
        match self.remembered(&Query::GetAttr { ino }) {
            Some(Ok(Reply::Attr(attr))) => !attr.has_xattrs,
            _ => false,
        }
    }

    /// Sets attributes but the size, at the leader.
    fn set_cached_times(
        &self,
        asker: &Asker<'_>,
        file: &Arc<File>,
        set: SetAttr,
    ) -> FsResult<Attr> {
        let ino = file.ino;
        let inode = self.inodes.get(ino);
        // A write from before must not take away what is set now.
        self.flush_data(asker, ino)?;
        let sets_mtime = set.mtime.is_some();
        let mutation = Mutation::SetAttr { ino, set };
        let mut adopt = |attr: &Attr| {
            file.change(|state| match &mut state.local {
                Some(local) => local.adopt(attr),
                none => *none = Some(Local::new(attr.clone())),
            });
        };
        if sets_mtime {
            self.overtake_mtime(asker, ino, &inode, &mutation, &mut adopt)?;
        } else {
            let _times = self.own_times(asker, ino, &inode)?;
            adopt(&self.mutate_attr(asker, ino, &mutation)?);
        }
        let attr = file.look(|state| state.local.as_ref().map(Local::attr));
        attr.ok_or_else(|| gave_up(ino))
    }

    /// fallocate(2) of a cached file.
    pub(crate) fn cached_allocate(
        &self,
        cx: &Context<'_>,
        file: &Arc<File>,
        offset: u64,
        len: u64,
        change: Change,
    ) -> FsResult<()> {
        let asker = self.asker(cx);
        let ino = file.ino;
        let range = checked_range(offset, len)?;
        self.change_cached(&asker, file, range.clone(), u64::MAX, |inode| {
            self.allocate_held(&asker, ino, inode, &range, change)?;
            self.query_attr(&asker, ino, &Query::GetAttr { ino })
        })
        .map(drop)
    }

    /// `SEEK_DATA` and `SEEK_HOLE` of a cached file: the datanodes know where there is data.
    pub(crate) fn cached_seek(
        &self,
        cx: &Context<'_>,
        ino: InodeId,
        offset: u64,
        hole: bool,
    ) -> FsResult<u64> {
        self.flush_data(&self.asker(cx), ino)?;
        self.seek(cx, ino, offset, hole)
    }

    /// Flushes what begins below `keep`, makes a change, and drops the range that it concerns. The file was found with the
    /// right to do so: if that is over meanwhile, nobody else finds it any more.
    ///
    /// # Errors
    /// Those of the flush and of the change. Then it is not known what became of the change; what was to be discarded by it
    /// and is not sent is gone, and the next fsync or close tells.
    pub(crate) fn change_cached(
        &self,
        asker: &Asker<'_>,
        file: &Arc<File>,
        range: Range<u64>,
        keep: u64,
        change: impl FnOnce(&Inode) -> FsResult<Attr>,
    ) -> FsResult<Attr> {
        let ino = file.ino;
        let inode = self.inodes.get(ino);
        let _closed = file.io.own(0..u64::MAX, &asker.patience)?;
        self.flush_below(asker, ino, keep)?;
        // What is still there must be neither sent nor published between the change and its drop.
        let _held = inode.ranges.own(0..u64::MAX, &asker.patience)?;
        let _order = asker.patience.lock(&file.publishing)?;
        // What is left unpublished does not count any more.
        self.forget_local(ino);
        let changed = change(&inode);
        let unsent = file.change(|state| {
            let before = state.load().dirty;
            state.drop_range(range);
            state.local = changed.as_ref().ok().cloned().map(Local::new);
            before - state.load().dirty
        });
        if let Err(error) = &changed {
            // It may have been done all the same, or be done later.
            inode.unlearn();
            if unsent > 0 {
                let what = format!("{unsent} bytes of {ino} were given up for a change: {error}");
                inode.fail(FsError::new(Code::Io, what));
            }
        }
        changed
    }
}
