//! Slow operations are logged, each at every process that it passed, but never so many that the log fills.
//!
//! What counts as slow is one number of the process, as the log's filter is.

use crate::clock::{Clock as _, SystemClock};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What counts as slow unless somebody says otherwise.
pub const SLOW_DEFAULT: Duration = Duration::from_secs(1);
/// Lines a second. Several, so that those of one operation are found at all of its processes.
const LINES_MAX: u32 = 10;

static SLOW_MS: AtomicU64 = AtomicU64::new(SLOW_DEFAULT.as_millis() as u64);

/// From now on operations of this process count as slow from `threshold` on.
pub fn set_threshold(threshold: Duration) {
    let ms = u64::try_from(threshold.as_millis()).unwrap_or(u64::MAX);
    SLOW_MS.store(ms, Ordering::Relaxed);
}

/// What counts as slow.
pub fn threshold() -> Duration {
    Duration::from_millis(SLOW_MS.load(Ordering::Relaxed))
}

/// Slow operations of one kind of server, counted and held back.
#[derive(Debug, Default)]
pub struct SlowLog {
    seen: AtomicU64,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    second: u64,
    told: u32,
    held_back: u64,
}

impl SlowLog {
    /// How many operations were slow.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Whether to log an operation that took so long: if so, the number of those held back before it.
    pub fn tell(&self, took: Duration) -> Option<u64> {
        if took < threshold() {
            return None;
        }
        self.seen.fetch_add(1, Ordering::Relaxed);
        self.lines
            .lock()
            .tell(SystemClock.monotonic().as_secs().wrapping_add(1))
    }
}

impl Lines {
    fn tell(&mut self, second: u64) -> Option<u64> {
        if self.second != second {
            (self.second, self.told) = (second, 0);
        }
        if self.told == LINES_MAX {
            self.held_back += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quick_is_not_told_and_of_the_slow_some_a_second() {
        let log = SlowLog::default();
        assert_eq!(log.tell(threshold() - Duration::from_millis(1)), None);
        assert_eq!(log.seen(), 0);
        assert_eq!(log.tell(threshold()), Some(0));
        assert_eq!(log.seen(), 1);

        let mut lines = Lines::default();
        let told = (0..25).filter(|_| lines.tell(7).is_some()).count();
        assert_eq!(told, LINES_MAX as usize);
        assert_eq!(lines.tell(8), Some(15));
        assert_eq!(lines.tell(8), Some(0));
    }
}
