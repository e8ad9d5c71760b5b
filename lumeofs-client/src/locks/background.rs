//! What is done without a caller: giving locks back that others want, and unlocking what processes left.

use crate::link::{Asker, Link};
use crate::wait::{Patience, SLICE, now};
use lumeofs_base::{FsResult, InodeId};
use lumeofs_meta::locks::LockOwner;
use lumeofs_meta::op::Mutation;

/// Something to be done.
enum Due {
    Recall(InodeId),
    Release(InodeId, LockOwner),
}

impl Link {
    /// A background thread.
    pub(crate) fn keep_locks(&self) {
        while let Some(due) = self.next_lock_due() {
            match due {
                Due::Recall(ino) => {
                    if let Err(error) = self.return_locks(ino) {
                        // The leader asks again.
                        tracing::debug!(%ino, %error, "locks that others want are not given back yet");
                    }
                }
                Due::Release(ino, owner) => self.release_late(ino, owner),
            }
        }
    }

    fn next_lock_due(&self) -> Option<Due> {
        let mut state = self.locks.state.lock();
        loop {
            if self.halt.is_halted() {
                return None;
            }
            if let Some(ino) = state.recalls.pop_front() {
                return Some(Due::Recall(ino));
            }
            if let Some((ino, owner)) = state.releases.pop_front() {
                return Some(Due::Release(ino, owner));
            }
            if self
                .locks
                .changed
                .wait_for(&mut state, SLICE * 10)
                .timed_out()
            {
                state.give_idle_back(now());
            }
        }
    }

    /// Gives the account of an inode's locks to the leader's group.
    fn return_locks(&self, ino: InodeId) -> FsResult<()> {
        let patience = Patience::background(&self.halt, None);
        let (locks, epoch) = {
            let mut state = self.locks.state.lock();
            if state.file(ino).returning {
                return Ok(());
            }
            state.file(ino).returning = true;
            // What is being granted or let go just now belongs to it, also if its caller has given up.
            while state.file(ino).has_requests() {
                if let Err(error) = patience.wait(&self.locks.changed, &mut state) {
                    state.file(ino).returning = false;
                    return Err(error);
                }
            }
            (state.all_of(ino), state.epoch)
        };
        let mutation = Mutation::ReturnLocks { ino, locks };
        let done = self.mutate(&Asker::background(patience), ino, &mutation);
        let mut state = self.locks.state.lock();
        let is_same = state.epoch == epoch;
        let file = state.file(ino);
        file.returning = false;
        file.delegated &= !(done.is_ok() && is_same);
        state.tidy(ino);
        self.locks.changed.notify_all();
        done.map(drop)
    }

    /// Gives up all locks of an owner on an inode, at once if the caller waits for it.
    pub(super) fn close_locks(&self, asker: &Asker<'_>, ino: InodeId, owner: LockOwner) {
        {
            let mut state = self.locks.state.lock();
            while state.has(ino, owner) && state.file(ino).returning {
                if asker
                    .patience
                    .wait(&self.locks.changed, &mut state)
                    .is_err()
                {
                    break;
                }
            }
        }
        if let Some(epoch) = self.begin_release(ino, owner, false) {
            // If that fails, it is done in the background.
            self.release_now(asker, ino, owner, epoch).ok();
        }
    }

    /// Gives up what was locked through an open file.
    pub(super) fn release_locks(&self, handle: u64) {
        let owners = self.locks.state.lock().take_handle(handle);
        for (ino, owner) in owners {
            self.begin_release(ino, owner, true);
        }
    }

    /// Begins to release an owner's locks, and does it if that needs nobody else. If it is left to
    /// the caller, in which epoch.
    fn begin_release(&self, ino: InodeId, owner: LockOwner, queue: bool) -> Option<u64> {
        let mut state = self.locks.state.lock();
        if !state.begin_release(ino, owner) {
            return None;
        }
        if state.is_delegated(ino) {
            state.released(ino, owner);
            self.locks.changed.notify_all();
            return None;
        }
        if queue || !state.file(ino).is_releasable(owner) {
            state.releases.push_back((ino, owner));
            self.locks.changed.notify_all();
            return None;
        }
        state.file(ino).busy.insert(owner);
        Some(state.epoch)
    }

    /// Unlocks everything of an owner, which is entered as busy already. If that fails, it is to be tried again.
    fn release_now(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        owner: LockOwner,
        epoch: u64,
    ) -> FsResult<()> {
        let mutation = Mutation::Unlock {
            ino,
            owner,
            first: 0,
            last: u64::MAX,
        };
        let done = self.mutate(asker, ino, &mutation);
        let mut state = self.locks.state.lock();
        // What an owner has under the next session is not what was to be released.
        if state.epoch == epoch {
            match done {
                Ok(_) => state.released(ino, owner),
                Err(_) => state.releases.push_back((ino, owner)),
            }
        }
        self.locks.step_over(&mut state, ino, owner);
        done.map(drop)
    }

    fn release_late(&self, ino: InodeId, owner: LockOwner) {
        let epoch = {
            let mut state = self.locks.state.lock();
            if !state.is_releasing(ino, owner) {
                // That went with its session; what there is now is of the next one.
                return;
            }
            if !state.has(ino, owner) || state.is_delegated(ino) {
                state.released(ino, owner);
                self.locks.changed.notify_all();
                return;
            }
            if !state.file(ino).is_releasable(owner) {
                state.releases.push_back((ino, owner));
                self.locks.changed.wait_for(&mut state, SLICE);
                return;
            }
            state.file(ino).busy.insert(owner);
            state.epoch
        };
        let asker = Asker::background(Patience::background(&self.halt, None));
        if let Err(error) = self.release_now(&asker, ino, owner, epoch) {
            tracing::debug!(%ino, %error, "locks of a closed file are not released yet");
            self.halt.sleep(SLICE);
        }
    }
}
