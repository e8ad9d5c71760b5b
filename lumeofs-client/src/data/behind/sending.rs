//! The steps by which one file's changes go to the servers, whoever has them sent.

use crate::data::behind::LOST_PAUSE;
use crate::data::chunks::span;
use crate::data::write::{How, again};
use crate::inodes::{Inode, Known};
use crate::link::{Asker, Link};
use crate::pages::count;
use crate::pages::file::File;
use crate::pages::local::Publication;
use crate::pages::queue::AGE_MAX;
use crate::pages::state::State;
use crate::pages::state::sending::{Claimed, Sent, Until, Wanted};
use crate::wait::Patience;
use lumeofs_base::{Attr, Code, FsResult};
use lumeofs_meta::op::{Mutation, Query};
use std::ops::Range;
use std::sync::Arc;

/// Bytes that one thread has under way at once, as several requests.
const CLAIM_BYTES: u64 = 4 << 20;

/// A file whose changes somebody has sent.
#[derive(Clone, Copy)]
pub(crate) struct Sending<'a> {
    pub(crate) link: &'a Link,
    pub(crate) asker: &'a Asker<'a>,
    pub(crate) inode: &'a Inode,
    pub(crate) file: &'a Arc<File>,
    /// Data that an outage keeps from being sent is dropped and told later.
    pub(crate) is_last_try: bool,
}

impl Sending<'_> {
    /// Sends what is dirty now below an offset, and has `publish` do the rest; once more where that says that the servers
    /// may have cut off what was sent.
    pub(super) fn flush(
        &self,
        below: u64,
        mut publish: impl FnMut(Until) -> FsResult<bool>,
    ) -> FsResult<()> {
        again(self.asker, self.file.ino, || {
            let until = self.file.change(State::begin_flush).up_to(below);
            self.send_all(until, true)?;
            Ok(publish(until)?.then_some(()))
        })
    }

    /// Sends until everything asked for is with the primaries. False if the rest is under way with others, whom this one
    /// does not wait for, except for a while.
    pub(super) fn send_all(&self, until: Until, waits: bool) -> FsResult<bool> {
        loop {
            let seen = self.file.events();
            match self.claim(until, true) {
                Claimed::Some(id, range) => self.send_claim(id, &range)?,
                Claimed::UnderWay if waits => self.file.wait(seen, &self.asker.patience)?,
                Claimed::UnderWay => {
                    self.look_away(seen);
                    return Ok(false);
                }
                Claimed::None => return Ok(true),
            }
        }
    }

    /// Sends what a few requests can take of a file that is being written to.
    pub(super) fn send_some(&self) -> FsResult<()> {
        let seen = self.file.events();
        match self.claim(Until::ALL, false) {
            Claimed::Some(id, range) => self.send_claim(id, &range)?,
            // It is being written again while it is sent.
            Claimed::UnderWay => self.look_away(seen),
            Claimed::None => {}
        }
        Ok(())
    }

    /// Lets somebody else finish with a file, for a while.
    fn look_away(&self, seen: u64) {
        let patience = Patience::background(&self.link.halt, Some(AGE_MAX));
        // Whether that has ended is seen the next time.
        self.file.wait(seen, &patience).ok();
    }

    fn claim(&self, until: Until, whole: bool) -> Claimed {
        self.file.claim(&Wanted {
            until,
            most: CLAIM_BYTES,
            chunk_size: self.link.chunk_size(),
            whole,
        })
    }

    /// Sends one claim. What cannot be sent at all is dropped and told later.
    fn send_claim(&self, id: u64, range: &Range<u64>) -> FsResult<()> {
        let (link, file) = (self.link, self.file);
        let asker = link.sender(self.asker);
        let sent = Sending {
            asker: &asker,
            ..*self
        }
        .send_held(id, range);
        let error = match sent {
            Ok(bytes) => {
                count(&link.pages.shared.counters.written_bytes, bytes);
                if !file.look(State::is_changed) {
                    // It was published before it was sent.
                    link.note_local(file.ino);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        if link.still_bound(&asker).is_err() {
            // All of it is about to be dropped, and told.
            file.end_claim(id, Sent::Later);
            return asker.patience.pause(LOST_PAUSE);
        }
        let is_outage = matches!(error.code, Code::Unavailable | Code::Timeout);
        match error.code {
            Code::Interrupted => {}
            _ if is_outage && (!self.is_last_try || link.halt.is_halted()) => {}
            // Nobody can see it any more.
            Code::NotFound | Code::Stale => {
                file.drop_all();
                return Ok(());
            }
            _ => {
                if file.end_claim(id, Sent::Never) {
                    tracing::error!(ino = %file.ino, ?range, %error, "written data could not be stored");
                    self.inode.fail(error);
                }
                return Ok(());
            }
        }
        file.end_claim(id, Sent::Later);
        Err(error)
    }

    /// Sends a claim while nobody else sends in its range. How many bytes were sent.
    fn send_held(&self, id: u64, range: &Range<u64>) -> FsResult<u64> {
        let _held = (self.inode.ranges).own(range.clone(), &self.asker.patience)?;
        let Some(parts) = self.file.look(|state| state.claimed(id)) else {
            return Ok(0);
        };
        let parts: Vec<(u64, &[u8])> = parts.iter().map(|(at, data)| (*at, &data[..])).collect();
        again(self.asker, self.file.ino, || self.send_once(range, &parts))?;
        self.file.end_claim(id, Sent::Done);
        Ok(parts.iter().map(|(_, data)| data.len() as u64).sum())
    }

    fn send_once(&self, range: &Range<u64>, parts: &[(u64, &[u8])]) -> FsResult<Option<()>> {
        let (first, last) = span(range, self.link.chunk_size());
        let remembered = self.inode.known(first, last);
        let remembered = remembered.filter(|known| !known.attr.tail_unclean);
        let is_remembered = remembered.is_some();
        let known = match remembered {
            Some(known) => known,
            None => match self.place(range) {
                Err(error) if error.code == Code::StaleWrite => return Ok(None),
                known => known?,
            },
        };
        let how = How {
            durable: false,
            direct: false,
            clear_suid: false,
        };
        let (asker, inode) = (self.asker, self.inode);
        let sent = (self.link).send(asker, inode, &known, parts, how, is_remembered, &mut || {})?;
        Ok(sent.then_some(()))
    }

    fn place(&self, range: &Range<u64>) -> FsResult<Known> {
        let (link, asker, inode, ino) = (self.link, self.asker, self.inode, self.file.ino);
        let _placing = asker.patience.lock(&self.file.placing)?;
        let mut known = link.with_clean_tail(asker, ino, inode, range)?;
        // Up to the range all is this client's, published or not: this is a stream if it goes past the end.
        known.attr.size = known.attr.size.max(range.start);
        link.with_all_chunks(asker, ino, inode, known, range)
    }

    /// Publishes size and time where the data asked for was sent. False if its size is not known to the metadata group
    /// then: the servers may have cut off what was sent, so it is to be sent again.
    pub(super) fn publish_until(&self, until: Until) -> FsResult<bool> {
        let sender = self.link.sender(self.asker);
        let is_whole = self.publish_local(false)?;
        // If the session has ended, all of it is about to be dropped, and told.
        Ok(is_whole && (self.has_published(until) || self.link.still_bound(&sender).is_err()))
    }

    /// Whether the metadata group knows the size that the file had.
    pub(super) fn has_published(&self, until: Until) -> bool {
        self.file.look(|state| state.has_published(until.below))
    }

    /// Publishes size and time, as far as the data is with the primaries. False if the servers may have cut off what was
    /// sent: then that is dirty again. What cannot be published for good is told later.
    pub(crate) fn publish_local(&self, is_last_try: bool) -> FsResult<bool> {
        let result = self.publish_sent(is_last_try);
        self.link.note_local(self.file.ino);
        result
    }

    fn publish_sent(&self, is_last_try: bool) -> FsResult<bool> {
        let (link, inode, file, ino) = (self.link, self.inode, self.file, self.file.ino);
        let _order = self.asker.patience.lock(&file.publishing)?;
        let _times = link.own_times(self.asker, ino, inode)?;
        let asker = link.sender(self.asker);
        let publication = file.look(|state| {
            let local = state.local.as_ref()?;
            local.publication(state.sent_until())
        });
        let Some(publication) = publication else {
            return Ok(true);
        };
        let error = match self.publish_with(&asker, &publication) {
            Ok(attr) => {
                inode.learn(&attr);
                count(&link.pages.shared.counters.publications, 1);
                file.change(|state| state.published(&publication, &attr));
                return Ok(true);
            }
            Err(error) => error,
        };
        match error.code {
            Code::StaleWrite => {
                inode.unlearn();
                link.clean_tail_if_needed(&asker, ino, inode)?;
                file.change(State::send_tail_again);
                Ok(false)
            }
            _ if link.still_bound(&asker).is_err() => Ok(true),
            Code::Interrupted => Err(error),
            Code::Unavailable | Code::Timeout if !is_last_try || link.halt.is_halted() => {
                Err(error)
            }
            Code::NotFound | Code::Stale => {
                file.drop_all();
                Ok(true)
            }
            _ => {
                if let Some(bytes) = file.look(State::unsaved) {
                    tracing::error!(%ino, bytes, %error, "size and time could not be published");
                    file.drop_all();
                    inode.fail(error);
                }
                Ok(true)
            }
        }
    }

    fn publish_with(&self, asker: &Asker<'_>, publication: &Publication) -> FsResult<Attr> {
        let (link, ino) = (self.link, self.file.ino);
        let truncations = match self.inode.truncations() {
            Some(truncations) => truncations,
            None => {
                let attr = link.query_attr(asker, ino, &Query::GetAttr { ino })?;
                attr.truncations
            }
        };
        let flush = Mutation::Flush {
            ino,
            from: publication.from,
            size: publication.size,
            truncations,
            clear_suid: publication.clear_suid,
            mtime: publication.mtime,
            ctime: publication.ctime,
            set: publication.set.clone(),
        };
        link.mutate_attr(asker, ino, &flush)
    }
}
