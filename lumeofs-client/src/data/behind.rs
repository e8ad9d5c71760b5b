//! Write-behind: sends what was written into the cache, then publishes size and time.
//!
//! Data first: the size is published only as far as all bytes below it are with the primaries. Bytes past the published
//! size stay in memory until then, so that they can be sent again if the servers cut them off. What is sent was
//! written under one session and goes under no other (rule S3).

mod workers;

use crate::data::chunks::span;
use crate::data::write::{How, again};
use crate::inodes::{Inode, Known};
use crate::link::{Asker, Link};
use crate::pages::count;
use crate::pages::file::File;
use crate::pages::local::Publication;
use crate::pages::state::State;
use crate::pages::state::sending::{Claimed, Sent, Until, Wanted};
use lumeofs_base::{Attr, Code, FsResult, InodeId};
use lumeofs_meta::op::{Mutation, Query};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that one thread has under way at once, as several requests.
const CLAIM_BYTES: u64 = 4 << 20;
/// Pause where the session has ended and what was written under it is being dropped.
const LOST_PAUSE: Duration = Duration::from_millis(10);

impl Link {
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
        again(asker, ino, || {
            let until = file.change(State::begin_flush).up_to(below);
            self.send_dirty(asker, &inode, &file, until)?;
            let is_whole = self.publish_until(asker, &inode, &file, until)?;
            Ok(is_whole.then_some(()))
        })
    }

    /// Sends all data of an inode that is dirty now, and publishes its size if it has grown: what O_DIRECT promises.
    ///
    /// # Errors
    /// Also those of write-behind, once.
    pub(crate) fn send_data(&self, asker: &Asker<'_>, ino: InodeId, inode: &Inode) -> FsResult<()> {
        let Some(file) = self.pages.find(ino) else {
            return Ok(());
        };
        again(asker, ino, || {
            let until = file.change(State::begin_flush);
            self.send_dirty(asker, inode, &file, until)?;
            let is_known = file.look(|state| state.has_published(until.below));
            let is_whole = is_known || self.publish_until(asker, inode, &file, until)?;
            Ok(is_whole.then_some(()))
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
        again(asker, ino, || {
            let until = file.change(State::begin_flush);
            self.send_dirty(asker, inode, &file, until)?;
            let is_known = file.look(|state| state.has_published(until.below));
            let publishes = !data_only || !is_known;
            let mut is_whole = true;
            self.sync(asker, ino, inode, &mut || {
                if publishes {
                    is_whole = self.publish_until(asker, inode, &file, until)?;
                }
                Ok(())
            })?;
            Ok(is_whole.then_some(()))
        })?;
        inode.take_error().map_or(Ok(()), Err)
    }

    /// Who sends what is in the cache now: with the right of who wrote it, and under the session of that time alone.
    fn sender<'a>(&self, asker: &Asker<'a>) -> Asker<'a> {
        let sender = asker.trusted();
        sender.bound.set(Some(self.pages.shared.session()));
        sender
    }

    /// Sends until everything asked for is with the primaries.
    fn send_dirty(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        file: &Arc<File>,
        until: Until,
    ) -> FsResult<()> {
        loop {
            let seen = file.events();
            match self.claim(file, until, true) {
                Claimed::Some(id, range) => {
                    self.send_claim(asker, inode, file, id, &range, false)?;
                }
                Claimed::UnderWay => file.wait(seen, &asker.patience)?,
                Claimed::None => return Ok(()),
            }
        }
    }

    fn claim(&self, file: &Arc<File>, until: Until, whole: bool) -> Claimed {
        file.claim(&Wanted {
            until,
            most: CLAIM_BYTES,
            chunk_size: self.chunk_size(),
            whole,
        })
    }

    /// Sends one claim. What cannot be sent at all is dropped and told later; with `is_last_try` so is what an outage
    /// prevents.
    fn send_claim(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        file: &Arc<File>,
        id: u64,
        range: &Range<u64>,
        is_last_try: bool,
    ) -> FsResult<()> {
        let asker = self.sender(asker);
        let error = match self.send_held(&asker, inode, file, id, range) {
            Ok(bytes) => {
                count(&self.pages.shared.counters.written_bytes, bytes);
                if !file.look(State::is_changed) {
                    // It was published before it was sent.
                    self.note_local(file.ino);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        if self.still_bound(&asker).is_err() {
            // All of it is about to be dropped, and told.
            file.end_claim(id, Sent::Later);
            return asker.patience.pause(LOST_PAUSE);
        }
        let is_outage = matches!(error.code, Code::Unavailable | Code::Timeout);
        match error.code {
            Code::Interrupted => {}
            _ if is_outage && (!is_last_try || self.halt.is_halted()) => {}
            // Nobody can see it any more.
            Code::NotFound | Code::Stale => {
                file.drop_all();
                return Ok(());
            }
            _ => {
                if file.end_claim(id, Sent::Never) {
                    tracing::error!(ino = %file.ino, ?range, %error, "written data could not be stored");
                    inode.fail(error);
                }
                return Ok(());
            }
        }
        file.end_claim(id, Sent::Later);
        Err(error)
    }

    /// Sends a claim while nobody else sends in its range. How many bytes were sent.
    fn send_held(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        file: &Arc<File>,
        id: u64,
        range: &Range<u64>,
    ) -> FsResult<u64> {
        let _held = inode.ranges.own(range.clone(), &asker.patience)?;
        let Some(parts) = file.look(|state| state.claimed(id)) else {
            return Ok(0);
        };
        let parts: Vec<(u64, &[u8])> = parts.iter().map(|(at, data)| (*at, &data[..])).collect();
        again(asker, file.ino, || {
            self.send_once(asker, inode, file, range, &parts)
        })?;
        file.end_claim(id, Sent::Done);
        Ok(parts.iter().map(|(_, data)| data.len() as u64).sum())
    }

    fn send_once(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        file: &Arc<File>,
        range: &Range<u64>,
        parts: &[(u64, &[u8])],
    ) -> FsResult<Option<()>> {
        let (first, last) = span(range, self.chunk_size());
        let remembered = inode
            .known(first, last)
            .filter(|known| !known.attr.tail_unclean);
        let is_remembered = remembered.is_some();
        let known = match remembered {
            Some(known) => known,
            None => match self.place_cached(asker, inode, file, range) {
                Err(error) if error.code == Code::StaleWrite => return Ok(None),
                known => known?,
            },
        };
        let how = How {
            durable: false,
            direct: false,
            clear_suid: false,
        };
        let sent = self.send(asker, inode, &known, parts, how, is_remembered, &mut || {})?;
        Ok(sent.then_some(()))
    }

    fn place_cached(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        file: &Arc<File>,
        range: &Range<u64>,
    ) -> FsResult<Known> {
        let _placing = asker.patience.lock(&file.placing)?;
        let mut known = self.with_clean_tail(asker, file.ino, inode, range)?;
        // Up to the range all is this client's, published or not: this is a stream if it goes past the end.
        known.attr.size = known.attr.size.max(range.start);
        self.with_all_chunks(asker, file.ino, inode, known, range)
    }

    /// Publishes size and time where the data asked for was sent. False if its size is not known to the metadata group
    /// then: the servers may have cut off what was sent, so it is to be sent again.
    fn publish_until(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        file: &Arc<File>,
        until: Until,
    ) -> FsResult<bool> {
        let sender = self.sender(asker);
        let is_whole = self.publish_local(asker, inode, file, false)?;
        let is_known = file.look(|state| state.has_published(until.below));
        // If the session has ended, all of it is about to be dropped, and told.
        Ok(is_whole && (is_known || self.still_bound(&sender).is_err()))
    }

    /// Publishes size and time, as far as the data is with the primaries. False if the servers may have cut off what was
    /// sent: then that is dirty again. What cannot be published for good is told later.
    pub(crate) fn publish_local(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        file: &Arc<File>,
        is_last_try: bool,
    ) -> FsResult<bool> {
        let result = self.publish_sent(asker, inode, file, is_last_try);
        self.note_local(file.ino);
        result
    }

    fn publish_sent(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        file: &Arc<File>,
        is_last_try: bool,
    ) -> FsResult<bool> {
        let ino = file.ino;
        let _order = asker.patience.lock(&file.publishing)?;
        let _times = self.own_times(asker, ino, inode)?;
        let asker = self.sender(asker);
        let publication = file.look(|state| {
            let local = state.local.as_ref()?;
            local.publication(state.sent_until())
        });
        let Some(publication) = publication else {
            return Ok(true);
        };
        let published = self.publish_with(&asker, ino, inode, &publication);
        let error = match published {
            Ok(attr) => {
                inode.learn(&attr);
                count(&self.pages.shared.counters.publications, 1);
                file.change(|state| state.published(&publication, &attr));
                return Ok(true);
            }
            Err(error) => error,
        };
        match error.code {
            Code::StaleWrite => {
                inode.unlearn();
                self.clean_tail_if_needed(&asker, ino, inode)?;
                file.change(State::send_tail_again);
                Ok(false)
            }
            _ if self.still_bound(&asker).is_err() => Ok(true),
            Code::Interrupted => Err(error),
            Code::Unavailable | Code::Timeout if !is_last_try || self.halt.is_halted() => {
                Err(error)
            }
            Code::NotFound | Code::Stale => {
                file.drop_all();
                Ok(true)
            }
            _ => {
                if file.look(State::is_changed) {
                    tracing::error!(%ino, %error, "size and time could not be published");
                    file.drop_all();
                    inode.fail(error);
                }
                Ok(true)
            }
        }
    }

    fn publish_with(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        publication: &Publication,
    ) -> FsResult<Attr> {
        let truncations = match inode.truncations() {
            Some(truncations) => truncations,
            None => {
                self.query_attr(asker, ino, &Query::GetAttr { ino })?
                    .truncations
            }
        };
        let flush = Mutation::Flush {
            ino,
            from: publication.from,
            size: publication.size,
            truncations,
            clear_suid: publication.clear_suid,
            time: publication.time,
        };
        self.mutate_attr(asker, ino, &flush)
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
            if !self.publish_local(asker, inode, file, false)? {
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
