//! Giving write leases back: who writes under one finishes, what is not published is, then the leader hears. Files take
//! turns, so that one whose servers do not answer keeps no other.

use crate::link::{Asker, Link};
use crate::wait::{Patience, SLICE, now};
use lumeofs_base::limits::REQUEST_TIMEOUT;
use lumeofs_base::{Code, InodeId};
use lumeofs_lease::{Generation, Holder};
use std::time::Duration;

/// How long one file's writers are waited for before the next file has its turn.
const WRITERS_LIMIT: Duration = Duration::from_secs(1);
/// How long what fails for another reason than an outage is tried. Well below the time after which the leader ends a
/// session that does not give a lease back.
const ERROR_LIMIT: Duration = Duration::from_secs(10);

/// A lease that the leader wants back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) ino: InodeId,
    /// In which it was asked for.
    pub(super) generation: Generation,
    /// When.
    pub(super) since: Duration,
}

/// Whether somebody writes under a lease.
enum Unused {
    Yes,
    NotYet,
    /// It is not to be given back any more, or the client ends.
    Void,
}

impl Link {
    /// A background thread.
    pub(crate) fn keep_giving_back(&self) {
        while let Some(due) = self.next_due() {
            match self.wait_until_unused(due) {
                Unused::Yes if self.publish_in_full(due) => self.give_back(due),
                Unused::Yes | Unused::NotYet => self.put_off(due),
                Unused::Void => {}
            }
        }
    }

    /// Others have their turn first: what one file waits for may be nothing to the next.
    fn put_off(&self, due: Due) {
        self.halt.sleep(SLICE);
        self.leases.state.lock().give_back.push_back(due);
        self.leases.changed.notify_all();
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

    /// Waits for those who write under a lease, for a while.
    fn wait_until_unused(&self, due: Due) -> Unused {
        let until = now() + WRITERS_LIMIT;
        let mut state = self.leases.state.lock();
        loop {
            if self.halt.is_halted() || state.holder.generation() != due.generation {
                return Unused::Void;
            }
            if !state.holder.is_in_use(due.ino) {
                return Unused::Yes;
            }
            if now() >= until {
                return Unused::NotYet;
            }
            state.waiting += 1;
            self.leases.changed.wait_for(&mut state, SLICE);
            state.waiting -= 1;
        }
    }

    /// Has all that was written under a lease with the datanodes, and known to the leader. What cannot be is dropped
    /// after a while, else the leader would end the session and everything be lost; the next write, flush or fsync
    /// tells. False if it is to be tried again.
    fn publish_in_full(&self, due: Due) -> bool {
        let ino = due.ino;
        let told = Patience::background(&self.halt, Some(WRITERS_LIMIT)).fixed();
        let is_ahead = |holder: &Holder| holder.is_ahead_in(ino);
        if self.when_told(&told, is_ahead, |_| ()).is_err() {
            return false;
        }
        let patience = Patience::background(&self.halt, None).with_datanodes(REQUEST_TIMEOUT);
        let flushed = self.flush_data(&Asker::background(patience), ino);
        if let Err(error) = flushed {
            let is_outage = matches!(
                error.code,
                Code::Unavailable | Code::Timeout | Code::Interrupted
            );
            if is_outage || now() < due.since + ERROR_LIMIT {
                tracing::warn!(%ino, %error, "a file is wanted by others");
                return false;
            }
            tracing::error!(%ino, %error, "written data could not be stored, and the file is wanted by others");
            if let Some(file) = self.pages.find(ino) {
                file.drop_all();
            }
            self.inodes.get(ino).fail(error);
        }
        self.publish_in_background(ino, None).is_ok()
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
