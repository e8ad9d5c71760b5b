//! How long a call waits: until its answer, its caller's signal, its time limit, or the client's end.
//!
//! Every wait of this crate goes through a [`Patience`], in slices of [`SLICE`], so that none lasts
//! longer than its caller.

use crate::client::{Context, OnOutage};
use lumeofs_base::clock::{Clock, SystemClock};
use lumeofs_base::limits::{LEAVE_PATIENCE, REQUEST_TIMEOUT};
use lumeofs_base::{Code, FsError, FsResult, RequestId};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a waiting thread looks whether it should go on.
pub(crate) const SLICE: Duration = Duration::from_millis(50);

/// The monotonic clock.
pub(crate) fn now() -> Duration {
    SystemClock.monotonic()
}

/// The end of the client: set once, wakes all who sleep. Before it may come its announcement.
#[derive(Debug, Default)]
pub(crate) struct Halt {
    halted: AtomicBool,
    leaving: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Halt {
    /// Ends all waits. Says whether it was the first call.
    pub(crate) fn halt(&self) -> bool {
        let _lock = self.lock.lock();
        let first = !self.halted.swap(true, Ordering::SeqCst);
        self.changed.notify_all();
        first
    }

    pub(crate) fn is_halted(&self) -> bool {
        self.halted.load(Ordering::SeqCst)
    }

    /// From now on no caller waits out an outage for longer than [`LEAVE_PATIENCE`].
    pub(crate) fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    /// Sleeps, less long if the client ends.
    pub(crate) fn sleep(&self, time: Duration) {
        let mut lock = self.lock.lock();
        if !self.is_halted() {
            self.changed.wait_for(&mut lock, time);
        }
    }
}

/// How long an outage may last.
pub(crate) fn limit_of(on_outage: OnOutage) -> Option<Duration> {
    match on_outage {
        OnOutage::Block(limit) => limit,
        OnOutage::Eio => Some(REQUEST_TIMEOUT),
    }
}

/// What a call may wait for. The time limit counts from the last progress, so that only an outage
/// ends a call, not its size.
pub(crate) struct Patience<'a> {
    /// What is waited for, as logs name it.
    request: RequestId,
    interrupted: &'a (dyn Fn() -> bool + Sync),
    halt: &'a Halt,
    limit: Option<Duration>,
    /// What the time limit counts from.
    since: Cell<Duration>,
    /// The time limit counts from the start instead.
    fixed: bool,
    /// For a caller, whose patience ends sooner when the client is about to.
    of_caller: bool,
    /// Less of it for datanodes.
    of_data: Option<Duration>,
    /// When it was looked last whether to wait on.
    checked: Cell<Duration>,
}

impl<'a> Patience<'a> {
    /// Patience of a caller.
    pub(crate) fn new(cx: &Context<'a>, halt: &'a Halt, on_outage: OnOutage) -> Self {
        Self {
            of_caller: true,
            ..Self::of(cx.request, cx.interrupted, halt, limit_of(on_outage))
        }
    }

    /// Patience of a background thread that does what callers did not wait for: as much as theirs.
    pub(crate) fn deferred(halt: &'a Halt, on_outage: OnOutage) -> Self {
        Self::background(halt, limit_of(on_outage))
    }

    /// Patience of a background thread.
    pub(crate) fn background(halt: &'a Halt, limit: Option<Duration>) -> Self {
        Self::of(RequestId::next(), &|| false, halt, limit)
    }

    fn of(
        request: RequestId,
        interrupted: &'a (dyn Fn() -> bool + Sync),
        halt: &'a Halt,
        limit: Option<Duration>,
    ) -> Self {
        Self {
            request,
            interrupted,
            halt,
            limit,
            since: Cell::new(now()),
            fixed: false,
            of_caller: false,
            of_data: None,
            checked: Cell::new(now()),
        }
    }

    /// The same, ending whatever progress there was.
    pub(crate) fn fixed(mut self) -> Self {
        self.fixed = true;
        self
    }

    /// The same, with less for datanodes: an outage of some of them is not one of all.
    pub(crate) fn with_datanodes(mut self, limit: Duration) -> Self {
        self.of_data = Some(limit);
        self
    }

    /// What there is for datanodes, if that is less.
    pub(crate) fn of_data(&self) -> Option<Self> {
        let limit = self.of_data?;
        Some(Self {
            limit: Some(self.limit.map_or(limit, |own| own.min(limit))),
            ..self.renewed()
        })
    }

    /// As much patience again.
    pub(crate) fn renewed(&self) -> Self {
        Self {
            of_caller: self.of_caller,
            of_data: self.of_data,
            ..Self::of(self.request, self.interrupted, self.halt, self.limit)
        }
    }

    /// Names the call in logs.
    pub(crate) fn request(&self) -> RequestId {
        self.request
    }

    /// A server answered: the time limit starts anew.
    pub(crate) fn progressed(&self) {
        if !self.fixed {
            self.since.set(now());
        }
    }

    /// The time limit as it is at this moment.
    pub(crate) fn limit_now(&self) -> Option<Duration> {
        if self.of_caller && self.halt.leaving.load(Ordering::SeqCst) {
            return Some(self.limit.unwrap_or(LEAVE_PATIENCE).min(LEAVE_PATIENCE));
        }
        self.limit
    }

    /// Fails if there is no reason to wait on.
    pub(crate) fn check(&self) -> FsResult<()> {
        self.checked.set(now());
        if self.halt.is_halted() {
            return Err(FsError::new(Code::Unavailable, "the client was closed"));
        }
        if (self.interrupted)() {
            return Err(FsError::new(
                Code::Interrupted,
                "the caller was interrupted",
            ));
        }
        match self.limit_now() {
            Some(limit) if now() >= self.since.get().saturating_add(limit) => Err(FsError::new(
                Code::Unavailable,
                format!("no answer from the cluster for {} ms", limit.as_millis()),
            )),
            _ => Ok(()),
        }
    }

    /// Waits before another attempt.
    pub(crate) fn pause(&self, time: Duration) -> FsResult<()> {
        let until = now() + time;
        loop {
            let left = until.saturating_sub(now());
            if left.is_zero() {
                return Ok(());
            }
            self.halt.sleep(left.min(SLICE));
            self.check()?;
        }
    }

    /// Waits for a change that `changed` announces; spurious returns are allowed.
    pub(crate) fn wait<T>(&self, changed: &Condvar, guard: &mut MutexGuard<'_, T>) -> FsResult<()> {
        let has_changed = !changed.wait_for(guard, SLICE).timed_out();
        // Changes that are none for this one may follow each other closely.
        if has_changed && now() < self.checked.get() + SLICE {
            return Ok(());
        }
        MutexGuard::unlocked(guard, || self.check())
    }

    /// Locks a mutex that may be held over a wait for a server.
    pub(crate) fn lock<'m, T>(&self, mutex: &'m Mutex<T>) -> FsResult<MutexGuard<'m, T>> {
        loop {
            if let Some(guard) = mutex.try_lock_for(SLICE) {
                return Ok(guard);
            }
            self.check()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_of_changes_hides_no_signal() {
        let (halt, lock, changed) = (Halt::default(), Mutex::new(()), Condvar::new());
        let is_over = AtomicBool::new(false);
        let interrupted = || true;
        let patience = Patience::of(RequestId::next(), &interrupted, &halt, None);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    drop(lock.lock());
                    changed.notify_all();
                    halt.sleep(Duration::from_millis(1));
                }
            });
            let (start, mut guard) = (now(), lock.lock());
            let mut waited = Ok(());
            while waited.is_ok() && now() - start < Duration::from_secs(5) {
                waited = patience.wait(&changed, &mut guard);
            }
            drop(guard);
            is_over.store(true, Ordering::SeqCst);
            assert_eq!(waited.unwrap_err().code, Code::Interrupted);
        });
    }
}
