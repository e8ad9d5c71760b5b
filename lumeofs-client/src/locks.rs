//! Locks of this client's callers: `fcntl(2)` and `flock(2)` across all clients.
//!
//! The leader's group has the account of all locks. As long as one client alone locks an inode, the group leaves the account of
//! that inode to it (*delegated*), and locking costs no request; when another one comes, the leader asks for it back. Whoever has
//! to wait asks the leader again and again, which answers when there is a chance; nothing is granted to who does not ask.

mod background;
mod state;

use crate::client::{Client, Context};
use crate::link::{Asker, Link};
use crate::meta::unexpected;
use crate::wait::{Patience, now};
use lumeofs_base::limits::{LOCK_WAIT_ANSWER, REQUEST_TIMEOUT};
use lumeofs_base::{Code, FsError, FsResult, InodeId};
use lumeofs_meta::locks::{HeldLock, Lock, LockAnswer, LockOwner};
use lumeofs_meta::op::{Mutation, Query, Reply};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{LockVerdict, LockWait};
pub(crate) use state::Locks;
use state::{Slot, is_open};
use std::time::Duration;

/// Pause of a waiter that the leader answers at once.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// How long the leader is told that nobody waits any more.
const GONE_LIMIT: Duration = Duration::from_millis(500);

/// Whether a caller that waits for a lock should wait no more.
pub type Interrupted<'a> = &'a (dyn Fn() -> bool + Sync);

/// What an attempt came to.
enum Tried {
    Done,
    /// Somebody has it.
    Held,
    /// Another caller of this client has it, and only this client knows.
    HeldHere,
    /// Another client decides.
    Elsewhere,
    /// The session was replaced meanwhile.
    Again,
}

impl Client {
    /// Locks a range in place of what its owner has there; `handle` is the open file through which. Waits for it if `wait` is
    /// given, until that says that the caller wants no more.
    ///
    /// # Errors
    /// `Again`: somebody else has it. `Interrupted`: `wait` said so; there is no lock then. `Deadlock`: it would wait for its own
    /// owner. `NoLocks`: there are too many. `Io` once, if locks or writes of this inode were lost with a session.
    pub fn lock(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        handle: u64,
        lock: Lock,
        wait: Option<Interrupted<'_>>,
    ) -> FsResult<()> {
        let link = &self.link;
        if let Some(inode) = link.inodes.find(ino) {
            inode.take_lost()?;
        }
        let (asker, since) = (link.asker(&cx), now());
        loop {
            match (link.try_lock(&asker, ino, handle, lock)?, wait) {
                (Tried::Done, _) => return Ok(()),
                (Tried::Again, _) => {}
                (Tried::Elsewhere, _) => {
                    let wish = Wish::new(ino, lock, since, true);
                    link.await_lock(&cx, wish, wait.unwrap_or(cx.interrupted))?;
                }
                (Tried::Held | Tried::HeldHere, None) => {
                    return Err(FsError::new(Code::Again, format!("lock of {ino}")));
                }
                (Tried::Held, Some(wait)) => {
                    let wish = Wish::new(ino, lock, since, false);
                    link.await_lock(&cx, wish, wait)?;
                }
                // The leader must see who waits for whom.
                (Tried::HeldHere, Some(wait)) => link.await_return(&cx, ino, wait)?,
            }
        }
    }

    /// Unlocks a range.
    pub fn unlock(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        owner: LockOwner,
        first: u64,
        last: u64,
    ) -> FsResult<()> {
        let asker = self.link.asker(&cx);
        self.link.unlock(&asker, ino, owner, first, last)
    }

    /// The lock that prevents one from being had, if any. Of another client's lock the process means nothing here, so it is 0.
    pub fn test_lock(&self, cx: Context<'_>, ino: InodeId, lock: Lock) -> FsResult<Option<Lock>> {
        let (asker, since) = (self.link.asker(&cx), now());
        loop {
            match self.link.test_lock(&asker, ino, lock)? {
                LockAnswer::Done | LockAnswer::Delegated => return Ok(None),
                LockAnswer::Held(held) => {
                    let own = held.session == self.link.window.session();
                    let pid = if own { held.lock.pid } else { 0 };
                    return Ok(Some(Lock { pid, ..held.lock }));
                }
                LockAnswer::DelegatedTo(_) => {
                    let wish = Wish::new(ino, lock, since, true);
                    self.link.await_lock(&cx, wish, cx.interrupted)?;
                }
            }
        }
    }

    /// Whether [`Client::close_locks`] has nothing to do. Never waits.
    pub fn has_no_locks(&self, ino: InodeId, owner: LockOwner) -> bool {
        !self.link.locks.state.lock().has(ino, owner)
    }

    /// Gives up all locks of an owner on an inode: it has closed it. If the caller does not wait for that, it is done in the
    /// background.
    pub fn close_locks(&self, cx: Context<'_>, ino: InodeId, owner: LockOwner) {
        self.link.close_locks(&self.link.asker(&cx), ino, owner);
    }

    /// Gives up what was locked through an open file, which is closed. Never waits.
    pub fn release_locks(&self, handle: u64) {
        self.link.release_locks(handle);
    }
}

/// What somebody waits for.
#[derive(Clone, Copy)]
struct Wish {
    ino: InodeId,
    lock: Lock,
    since: Duration,
    just_to_know: bool,
}

impl Wish {
    fn new(ino: InodeId, lock: Lock, since: Duration, just_to_know: bool) -> Self {
        Self {
            ino,
            lock,
            since,
            just_to_know,
        }
    }
}

impl Link {
    fn try_lock(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        handle: u64,
        lock: Lock,
    ) -> FsResult<Tried> {
        let (epoch, delegated) = loop {
            let is_valid = self.leases_are_valid();
            let mut state = self.locks.state.lock();
            if state.file(ino).is_moving(lock.owner) {
                asker.patience.wait(&self.locks.changed, &mut state)?;
                // That may have been a while.
                continue;
            }
            // Who may have been replaced asks first.
            if is_valid && state.file(ino).delegated {
                return state.lock_here(ino, handle, lock);
            }
            state.file(ino).busy.insert(lock.owner);
            break (state.epoch, !state.is_contended(ino, now()));
        };
        let mutation = Mutation::Lock {
            ino,
            lock,
            delegated,
        };
        let reply = self.mutate(asker, ino, &mutation);
        let mut state = self.locks.state.lock();
        let result = match reply {
            Ok(reply) if state.epoch != epoch => {
                // It may be one of the session that is now, and another attempt may not come to an end.
                if matches!(reply, Reply::Lock(LockAnswer::Done)) {
                    state.doubt(ino, handle, lock.owner);
                }
                Ok(Tried::Again)
            }
            Ok(Reply::Lock(LockAnswer::Done)) => {
                state.locked(ino, handle, lock);
                Ok(Tried::Done)
            }
            Ok(Reply::Lock(LockAnswer::Delegated)) => {
                state.delegated(ino);
                state.lock_here(ino, handle, lock)
            }
            Ok(Reply::Lock(LockAnswer::Held(_))) => {
                state.converted_in_vain(ino, lock);
                state.contended(ino, now());
                Ok(Tried::Held)
            }
            Ok(Reply::Lock(LockAnswer::DelegatedTo(_))) => {
                state.contended(ino, now());
                Ok(Tried::Elsewhere)
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) => {
                // Under whichever session: it may have been sent once more under the next one.
                if is_open(error.code) {
                    state.doubt(ino, handle, lock.owner);
                }
                Err(error)
            }
        };
        self.locks.step_over(&mut state, ino, lock.owner);
        result
    }

    fn unlock(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        owner: LockOwner,
        first: u64,
        last: u64,
    ) -> FsResult<()> {
        let epoch = {
            let mut state = self.locks.state.lock();
            while state.file(ino).is_moving(owner) {
                asker.patience.wait(&self.locks.changed, &mut state)?;
            }
            if !state.may_have_in(ino, owner, first, last) {
                state.tidy(ino);
                return Ok(());
            }
            if state.file(ino).delegated {
                return state.unlocked(ino, owner, first, last);
            }
            state.file(ino).busy.insert(owner);
            state.epoch
        };
        let mutation = Mutation::Unlock {
            ino,
            owner,
            first,
            last,
        };
        let reply = self.mutate(asker, ino, &mutation);
        let mut state = self.locks.state.lock();
        let result = match reply {
            Ok(_) if state.epoch == epoch => state.unlocked(ino, owner, first, last),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        self.locks.step_over(&mut state, ino, owner);
        result
    }

    fn test_lock(&self, asker: &Asker<'_>, ino: InodeId, lock: Lock) -> FsResult<LockAnswer> {
        let is_valid = self.leases_are_valid();
        let session = self.window.session();
        let here = || {
            let mut state = self.locks.state.lock();
            let held = state.conflict_here(ino, lock);
            held.map(|lock| LockAnswer::Held(HeldLock { session, lock }))
        };
        if is_valid && self.locks.state.lock().is_delegated(ino) {
            return Ok(here().unwrap_or(LockAnswer::Done));
        }
        let query = Query::TestLock { ino, session, lock };
        match self.ask(asker, ino, &query)? {
            Reply::Lock(LockAnswer::Delegated) => Ok(here().unwrap_or(LockAnswer::Done)),
            Reply::Lock(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }

    /// Has the locks of an inode given back, and waits for that.
    fn await_return(
        &self,
        cx: &Context<'_>,
        ino: InodeId,
        interrupted: Interrupted<'_>,
    ) -> FsResult<()> {
        let cx = Context { interrupted, ..*cx };
        let asker = self.asker(&cx);
        let mut state = self.locks.state.lock();
        while state.decides(ino) {
            // Also if it has failed, or was delegated anew.
            if state.is_delegated(ino) && state.recall(ino) {
                self.locks.changed.notify_all();
            }
            asker.patience.wait(&self.locks.changed, &mut state)?;
        }
        Ok(())
    }

    /// Waits until there is a chance for a lock. When this has failed, nothing is left that could grant it.
    fn await_lock(
        &self,
        cx: &Context<'_>,
        wish: Wish,
        interrupted: Interrupted<'_>,
    ) -> FsResult<()> {
        let cx = Context { interrupted, ..*cx };
        let asker = self.asker(&cx);
        let result = self.ask_for_lock(&asker, wish);
        if result.is_err() {
            let patience = Patience::background(&self.halt, Some(GONE_LIMIT)).fixed();
            // It would be forgotten soon in any case.
            self.ask_leader(&patience, wish, Duration::ZERO, true).ok();
        }
        result
    }

    fn ask_for_lock(&self, asker: &Asker<'_>, wish: Wish) -> FsResult<()> {
        loop {
            asker.patience.check()?;
            // Only some keep a connection busy while they wait.
            let slot = Slot::take(&self.locks);
            let wait = match slot {
                Some(_) => LOCK_WAIT_ANSWER,
                None => Duration::ZERO,
            };
            let session = self.window.session();
            match self.ask_leader(&asker.patience, wish, wait, false) {
                Ok(LockVerdict { deadlock: true, .. }) => {
                    let text = format!("who has the lock of {} waits for this owner", wish.ino);
                    return Err(FsError::new(Code::Deadlock, text));
                }
                Ok(LockVerdict { wait: false, .. }) => return Ok(()),
                Ok(_) if slot.is_some() => {}
                Ok(_) => asker.patience.pause(ASK_AGAIN)?,
                Err(error) if error.code == Code::SessionExpired => {
                    self.renew_session(session, &asker.patience)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn ask_leader(
        &self,
        patience: &Patience<'_>,
        wish: Wish,
        wait: Duration,
        gone: bool,
    ) -> FsResult<LockVerdict> {
        let lock = postcard::to_stdvec(&wish.lock)
            .map_err(|error| FsError::new(Code::Invalid, format!("encode a lock: {error}")))?;
        let make = || LockWait {
            session: self.window.session().get(),
            ino: wish.ino.get(),
            lock: lock.clone().into(),
            waited_ms: now().saturating_sub(wish.since).as_millis() as u64,
            wait_ms: wait.as_millis() as u32,
            just_to_know: wish.just_to_know,
            gone,
        };
        self.masters
            .call_waiting(patience, Op::LockWait, REQUEST_TIMEOUT, wait, make)
    }
}
