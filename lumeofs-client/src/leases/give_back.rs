//! Giving write leases back: who writes under one finishes, what is not published is, then the leader hears.

use crate::link::{Asker, Link};
use crate::wait::{Patience, SLICE, now};
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
            while self.wait_until_unused(due) {
                if self.publish_in_full(due.ino) {
                    self.give_back(due);
                    break;
                }
                self.halt.sleep(SLICE);
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
            state.waiting += 1;
            self.leases.changed.wait_for(&mut state, SLICE);
            state.waiting -= 1;
        }
    }

    /// Has all that was written under a lease with the datanodes, and known to the leader. What cannot be is told at the
    /// next flush or fsync. False at the client's end.
    fn publish_in_full(&self, ino: InodeId) -> bool {
        let asker = Asker::background(Patience::background(&self.halt, None));
        let flushed = self.flush_data(&asker, ino);
        if let Err(error) = &flushed {
            tracing::warn!(%ino, %error, "a file is wanted by others");
        }
        flushed
            .and_then(|()| self.publish_in_background(ino, None))
            .is_ok()
    }

    fn give_back(&self, due: Due) {
        self.note_local(due.ino);
        self.with_leases(|state| state.holder.gave_back(due.generation, due.ino));
        self.leases
            .counters
            .gave_back(now().saturating_sub(due.since));
        self.leases.changed.notify_all();
    }
}
