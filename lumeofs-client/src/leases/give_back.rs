//! Giving write leases back: who writes under one finishes, what is not published is, then the leader hears.

use crate::link::Link;
use crate::wait::{SLICE, now};
use lumeofs_base::InodeId;
use lumeofs_lease::Generation;
use std::time::Duration;

/// A lease that the leader wants back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) ino: InodeId,
    /// In which it was asked for.
    pub(super) generation: Generation,
    /// When.
    pub(super) since: Duration,
}

impl Link {
    /// A background thread.
    pub(crate) fn keep_giving_back(&self) {
        while let Some(due) = self.next_due() {
            if self.wait_until_unused(due) {
                self.publish_in_full(due.ino);
                self.give_back(due);
            }
        }
    }

    /// The next one, `None` at the client's end.
    fn next_due(&self) -> Option<Due> {
        let mut state = self.leases.state.lock();
        loop {
            if self.halt.is_halted() {
                return None;
            }
            if let Some(due) = state.give_back.pop_front() {
                return Some(due);
            }
            self.leases.changed.wait_for(&mut state, SLICE * 10);
        }
    }

    /// Waits for those who write under a lease. False if it is not to be given back any more.
    fn wait_until_unused(&self, due: Due) -> bool {
        let mut state = self.leases.state.lock();
        loop {
            if self.halt.is_halted() || state.holder.generation() != due.generation {
                return false;
            }
            if !state.holder.is_in_use(due.ino) {
                return true;
            }
            self.leases.changed.wait_for(&mut state, SLICE);
        }
    }

    /// Makes all that was written under a lease known to the leader. What cannot be is told at the next flush or fsync.
    fn publish_in_full(&self, ino: InodeId) {
        self.publish_in_background(ino, None).ok();
    }

    fn give_back(&self, due: Due) {
        self.with_leases(|state| state.holder.gave_back(due.generation, due.ino));
        self.leases
            .counters
            .gave_back(now().saturating_sub(due.since));
        self.leases.changed.notify_all();
    }
}
