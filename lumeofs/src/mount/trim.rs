//! Memory that the mount process has freed goes back to the machine. The allocator keeps it otherwise, in as many arenas as
//! there are threads: hundreds of MiB after the leases and data of a large tree were given up.

use std::time::Duration;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(10);
/// Less than this is kept for what comes next.
const KEPT_BYTES: usize = 64 << 20;

/// What the allocator was told to give back.
#[derive(Debug, Default)]
struct Trimmed {
    /// Free since then. Pages that were given back count as free still, and giving back means to look at all of them.
    left_bytes: usize,
}

impl Trimmed {
    /// Whether so much was freed since that it is to be given back now.
    fn is_due(&mut self, free_bytes: usize) -> bool {
        // What was used again has pages again when it is freed.
        self.left_bytes = self.left_bytes.min(free_bytes);
        let is_due = free_bytes - self.left_bytes > KEPT_BYTES;
        if is_due {
            self.left_bytes = free_bytes;
        }
        is_due
    }
}

/// Looks after it in a thread of its own, for as long as the process lives.
///
/// # Errors
/// There is no room for another thread.
pub(super) fn start() -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("trim".into());
    thread.spawn(|| {
        let mut trimmed = Trimmed::default();
        loop {
            std::thread::sleep(EVERY);
            if trimmed.is_due(free_bytes()) {
                trim();
            }
        }
    })?;
    Ok(())
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "the allocator has no safe interface")]
fn free_bytes() -> usize {
    // SAFETY: it reads the allocator's own counters, under its own locks.
    unsafe { libc::mallinfo2() }.fordblks
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "the allocator has no safe interface")]
fn trim() {
    // SAFETY: it only gives unused pages back, under the allocator's own locks.
    unsafe { libc::malloc_trim(KEPT_BYTES / 4) };
}

/// Other allocators give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
fn free_bytes() -> usize {
    0
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_back_is_so_once() {
        let (mut trimmed, mib) = (Trimmed::default(), 1 << 20);
        assert!(!trimmed.is_due(64 * mib));
        assert!(trimmed.is_due(300 * mib));
        assert!(!trimmed.is_due(300 * mib) && !trimmed.is_due(310 * mib));
        // Used again, and freed again.
        assert!(!trimmed.is_due(100 * mib) && !trimmed.is_due(150 * mib));
        assert!(trimmed.is_due(165 * mib));
        assert!(!trimmed.is_due(0) && trimmed.is_due(65 * mib));
    }
}
