//! How long the calls of a load take, those that have not come back included.

use rustix::io::Errno;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Problems that are kept; more of them say nothing new.
const MAX_PROBLEMS: usize = 20;

/// A call that took long.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stall {
    /// How long.
    pub(super) length: Duration,
    /// Which call.
    pub(super) call: &'static str,
}

/// What the threads of a load see.
#[derive(Debug)]
pub(super) struct Watch {
    /// The call under way of each thread.
    calls: Mutex<Vec<Option<(Instant, &'static str)>>>,
    counts: Mutex<Counts>,
    allowed: &'static [Errno],
}

#[derive(Clone, Debug, Default)]
struct Counts {
    calls: u64,
    longest: Stall,
    /// Calls that failed as the fault allows.
    failed: u64,
    problems: Vec<String>,
}

impl Watch {
    /// For so many threads, whose calls may fail with these errors only.
    pub(super) fn new(threads: usize, allowed: &'static [Errno]) -> Self {
        Self {
            calls: Mutex::new(vec![None; threads]),
            counts: Mutex::default(),
            allowed,
        }
    }

    /// Makes a call of a thread.
    pub(super) fn time<T>(
        &self,
        thread: usize,
        name: &'static str,
        call: impl FnOnce() -> std::io::Result<T>,
    ) -> std::io::Result<T> {
        let begun = Instant::now();
        self.calls.lock().expect("no thread died with it")[thread] = Some((begun, name));
        let result = call();
        self.calls.lock().expect("no thread died with it")[thread] = None;
        let mut counts = self.counts.lock().expect("no thread died with it");
        counts.calls += 1;
        let length = begun.elapsed();
        if length > counts.longest.length {
            counts.longest = Stall { length, call: name };
        }
        result
    }

    /// A call failed. What the fault does not allow is a problem.
    pub(super) fn failed(&self, what: &str, error: &std::io::Error) {
        let allowed =
            Errno::from_io_error(error).is_some_and(|errno| self.allowed.contains(&errno));
        if allowed {
            self.counts.lock().expect("no thread died with it").failed += 1;
        } else {
            self.problem(format!("{what}: {error}"));
        }
    }

    /// Something is wrong.
    pub(super) fn problem(&self, text: String) {
        let mut counts = self.counts.lock().expect("no thread died with it");
        if counts.problems.len() < MAX_PROBLEMS {
            counts.problems.push(text);
        }
    }

    /// Forgets how long calls took until now.
    pub(super) fn reset(&self) {
        self.counts.lock().expect("no thread died with it").longest = Stall::default();
    }

    /// The longest call since [`Watch::reset`] or before it, the ones under way included.
    pub(super) fn longest(&self) -> Stall {
        let calls = self.calls.lock().expect("no thread died with it").clone();
        let ended = self.counts.lock().expect("no thread died with it").longest;
        let under_way = calls.into_iter().flatten().map(|(begun, call)| Stall {
            length: begun.elapsed(),
            call,
        });
        under_way
            .chain([ended])
            .max_by_key(|stall| stall.length)
            .unwrap_or_default()
    }

    /// Number of calls, and of those that failed as allowed.
    pub(super) fn calls(&self) -> (u64, u64) {
        let counts = self.counts.lock().expect("no thread died with it");
        (counts.calls, counts.failed)
    }

    /// What was wrong.
    pub(super) fn problems(&self) -> Vec<String> {
        self.counts
            .lock()
            .expect("no thread died with it")
            .problems
            .clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_call_that_does_not_come_back_is_a_stall() {
        let watch = Watch::new(2, &[]);
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let seen = &watch;
        std::thread::scope(|scope| {
            scope.spawn(move || seen.time(1, "write", || held.recv().map_err(Error::other)));
            while watch.longest().length < Duration::from_millis(30) {
                std::thread::yield_now();
            }
            assert_eq!(watch.longest().call, "write");
            drop(hold);
        });
        assert!(watch.longest().length >= Duration::from_millis(30));
        watch.reset();
        assert_eq!(watch.longest().length, Duration::ZERO);
        assert_eq!(watch.calls(), (1, 0));
    }

    #[test]
    fn only_errors_that_the_fault_allows_are_no_problem() {
        let watch = Watch::new(1, &[Errno::NOSPC]);
        watch.failed("write", &Errno::NOSPC.into());
        assert!(watch.problems().is_empty());
        assert_eq!(watch.calls(), (0, 1));
        watch.failed("write", &Errno::IO.into());
        watch.failed("write", &Error::from(ErrorKind::UnexpectedEof));
        assert_eq!(watch.problems().len(), 2);
    }
}
