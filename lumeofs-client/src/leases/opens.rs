//! Opening files without a word to the leader, which a lease allows: before the inode goes with its last name, the leader asks
//! who has a lease on it, and the answer says whether it is open. For its own changes the client says so before.

use crate::link::{Asker, Link};
use crate::wait::now;
use lumeofs_base::{FsResult, InodeId};
use lumeofs_lease::Cached;

impl Link {
    /// Counts an open, if the leader knows of one already or will ask. A recall comes before that or after.
    pub(crate) fn open_silently(&self, ino: InodeId) -> bool {
        let is_open = self.with_leases(|state| {
            let now = now();
            self.opens.enter_silently(ino, || {
                // Not while it may be losing its last name by a change of our own, of which nobody asks.
                let has_name = state.unclear == 0
                    && matches!(state.holder.attr(now, ino), Cached::Is(attr) if attr.nlink > 0);
                has_name && state.holder.open(now, ino)
            })
        });
        self.leases.counters.open(is_open);
        is_open
    }

    /// Counts a release. True if the leader is to be told.
    pub(crate) fn leave_open(&self, ino: InodeId) -> bool {
        self.with_leases(|state| {
            let left = self.opens.leave(ino);
            if left.is_last {
                state.holder.close(ino);
            }
            left.is_last && left.was_known
        })
    }

    /// Tells the leader that an inode is open, if it is and the leader was not told.
    pub(super) fn state_open(&self, asker: &Asker<'_>, ino: InodeId) -> FsResult<()> {
        if !self.opens.is_silent(ino) {
            return Ok(());
        }
        self.report_new_open(asker, ino)?;
        if self.leave_open(ino) {
            self.session.release_soon();
        }
        Ok(())
    }

    /// These have lost their last name by a change of our own.
    pub(super) fn state_orphans(&self, inodes: &[InodeId]) {
        if inodes.iter().any(|ino| self.opens.is_silent(*ino)) {
            self.session.restate_soon();
        }
    }
}
