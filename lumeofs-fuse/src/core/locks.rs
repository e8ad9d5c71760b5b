//! Locks of fcntl(2) and flock(2).

use super::Core;
use crate::kernel::LockRange;
use lumeofs_base::{Code, FsError, FsResult, InodeId};
use lumeofs_client::{Context, Interrupted};
use lumeofs_meta::locks::{Lock, LockKind, LockOwner, LockSpace};

impl Core {
    /// Locks or unlocks.
    pub(crate) fn setlk(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        handle: u64,
        range: LockRange,
        wait: Option<Interrupted<'_>>,
    ) -> FsResult<()> {
        if range.kind == libc::F_UNLCK {
            let owner = owner(&range);
            return self.backend.unlock(cx, ino, owner, range.first, range.last);
        }
        self.backend.lock(cx, ino, handle, lock(&range)?, wait)
    }

    /// What prevents a lock, or that nothing does.
    pub(crate) fn getlk(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        range: LockRange,
    ) -> FsResult<LockRange> {
        let found = self.backend.test_lock(cx, ino, lock(&range)?)?;
        Ok(match found {
            Some(held) => LockRange {
                first: held.first,
                last: held.last,
                kind: match held.kind {
                    LockKind::Shared => libc::F_RDLCK,
                    LockKind::Exclusive => libc::F_WRLCK,
                },
                pid: held.pid,
                ..range
            },
            None => LockRange {
                kind: libc::F_UNLCK,
                pid: 0,
                ..range
            },
        })
    }

    /// Whether a close by this owner unlocks nothing. Never waits.
    pub(crate) fn is_unlocked(&self, ino: InodeId, owner: u64) -> bool {
        self.backend.has_no_locks(ino, of_process(owner))
    }

    /// A process has closed a file: what it has locked in it by fcntl(2) is unlocked, whichever of its open files that was.
    pub(crate) fn close_locks(&self, cx: Context<'_>, ino: InodeId, owner: u64) {
        self.backend.close_locks(cx, ino, of_process(owner));
    }
}

fn of_process(id: u64) -> LockOwner {
    let space = LockSpace::Range;
    LockOwner { space, id }
}

fn owner(range: &LockRange) -> LockOwner {
    LockOwner {
        space: match range.flock {
            true => LockSpace::File,
            false => LockSpace::Range,
        },
        id: range.owner,
    }
}

fn lock(range: &LockRange) -> FsResult<Lock> {
    let kind = match range.kind {
        libc::F_RDLCK => LockKind::Shared,
        libc::F_WRLCK => LockKind::Exclusive,
        other => return Err(FsError::new(Code::Invalid, format!("lock of type {other}"))),
    };
    Ok(Lock {
        owner: owner(range),
        pid: range.pid,
        kind,
        first: range.first,
        last: range.last,
    })
}
