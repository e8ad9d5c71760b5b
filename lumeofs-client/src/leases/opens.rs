//! Opening files without a word to the leader, which a lease allows: before the inode goes with its last name, its holders are
//! asked, or are presumed to have it open until they say otherwise.

use crate::link::Link;
use crate::wait::now;
use lumeofs_base::InodeId;

impl Link {
    /// Counts an open, if the leader knows of one already or will ask. A recall comes before that or after.
    pub(crate) fn open_silently(&self, ino: InodeId) -> bool {
        let is_open = self.with_leases(|state| {
            self.opens
                .enter_silently(ino, || state.holder.open(now(), ino))
        });
        self.leases.counters.open(is_open);
        is_open
    }

    /// Begins to restate what is open: all that the leader can know.
    pub(crate) fn opens_to_state(&self) -> Vec<InodeId> {
        self.with_leases(|state| self.opens.restate(|ino| !state.holder.is_unborn(ino)))
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
}
