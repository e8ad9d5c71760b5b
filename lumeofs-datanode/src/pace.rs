//! How fast members are caught up, so that clients notice little of it.
//!
//! What is held back is the news that a member has written a piece: the next one is read and sent only after it. Operations
//! go by the same stream and are not held back, so no writer waits for a catch-up.

use crate::group::{Caller, GroupDriver};
use lumeofs_base::NodeId;
use lumeofs_base::limits::{IO_BYTES_MAX, REPAIR_IDLE_FACTOR};
use lumeofs_replica::{StreamId, ToPrimary};
use parking_lot::{Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Time between two calls of [`Pace::tick`], about.
const TICK: Duration = Duration::from_millis(100);
/// Requests of clients in a tick from which on they count as at work.
const BUSY_REQUESTS: u64 = 5;
/// Ticks without so many after which they do not.
const IDLE_TICKS: u32 = 10;

/// A bucket of bytes that fills with time.
#[derive(Default)]
pub(crate) struct Pace {
    requests: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    bytes: u64,
    quiet_ticks: u32,
    held: VecDeque<Held>,
}

/// A member has written a piece, which its primary has not been told yet.
struct Held {
    driver: Arc<GroupDriver>,
    member: NodeId,
    stream: StreamId,
}

impl Held {
    fn tell(self) {
        self.driver.with(Caller::Quick, |core, now| {
            core.on_answer(self.member, self.stream, ToPrimary::Copied, now);
        });
    }
}

impl Pace {
    /// A client's request.
    pub(crate) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// A member has written a piece: its group hears of it when it is time for the next.
    pub(crate) fn copied(&self, driver: &Arc<GroupDriver>, member: NodeId, stream: StreamId) {
        let held = Held {
            driver: driver.clone(),
            member,
            stream,
        };
        let mut inner = self.inner.lock();
        if !inner.held.is_empty() || !inner.take() {
            inner.held.push_back(held);
            return;
        }
        drop(inner);
        held.tell();
    }

    /// Time has passed: `rate` is in bytes a second.
    pub(crate) fn tick(&self, rate: u64) {
        let requests = self.requests.swap(0, Ordering::Relaxed);
        let mut inner = self.inner.lock();
        inner.refill(rate, requests);
        while let Some(held) = inner.next() {
            MutexGuard::unlocked(&mut inner, || held.tell());
        }
        for held in &inner.held {
            held.driver.with(Caller::Quick, |core, now| {
                core.on_held_back(held.member, held.stream, now);
            });
        }
    }
}

impl Inner {
    fn refill(&mut self, rate: u64, requests: u64) {
        let busy = requests >= BUSY_REQUESTS;
        self.quiet_ticks = if busy {
            0
        } else {
            self.quiet_ticks.saturating_add(1)
        };
        let factor = if self.quiet_ticks > IDLE_TICKS {
            REPAIR_IDLE_FACTOR
        } else {
            1
        };
        let filled = rate.saturating_mul(factor) / (1000 / TICK.as_millis() as u64);
        // What was not used in two ticks is not saved up.
        let most = (filled * 2).max(IO_BYTES_MAX as u64);
        self.bytes = (self.bytes + filled).min(most);
    }

    /// Pays for one piece.
    fn take(&mut self) -> bool {
        let piece = IO_BYTES_MAX as u64;
        let pays = self.bytes >= piece;
        if pays {
            self.bytes -= piece;
        }
        pays
    }

    fn next(&mut self) -> Option<Held> {
        if self.held.is_empty() || !self.take() {
            return None;
        }
        self.held.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that are let through in ten seconds of ticks.
    fn let_through(rate: u64, requests: u64) -> u64 {
        let mut inner = Inner::default();
        let mut pieces = 0;
        for _ in 0..100 {
            inner.refill(rate, requests);
            while inner.take() {
                pieces += 1;
            }
        }
        pieces * IO_BYTES_MAX as u64
    }

    #[test]
    fn the_rate_is_kept_while_clients_work_and_is_higher_when_none_does() {
        let rate = 32 << 20;
        let busy = let_through(rate, BUSY_REQUESTS);
        assert!((9 * rate..=10 * rate).contains(&busy), "{busy}");
        let idle = let_through(rate, 0);
        assert!(idle > busy * 6, "{idle}");
    }

    #[test]
    fn a_low_rate_lets_something_through() {
        let rate = 1 << 20;
        let busy = let_through(rate, 100);
        assert!((8 * rate..=10 * rate).contains(&busy), "{busy}");
    }
}
