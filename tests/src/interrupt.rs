//! Ctrl-C in a program that must clean up after itself: whoever waits for something ends as if it had failed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on every wait of this library panics, so that all guards are dropped.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Whether [`interrupt`] was called.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Sleeps, unless the program is interrupted.
pub fn pause(length: Duration) {
    let begun = Instant::now();
    loop {
        // While guards are dropped a second panic would end the process.
        assert!(
            std::thread::panicking() || !interrupted(),
            "interrupted by a signal"
        );
        let left = length.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
