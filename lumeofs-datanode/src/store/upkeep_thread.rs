//! The thread that keeps a store in shape. Tests leave it out and call `maintain` themselves.

use super::Core;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{Code, FsError, FsResult};
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long an operation that nobody syncs stays out of the log, and how soon work is noticed.
const IDLE_WAIT: Duration = Duration::from_millis(100);

/// How long to wait after a failure that may pass, such as a full disk.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// The same warning is told again after this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// A warning that repeats: told at once, then at most once in [`TELL_AGAIN`].
#[derive(Default)]
struct Repeated {
    told: Option<Duration>,
    held_back: u64,
}

impl Repeated {
    /// Whether to tell it now: the number held back since it was told last.
    fn tell(&mut self, now: Duration) -> Option<u64> {
        if self.told.is_some_and(|told| now < told + TELL_AGAIN) {
            self.held_back += 1;
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

/// Runs until it is dropped.
#[must_use]
pub struct UpkeepThread {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Stop {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Waits; whether the thread is to end.
    fn wait(&self, time: Duration) -> bool {
        let mut asked = self.asked.lock();
        if !*asked {
            self.changed.wait_for(&mut asked, time);
        }
        *asked
    }
}

impl UpkeepThread {
    pub(super) fn start(core: Arc<Core>) -> FsResult<Self> {
        let stop = Arc::new(Stop::default());
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("chunk-upkeep".into());
        let thread = thread
            .spawn(move || run(&core, &stopped))
            .map_err(|error| {
                FsError::new(
                    Code::Again,
                    format!("start the chunk store's upkeep thread: {error}"),
                )
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for UpkeepThread {
    fn drop(&mut self) {
        *self.stop.asked.lock() = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was reported when it happened.
            drop(thread.join());
        }
    }
}

fn run(core: &Core, stop: &Stop) {
    let mut full = Repeated::default();
    loop {
        let wait = match core.maintain() {
            Ok(true) => Duration::ZERO,
            Ok(false) => IDLE_WAIT,
            Err(error) if error.code == Code::NoSpace => {
                if let Some(held_back) = full.tell(SystemClock.monotonic()) {
                    tracing::warn!(%error, held_back, "upkeep of the chunk store");
                }
                RETRY_WAIT
            }
            // Told where it happened; the store is out of service.
            Err(_) => return,
        };
        if stop.wait(wait) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_warning_is_told_once_a_minute_with_a_count() {
        let mut full = Repeated::default();
        let told: Vec<_> = (0..=120)
            .filter_map(|second| Some((second, full.tell(Duration::from_secs(second))?)))
            .collect();
        assert_eq!(told, [(0, 0), (60, 59), (120, 59)]);
    }
}
