//! The locks of the filesystem in memory: one mount's, and those of another one that tests take.

use lumeofs_base::{Code, FsResult, InodeId, SessionId};
use lumeofs_client::Interrupted;
use lumeofs_meta::locks::{Lock, LockList, LockOwner};
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

const OWN: SessionId = SessionId(1);
const OTHER: SessionId = SessionId(2);

#[derive(Default)]
pub(super) struct Locks {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lists: HashMap<InodeId, LockList>,
    handles: HashMap<u64, HashSet<(InodeId, LockOwner)>>,
    waiting: usize,
}

impl Locks {
    pub(super) fn lock(
        &self,
        ino: InodeId,
        handle: u64,
        lock: Lock,
        wait: Option<Interrupted<'_>>,
    ) -> FsResult<()> {
        let mut state = self.state.lock();
        while state
            .lists
            .entry(ino)
            .or_default()
            .try_lock(OWN, lock)?
            .is_some()
        {
            let interrupted = wait.ok_or(Code::Again)?;
            if interrupted() {
                return Err(Code::Interrupted.into());
            }
            state.waiting += 1;
            self.changed.wait_for(&mut state, Duration::from_millis(20));
            state.waiting -= 1;
        }
        let owners = state.handles.entry(handle).or_default();
        owners.insert((ino, lock.owner));
        Ok(())
    }

    pub(super) fn unlock(&self, ino: InodeId, owner: LockOwner, first: u64, last: u64) {
        let mut state = self.state.lock();
        let list = state.lists.entry(ino).or_default();
        list.unlock(OWN, owner, first, last).unwrap();
        self.changed.notify_all();
    }

    pub(super) fn test(&self, ino: InodeId, lock: Lock) -> Option<Lock> {
        let mut state = self.state.lock();
        let list = state.lists.entry(ino).or_default();
        let held = list.conflicts(OWN, lock).next();
        held.map(|held| held.lock)
    }

    pub(super) fn has_none(&self, ino: InodeId, owner: LockOwner) -> bool {
        let mut state = self.state.lock();
        !state.lists.entry(ino).or_default().has(OWN, owner)
    }

    pub(super) fn release(&self, handle: u64) {
        let owners = self.state.lock().handles.remove(&handle);
        for (ino, owner) in owners.unwrap_or_default() {
            self.unlock(ino, owner, 0, u64::MAX);
        }
    }

    /// Locks on another mount.
    pub(super) fn lock_elsewhere(&self, ino: InodeId, lock: Lock) {
        let mut state = self.state.lock();
        let held = state.lists.entry(ino).or_default().try_lock(OTHER, lock);
        assert_eq!(held, Ok(None));
    }

    pub(super) fn count(&self) -> usize {
        let state = self.state.lock();
        state.lists.values().map(|list| list.iter().count()).sum()
    }

    pub(super) fn waiting(&self) -> usize {
        self.state.lock().waiting
    }
}
