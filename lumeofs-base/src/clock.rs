//! Time as data. The only place that reads the machine's clocks.

use crate::Timestamp;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
        // Through the C library, which rustix goes past: tests of clocks that jump stand in front of it.
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Timestamp {
                secs: since.as_secs().cast_signed(),
                nanos: since.subsec_nanos(),
            },
            Err(before) => before_1970(before.duration()),
        }
    }
}

/// A time that is so much before 1970: seconds round down, since nanoseconds count upwards.
const fn before_1970(distance: Duration) -> Timestamp {
    let (secs, nanos) = (distance.as_secs().cast_signed(), distance.subsec_nanos());
    match nanos {
        0 => Timestamp { secs: -secs, nanos },
        _ => Timestamp {
            secs: -secs - 1,
            nanos: 1_000_000_000 - nanos,
        },
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_whose_clock_is_before_1970_has_times_that_go_up() {
        let at = |nanos| before_1970(Duration::from_nanos(nanos));
        let time = |secs, nanos| Timestamp { secs, nanos };
        assert_eq!(at(1), time(-1, 999_999_999));
        assert_eq!(at(1_000_000_000), time(-1, 0));
        assert_eq!(at(1_500_000_000), time(-2, 500_000_000));
    }

    #[test]
    fn the_wall_clock_is_that_of_the_machine() {
        let machine = || rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
        let (before, wall, after) = (machine(), SystemClock.wall().secs, machine());
        assert!((before - 1..=after + 1).contains(&wall));
    }
}
