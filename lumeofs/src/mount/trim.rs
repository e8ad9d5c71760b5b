//! Memory that the mount process has freed goes back to the machine. The allocator keeps it otherwise, in as many arenas as
//! there are threads: hundreds of MiB after the leases and data of a large tree were given up.

use std::time::Duration;

/// How often it is looked at.
const EVERY: Duration = Duration::from_secs(10);
/// Less than this is kept for what comes next.
const KEPT_BYTES: usize = 64 << 20;

/// Looks after it in a thread of its own, for as long as the process lives.
///
/// # Errors
/// There is no room for another thread.
pub(super) fn start() -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("trim".into());
    thread.spawn(|| {
        loop {
            std::thread::sleep(EVERY);
            if free_bytes() > KEPT_BYTES {
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
