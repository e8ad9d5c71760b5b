//! Write-behind: sends what was written into the cache, then publishes size and time.
//!
//! Data first: the size is published only as far as all bytes below it are with the primaries. Bytes past the published
//! size stay in memory until then, so that they can be sent again if the servers cut them off. What is sent was
//! written under one session and goes under no other (rule S3).

mod sending;
mod workers;

pub(crate) use sending::Sending;

use crate::data::write::again;
use crate::inodes::Inode;
use crate::link::{Asker, Link};
use crate::pages::file::File;
use crate::pages::state::State;
use lumeofs_base::{Code, FsResult, InodeId};
use std::sync::Arc;
use std::time::Duration;

/// Pause where the session has ended and what was written under it is being dropped.
const LOST_PAUSE: Duration = Duration::from_millis(10);

impl Link {
    /// For a caller who waits for the changes of a file to be sent.
    pub(crate) fn sending<'a>(
        &'a self,
        asker: &'a Asker<'a>,
        inode: &'a Inode,
        file: &'a Arc<File>,
    ) -> Sending<'a> {
        Sending {
            link: self,
            asker,
            inode,
            file,
            is_last_try: false,
        }
    }

    /// Sends all data of an inode that is dirty now, and publishes size and time with one mutation. What cannot be
    /// written for good is dropped, and the next write, fsync or close tells. The caller holds `Exclusive`.
    ///
    /// # Errors
    /// Interrupted, or an outage longer than the caller's patience: then everything that was not sent still is dirty.
    pub(crate) fn flush_data(&self, asker: &Asker<'_>, ino: InodeId) -> FsResult<()> {
        self.flush_below(asker, ino, u64::MAX)
    }

    /// As [`Link::flush_data`], for the data that begins below an offset.
    pub(crate) fn flush_below(&self, asker: &Asker<'_>, ino: InodeId, below: u64) -> FsResult<()> {
        let Some(file) = self.pages.find(ino) else {
            return Ok(());
        };
        let inode = self.inodes.get(ino);
        let sending = self.sending(asker, &inode, &file);
        sending.flush(below, |until| sending.publish_until(until))
    }

    /// Sends all data of an inode that is dirty now, and publishes its size if it has grown: what O_DIRECT promises.
    ///
    /// # Errors
    /// Also those of write-behind, once.
    pub(crate) fn send_data(&self, asker: &Asker<'_>, ino: InodeId, inode: &Inode) -> FsResult<()> {
        let Some(file) = self.pages.find(ino) else {
            return Ok(());
        };
        let sending = self.sending(asker, inode, &file);
        sending.flush(u64::MAX, |until| {
            Ok(sending.has_published(until) || sending.publish_until(until)?)
        })?;
        inode.take_error().map_or(Ok(()), Err)
    }

    /// fsync of an inode: sends its data, then has it synced while what is new of size and time is published: with
    /// `data_only` only a new size.
    ///
    /// # Errors
    /// Also those of write-behind, once.
    pub(crate) fn sync_data(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        data_only: bool,
    ) -> FsResult<()> {
        let Some(file) = self.pages.find(ino) else {
            return self.sync(asker, ino, inode, &mut || Ok(()));
        };
        let sending = self.sending(asker, inode, &file);
        sending.flush(u64::MAX, |until| {
            let is_known = data_only && sending.has_published(until);
            let mut is_whole = true;
            self.sync(asker, ino, inode, &mut || {
                is_whole = is_known || sending.publish_until(until)?;
                Ok(())
            })?;
            Ok(is_whole)
        })?;
        inode.take_error().map_or(Ok(()), Err)
    }

    /// Who sends what is in the cache now: with the right of who wrote it, and under the session of that time alone.
    fn sender<'a>(&self, asker: &Asker<'a>) -> Asker<'a> {
        let sender = asker.trusted();
        sender.bound.set(Some(self.pages.shared.session()));
        sender
    }

    /// Before a write that begins past the end: has the file grown to there, while nothing of this client is on its way
    /// past the end that the metadata group knows. Bytes that a lost writer left in the gap are cut off (rule D11).
    pub(crate) fn grow_over_gap(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        file: &Arc<File>,
        size: u64,
    ) -> FsResult<()> {
        again(asker, ino, || {
            self.flush_data(asker, ino)?;
            let _held = inode.ranges.own(0..u64::MAX, &asker.patience)?;
            if !self.sending(asker, inode, file).publish_local(false)? {
                return Ok(None);
            }
            let sender = self.sender(asker);
            let before = inode.truncations();
            let grown = self.publish_size(&sender, ino, inode, size);
            if inode.truncations() != before {
                file.change(State::send_tail_again);
            }
            match self.told(&sender, inode, grown) {
                Err(error) if error.code == Code::StaleWrite => return Ok(None),
                grown => grown?,
            }
            file.change(|state| state.local.as_mut().map(|local| local.grew(size)));
            Ok(Some(()))
        })
    }

    /// The session has been replaced: nothing in the cache counts any more. Which files had unsent changes, and how many
    /// bytes of them.
    pub(crate) fn forget_pages(&self) -> Vec<(InodeId, u64)> {
        let mut unsent = Vec::new();
        for file in self.pages.all() {
            unsent.extend(file.look(State::unsaved).map(|bytes| (file.ino, bytes)));
            // Who still has it at hand must not put anything into what others find.
            self.pages.forget(file.ino);
        }
        self.pages.shared.begin_session(self.window.session());
        unsent
    }
}
