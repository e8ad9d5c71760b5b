//! The client against servers in this process: the real namespace state machine, chunks in memory,
//! and faults where a test wants them.

mod ahead;
mod cached;
mod closing;
mod cluster;
mod coherence;
mod copy;
mod files;
mod kernel;
mod late;
mod leases;
mod locks;
mod making;
mod meta;
mod rights;
mod unsent;

use std::time::Duration;

/// Waits until a condition holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = crate::wait::now();
    while !holds() {
        assert!(
            crate::wait::now() - start < Duration::from_secs(60),
            "waited for: {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}
