//! Time as data. The only place that reads the machine's clocks.

use crate::Timestamp;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

/// The two clocks of a process.
pub trait Clock: Send + Sync {
    /// Time since an arbitrary start, never going back, running on while the machine sleeps.
    /// Leases and time-outs are measured with it.
    fn monotonic(&self) -> Duration;
    /// Wall-clock time, for time stamps of files only; it may jump.
    fn wall(&self) -> Timestamp;
}

/// The machine's clocks: CLOCK_BOOTTIME and CLOCK_REALTIME.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
    }

    fn wall(&self) -> Timestamp {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Timestamp {
            secs: time.tv_sec,
            nanos: time.tv_nsec as u32,
        }
    }
}

/// A clock that a test moves by hand.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<Mutex<Duration>>);

impl ManualClock {
    /// Moves time forward.
    pub fn advance(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

impl Clock for ManualClock {
    fn monotonic(&self) -> Duration {
        *self.0.lock()
    }

    fn wall(&self) -> Timestamp {
        let now = *self.0.lock();
        Timestamp {
            secs: now.as_secs().cast_signed(),
            nanos: now.subsec_nanos(),
        }
    }
}
