//! Threads for operations that the last free FUSE thread must not run itself.
//!
//! They are started on demand, up to a bound, and end after a while without work. Jobs beyond the bound
//! wait in a bounded queue; one that does not fit there either is given back.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Work that was handed over.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Bounds of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Threads at most.
    pub(crate) threads_max: usize,
    /// Jobs that wait for a thread at most.
    pub(crate) queue_max: usize,
    /// A thread without work for this long ends.
    pub(crate) idle_timeout: Duration,
}

impl Default for Limits {
    /// 256 operations can wait for servers at once beside the FUSE threads. The queue holds what waits for
    /// those: each entry keeps at most one 1 MiB write.
    fn default() -> Self {
        Self {
            threads_max: 256,
            queue_max: 4096,
            idle_timeout: Duration::from_secs(10),
        }
    }
}

/// The pool. Dropping it lets its threads finish their jobs and end.
#[derive(Debug)]
pub(crate) struct Overflow {
    shared: Arc<Shared>,
}

struct Shared {
    limits: Limits,
    state: Mutex<State>,
    work: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for work, those included that a queued job has woken already.
    idle: usize,
    closed: bool,
}

impl Overflow {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            shared: Arc::new(Shared {
                limits,
                state: Mutex::default(),
                work: Condvar::new(),
            }),
        }
    }

    /// Has `job` run by another thread, soon or when one is free. Gives it back if there is neither a
    /// thread nor room to wait for one.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Job> {
        let mut state = self.shared.state.lock();
        if state.closed {
            return Err(job);
        }
        if state.idle > state.queue.len() {
            state.queue.push_back(job);
            self.shared.work.notify_one();
            return Ok(());
        }
        if state.threads < self.shared.limits.threads_max && self.spawn(&mut state) {
            state.queue.push_back(job);
            return Ok(());
        }
        // Without any thread nobody would ever take it out.
        if state.threads > 0 && state.queue.len() < self.shared.limits.queue_max {
            state.queue.push_back(job);
            return Ok(());
        }
        Err(job)
    }

    /// Starts a thread; `false` if the system has none left.
    fn spawn(&self, state: &mut State) -> bool {
        let shared = self.shared.clone();
        let spawned = std::thread::Builder::new()
            .name("fuse-overflow".to_owned())
            .spawn(move || shared.run());
        match spawned {
            Ok(_) => {
                state.threads += 1;
                true
            }
            Err(error) => {
                tracing::warn!(%error, threads = state.threads, "no thread for a waiting operation");
                false
            }
        }
    }

    #[cfg(test)]
    fn threads(&self) -> usize {
        self.shared.state.lock().threads
    }
}

impl Drop for Overflow {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.work.notify_all();
    }
}

impl Shared {
    /// A thread's life.
    fn run(&self) {
        while let Some(job) = self.next() {
            job();
        }
    }

    /// The next job, or `None` when the thread is to end; it is then no longer counted.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            if state.closed {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            let timed_out = self
                .work
                .wait_for(&mut state, self.limits.idle_timeout)
                .timed_out();
            state.idle -= 1;
            if timed_out && state.queue.is_empty() {
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    fn limits(threads_max: usize, queue_max: usize, idle: Duration) -> Limits {
        Limits {
            threads_max,
            queue_max,
            idle_timeout: idle,
        }
    }

    #[test]
    fn jobs_run_at_once_up_to_the_bound_and_wait_beyond_it() {
        let pool = Overflow::new(limits(2, 1, Duration::from_secs(60)));
        let (started, starts) = mpsc::channel();
        let (gate, gates) = mpsc::channel::<()>();
        let gates = Arc::new(Mutex::new(gates));
        let job = || -> Job {
            let (started, gates) = (started.clone(), gates.clone());
            Box::new(move || {
                started.send(()).unwrap();
                gates.lock().recv().unwrap();
            })
        };
        assert!(pool.submit(job()).is_ok());
        assert!(pool.submit(job()).is_ok());
        starts.recv().unwrap();
        starts.recv().unwrap();
        assert!(pool.submit(job()).is_ok(), "one may wait");
        assert!(pool.submit(job()).is_err(), "a second one may not");
        assert_eq!(pool.threads(), 2);
        gate.send(()).unwrap();
        starts.recv().expect("the waiting one has started");
        gate.send(()).unwrap();
        gate.send(()).unwrap();
    }

    #[test]
    fn threads_end_when_they_have_nothing_to_do() {
        let pool = Overflow::new(limits(4, 4, Duration::from_millis(10)));
        let ran = Arc::new(AtomicUsize::new(0));
        for _ in 0..4 {
            let ran = ran.clone();
            assert!(
                pool.submit(Box::new(move || {
                    ran.fetch_add(1, Ordering::SeqCst);
                }))
                .is_ok()
            );
        }
        for _ in 0..1000 {
            if pool.threads() == 0 {
                assert_eq!(ran.load(Ordering::SeqCst), 4);
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("threads did not end");
    }

    #[test]
    fn queued_jobs_still_run_when_the_pool_is_dropped() {
        let pool = Overflow::new(limits(1, 10, Duration::from_secs(60)));
        let (sender, receiver) = mpsc::channel();
        for number in 0..5 {
            let sender = sender.clone();
            assert!(
                pool.submit(Box::new(move || sender.send(number).unwrap()))
                    .is_ok()
            );
        }
        drop(pool);
        assert_eq!(
            (0..5).map(|_| receiver.recv().unwrap()).collect::<Vec<_>>(),
            [0, 1, 2, 3, 4]
        );
    }
}
