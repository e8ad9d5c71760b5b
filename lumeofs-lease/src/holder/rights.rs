//! Using leases: to write, to cache data, to open without a word.

use super::{Act, Holder};
use crate::wire::{Ack, Kind};
use crate::{ASK_AGAIN, Generation};
use lumeofs_base::{Attr, InodeId, Timestamp};
use std::time::Duration;

/// How a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteRight {
    /// Into memory. [`Holder::end_write`] must follow.
    Buffered,
    /// To the datanodes. [`Holder::end_write`] must follow.
    Through,
    /// The leader must be asked for a lease first. If the answer brings none, a recall is on its way: ask again soon, but
    /// not at once.
    Ask,
    /// The lease is being given back, or its term is over: try again soon.
    Wait,
}

impl Holder {
    /// Begins an operation that writes to a file.
    pub fn begin_write(&mut self, now: Duration, ino: InodeId) -> WriteRight {
        let is_valid = self.is_valid(now);
        let Some(entry) = self.entries.get_mut(&ino) else {
            return WriteRight::Ask;
        };
        if entry.giving_back.is_some() {
            return WriteRight::Wait;
        }
        let right = match entry.kind {
            Kind::Shared => return WriteRight::Ask,
            Kind::Through if now >= entry.granted + ASK_AGAIN => return WriteRight::Ask,
            Kind::Through => WriteRight::Through,
            Kind::Exclusive => WriteRight::Buffered,
        };
        if !is_valid {
            return WriteRight::Wait;
        }
        if right == WriteRight::Buffered && !entry.contents.has_attr() {
            // Nothing to enter size and time in.
            return WriteRight::Ask;
        }
        entry.in_use += 1;
        entry.used = true;
        right
    }

    /// Ends what [`Holder::begin_write`] began.
    pub fn end_write(&mut self, ino: InodeId) {
        if let Some(entry) = self.entries.get_mut(&ino) {
            entry.in_use = entry.in_use.saturating_sub(1);
        }
    }

    /// Whether an operation writes under the lease on an inode now.
    pub fn is_in_use(&self, ino: InodeId) -> bool {
        self.entries.get(&ino).is_some_and(|entry| entry.in_use > 0)
    }

    /// Which lease lets the data of a file be kept in memory, and read there, if one does now.
    pub fn caches_data(&mut self, now: Duration, ino: InodeId) -> Option<Kind> {
        if !self.is_valid(now) {
            return None;
        }
        let is_busy = self.busy.has_inode(ino);
        let entry = self.entries.get_mut(&ino)?;
        entry.used = true;
        match entry.kind {
            // Others may see what a change of this session did to it before this session does.
            Kind::Shared => (!is_busy).then_some(Kind::Shared),
            Kind::Exclusive => Some(Kind::Exclusive),
            Kind::Through => None,
        }
    }

    /// Whether no other session has writes to an inode in its memory: any lease says so.
    pub fn is_covered(&self, now: Duration, ino: InodeId) -> bool {
        self.is_valid(now) && self.entries.contains_key(&ino)
    }

    /// Whether writes to a file may be in memory only, so that nobody else can answer for it.
    pub fn is_writer(&self, ino: InodeId) -> bool {
        let entry = self.entries.get(&ino);
        entry.is_some_and(|entry| entry.kind == Kind::Exclusive && !entry.is_no_file)
    }

    /// Has what was written to a file, and set of it, entered in its attributes: under [`WriteRight::Buffered`].
    pub fn wrote(&mut self, ino: InodeId, enter: impl FnOnce(&mut Attr)) {
        let Some(entry) = self.entries.get_mut(&ino) else {
            return;
        };
        entry.local = true;
        if let Some(attr) = entry.contents.attr_mut() {
            enter(attr);
        }
    }

    /// Enters that this size and time were published. Says whether that is all that was to be.
    pub fn published(&mut self, ino: InodeId, size: u64, time: Timestamp) -> bool {
        let Some(entry) = self.entries.get_mut(&ino) else {
            return true;
        };
        let attr = entry.contents.attr_mut();
        if attr.is_none_or(|attr| attr.size == size && attr.mtime == time) {
            entry.local = false;
        }
        !entry.local
    }

    /// What was written to a file and not published is given up.
    pub fn abandoned(&mut self, ino: InodeId) {
        if let Some(entry) = self.entries.get_mut(&ino) {
            entry.local = false;
            self.items -= entry.contents.clear();
        }
    }

    /// Opens a file without telling the leader, if a lease lets it be heard when the file loses its last name.
    pub fn open(&mut self, now: Duration, ino: InodeId) -> bool {
        let is_valid = self.is_valid(now);
        match self.entries.get_mut(&ino) {
            Some(entry) if is_valid && entry.named => {
                entry.open = true;
                entry.used = true;
                true
            }
            _ => false,
        }
    }

    /// The last open of a file has ended.
    pub fn close(&mut self, ino: InodeId) {
        if let Some(entry) = self.entries.get_mut(&ino) {
            entry.open = false;
        }
    }

    /// A mutation of this session has made an inode, which counts as open from the start, with or without a name: that is
    /// not in question.
    pub fn made(&mut self, ino: InodeId) {
        self.acts.retain(|act| *act != Act::StateOpen(ino));
    }

    /// What was asked for by [`Act::GiveBack`] is done.
    pub fn gave_back(&mut self, generation: Generation, ino: InodeId) {
        let is_current = generation == self.generation;
        let Some(entry) = self.entries.get_mut(&ino).filter(|_| is_current) else {
            return;
        };
        let Some(giving) = entry.giving_back.take() else {
            return;
        };
        assert!(entry.in_use == 0, "{ino} is given back while it is written");
        let (id, open) = (giving.id, entry.open && !giving.keeps_shared);
        self.acks.push(Ack { id, open });
        if giving.keeps_shared {
            entry.kind = Kind::Shared;
            // A grant to write may still be on its way.
            entry.floor = entry.floor.max(id);
            return;
        }
        self.drop_lease(ino, giving.id);
    }

    /// The generation, to name it in [`Holder::gave_back`].
    pub fn generation(&self) -> Generation {
        self.generation
    }
}
