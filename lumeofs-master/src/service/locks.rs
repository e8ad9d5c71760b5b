//! Requests that wait for locks, and the recall of those that are delegated: drives `LockWaits` of `lumeofs-lease`.

use super::metadata::{MetadataService, decode};
use crate::raft::{Overlay, Term};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::limits::LOCK_WAIT_ANSWER;
use lumeofs_base::{FsResult, InodeId, SessionId};
use lumeofs_lease::{LockVerdict, LockWaits, LockWish, TERM};
use lumeofs_meta::op::{Command, Mutation};
use lumeofs_proto::meta;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Who waits. Under another leadership all ask anew, so what an earlier one left does no harm.
#[derive(Default)]
pub(crate) struct Locks {
    waits: Mutex<LockWaits>,
    /// Locks were let go: requests that wait look.
    freed: Notify,
}

impl Locks {
    /// Takes commands that were applied, when they can be seen.
    pub(crate) fn applied(&self, commands: &[Command]) {
        let mut waits = self.waits.lock();
        let freed = commands
            .iter()
            .fold(false, |freed, command| waits.applied(command) | freed);
        drop(waits);
        if freed {
            self.freed.notify_waiters();
        }
    }

    /// Inodes whose locks a session should give back, if it is to be told now.
    pub(crate) fn recalls(&self, session: SessionId, now: bool) -> Vec<u64> {
        if !now {
            return Vec::new();
        }
        let inodes = self.waits.lock().recalls(SystemClock.monotonic(), session);
        inodes.into_iter().map(InodeId::get).collect()
    }

    /// A mutation as it is to be proposed: while others wait for locks of an inode, these are delegated to nobody.
    pub(super) fn without_waiters(&self, session: SessionId, mutation: Mutation) -> Mutation {
        match mutation {
            Mutation::Lock {
                ino,
                lock,
                delegated: true,
            } => {
                let (now, waits) = (SystemClock.monotonic(), self.waits.lock());
                Mutation::Lock {
                    ino,
                    lock,
                    delegated: !waits.has_others(now, ino, (session, lock.owner)),
                }
            }
            other => other,
        }
    }

    /// `None`: who asks has given up since it was told to wait.
    fn judge(
        &self,
        tables: &Overlay,
        wish: &LockWish,
        again: bool,
    ) -> FsResult<Option<LockVerdict>> {
        let (now, mut waits) = (SystemClock.monotonic(), self.waits.lock());
        match again {
            true => waits.judge_again(tables, now, wish),
            false => waits.judge(tables, now, wish).map(Some),
        }
    }
}

impl MetadataService {
    /// Says whether a lock may be tried, when it may or after a while.
    pub(crate) async fn lock_wait(&self, request: &meta::LockWait) -> FsResult<meta::LockVerdict> {
        let wait = Duration::from_millis(request.wait_ms.into()).min(LOCK_WAIT_ANSWER);
        let (begun, until) = (SystemClock.monotonic(), Instant::now() + wait);
        let mut wish = LockWish {
            session: SessionId(request.session),
            ino: InodeId(request.ino),
            lock: decode(&request.lock)?,
            waited: Duration::from_millis(request.waited_ms),
            just_to_know: request.just_to_know,
        };
        if request.gone {
            self.locks.waits.lock().forget(&wish);
            return Ok(meta::LockVerdict::default());
        }
        let still_waits = meta::LockVerdict {
            wait: true,
            ..meta::LockVerdict::default()
        };
        let mut again = false;
        loop {
            self.group.linearizable().await?;
            self.check_session(wish.session)?;
            self.sessions.touch(wish.session);
            let freed = self.locks.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            // It has its place by when it came, not by when it is looked at.
            let here = SystemClock.monotonic().saturating_sub(begun);
            wish.waited = Duration::from_millis(request.waited_ms).saturating_add(here);
            let judge = |tables: &_| self.locks.judge(tables, &wish, again);
            let Some(verdict) = self.group.store().read(judge)? else {
                // Nobody listens; who does after all asks again.
                return Ok(still_waits);
            };
            again = true;
            match verdict {
                LockVerdict::Try => return Ok(meta::LockVerdict::default()),
                LockVerdict::Deadlock => {
                    return Ok(meta::LockVerdict {
                        deadlock: true,
                        ..meta::LockVerdict::default()
                    });
                }
                LockVerdict::Wait => {}
                LockVerdict::Recall(_) => self.leases.wake_polls(),
            }
            if timeout_at(until, freed).await.is_err() {
                return Ok(still_waits);
            }
        }
    }

    /// Sessions to which locks are delegated for which others wait, and that do not hear that, or do not give them back:
    /// they keep nobody waiting for longer than one that keeps a lease. To be asked only when all could be heard.
    pub(super) fn overdue_delegates(&self, term: Term, now: Duration) -> BTreeSet<SessionId> {
        let is_silent = |session| self.sessions.silence(term, session, now) > TERM;
        let overdue = |tables: &Overlay| self.locks.waits.lock().overdue(tables, now, &is_silent);
        self.group.store().read(overdue)
    }
}
