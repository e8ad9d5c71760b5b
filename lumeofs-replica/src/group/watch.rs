//! Noticing that the own store makes no progress. A disk may hang without ever returning an error.

use super::{ACK_SILENCE, Group, SYNC_SILENCE};
use crate::effect::Effect;
use crate::message::Payload;
use lumeofs_base::{Code, FsError};
use std::time::Duration;

/// What is known of the own store's health.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoreWatch {
    /// Last time that an operation was applied or none waited.
    applied: Duration,
    /// Last time that a sync was done or none was under way.
    synced: Duration,
    hangs: bool,
    /// It failed, and not for want of space.
    broken: bool,
}

impl StoreWatch {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            applied: now,
            synced: now,
            hangs: false,
            broken: false,
        }
    }

    pub(super) fn applied(&mut self, now: Duration) {
        self.applied = now;
    }

    pub(super) fn synced(&mut self, now: Duration) {
        self.synced = now;
    }

    pub(super) fn broke(&mut self) {
        self.broken = true;
    }

    /// A whole catch-up reached the disk, or the store serves again.
    pub(super) fn healed(&mut self) {
        self.broken = false;
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// No member to lead a group.
    pub(super) fn is_suspect(&self) -> bool {
        self.hangs || self.broken
    }
}

impl<P: Payload> Group<P> {
    /// A primary whose store hangs would hold up the group for ever, its beacons going on meanwhile: it
    /// steps down and says so when asked, which is what makes a secondary take over.
    pub(super) fn watch_store(&mut self, now: Duration) {
        if self.applied >= self.last.sequence {
            self.watch.applied = now;
        }
        if self.durable >= self.sync_asked {
            self.watch.synced = now;
        }
        self.watch.hangs =
            now >= self.watch.applied + ACK_SILENCE || now >= self.watch.synced + SYNC_SILENCE;
        if self.watch.hangs && self.primary.is_some() {
            self.complete = false;
            self.tail.clear();
            self.resign(&FsError::new(
                Code::StaleEpoch,
                "the primary's store hangs, another datanode takes over",
            ));
            self.effects.push(Effect::Refresh);
        }
    }
}
