//! Threads for operations that the last free FUSE thread must not run itself.
//!
//! They are started on demand, up to a bound, and end after a while without work. Jobs beyond the bound
//! wait in a bounded queue; one that does not fit there either is given back. When all threads wait for servers,
//! so do the jobs in the queue; a sweeper then looks after those whose callers die, which could not end else.

use crate::signals;
use parking_lot::{Condvar, Mutex};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// How often the sweeper looks at the callers of queued jobs.
const SWEEP_INTERVAL: Duration = Duration::from_millis(250);

/// Work that was handed over.
pub(crate) struct Job {
    /// Who waits for it, 0 for nobody.
    pub(crate) tid: u32,
    /// Data that it keeps.
    pub(crate) bytes: usize,
    /// Does it, or only answers it if the caller is dying (`true`).
    pub(crate) run: Box<dyn FnOnce(bool) + Send>,
}

/// Bounds of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Threads at most.
    pub(crate) threads_max: usize,
    /// Jobs that wait for a thread at most.
    pub(crate) queue_max: usize,
    /// Data of the jobs that wait for a thread at most.
    pub(crate) queue_bytes_max: usize,
    /// A thread without work for this long ends.
    pub(crate) idle_timeout: Duration,
}

impl Default for Limits {
    /// 128 operations can wait for servers at once beside the FUSE threads, each with a write of 1 MiB at most and
    /// perhaps the buffer of an earlier read: together 256 MiB. The queue holds what waits for those.
    fn default() -> Self {
        Self {
            threads_max: 128,
            queue_max: 4096,
            queue_bytes_max: 128 << 20,
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
    sweep: Condvar,
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
    queue_bytes: usize,
    threads: usize,
    /// Threads that wait for work, those included that a queued job has woken already.
    idle: usize,
    /// There is a sweeper.
    swept: bool,
    closed: bool,
}

impl State {
    fn push(&mut self, job: Job) {
        self.queue_bytes += job.bytes;
        self.queue.push_back(job);
    }

    fn pop(&mut self) -> Option<Job> {
        let job = self.queue.pop_front()?;
        self.queue_bytes -= job.bytes;
        Some(job)
    }
}

impl Overflow {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            shared: Arc::new(Shared {
                limits,
                state: Mutex::default(),
                work: Condvar::new(),
                sweep: Condvar::new(),
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
            state.push(job);
            self.shared.work.notify_one();
            return Ok(());
        }
        let limits = &self.shared.limits;
        if state.threads < limits.threads_max && self.spawn(&mut state) {
            state.push(job);
            return Ok(());
        }
        let has_room = state.queue.len() < limits.queue_max
            && state.queue_bytes + job.bytes <= limits.queue_bytes_max;
        // Without any thread nobody would ever take it out.
        if state.threads > 0 && has_room {
            state.push(job);
            self.sweep(&mut state);
            return Ok(());
        }
        Err(job)
    }

    /// Starts the sweeper unless there is one. Without it callers that die wait longer, no more.
    fn sweep(&self, state: &mut State) {
        if state.swept {
            return;
        }
        let shared = self.shared.clone();
        let spawned = std::thread::Builder::new()
            .name("fuse-sweeper".to_owned())
            .spawn(move || while shared.answer_dying() {});
        match spawned {
            Ok(_) => state.swept = true,
            Err(error) => tracing::warn!(%error, "no thread for the callers of queued operations"),
        }
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
        self.shared.sweep.notify_all();
    }
}

impl Shared {
    /// A thread's life.
    fn run(&self) {
        while let Some(job) = self.next() {
            // It may have waited for long.
            let abandoned = signals::is_dying(job.tid);
            (job.run)(abandoned);
        }
    }

    /// Waits a little, then answers those queued jobs whose callers are dying. Says whether any job is left to look
    /// after; if not, the sweeper is no longer counted.
    fn answer_dying(&self) -> bool {
        let mut state = self.state.lock();
        self.sweep.wait_for(&mut state, SWEEP_INTERVAL);
        if state.queue.is_empty() || state.closed {
            state.swept = false;
            return false;
        }
        let waiting: Vec<u32> = state.queue.iter().map(|job| job.tid).collect();
        drop(state);
        let dying: HashSet<u32> = waiting
            .into_iter()
            .filter(|tid| signals::is_dying(*tid))
            .collect();
        if !dying.is_empty() {
            let mut state = self.state.lock();
            let (gone, kept): (VecDeque<Job>, _) = std::mem::take(&mut state.queue)
                .into_iter()
                .partition(|job| dying.contains(&job.tid));
            state.queue = kept;
            state.queue_bytes -= gone.iter().map(|job| job.bytes).sum::<usize>();
            drop(state);
            for job in gone {
                (job.run)(true);
            }
        }
        true
    }

    /// The next job, or `None` when the thread is to end; it is then no longer counted.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.pop() {
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
            ..Limits::default()
        }
    }

    fn job(run: impl FnOnce() + Send + 'static) -> Job {
        Job {
            tid: 0,
            bytes: 1 << 20,
            run: Box::new(move |_| run()),
        }
    }

    #[test]
    fn jobs_run_at_once_up_to_the_bound_and_wait_beyond_it() {
        let pool = Overflow::new(limits(2, 1, Duration::from_secs(60)));
        let (started, starts) = mpsc::channel();
        let (gate, gates) = mpsc::channel::<()>();
        let gates = Arc::new(Mutex::new(gates));
        let job = || {
            let (started, gates) = (started.clone(), gates.clone());
            job(move || {
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
    fn the_queue_is_bounded_in_bytes_as_well() {
        let limits = Limits {
            queue_bytes_max: 3 << 20,
            ..limits(1, 100, Duration::from_secs(60))
        };
        let pool = Overflow::new(limits);
        let (gate, gates) = mpsc::channel::<()>();
        let (started, starts) = mpsc::channel();
        let first = job(move || {
            started.send(()).unwrap();
            gates.recv().unwrap();
        });
        assert!(pool.submit(first).is_ok());
        starts.recv().unwrap();
        for _ in 0..3 {
            assert!(pool.submit(job(|| {})).is_ok());
        }
        assert!(pool.submit(job(|| {})).is_err());
        gate.send(()).unwrap();
    }

    #[test]
    fn a_queued_job_whose_caller_is_killed_is_answered_at_once() {
        let pool = Overflow::new(limits(1, 10, Duration::from_secs(60)));
        let (gate, gates) = mpsc::channel::<()>();
        assert!(pool.submit(job(move || gates.recv().unwrap())).is_ok());
        let mut caller = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let (sender, receiver) = mpsc::channel();
        let queued = |tid: u32| {
            let sender = sender.clone();
            let run = Box::new(move |abandoned| sender.send((tid, abandoned)).unwrap());
            Job { tid, bytes: 5, run }
        };
        let (caller_id, own_id) = (caller.id(), std::process::id());
        assert!(pool.submit(queued(own_id)).is_ok());
        assert!(pool.submit(queued(caller_id)).is_ok());
        // The zombie of a killed process stands for one that still waits in the kernel.
        caller.kill().unwrap();
        let answered = receiver.recv_timeout(Duration::from_secs(10));
        assert_eq!(answered, Ok((caller_id, true)));
        gate.send(()).unwrap();
        let answered = receiver.recv_timeout(Duration::from_secs(10));
        assert_eq!(answered, Ok((own_id, false)));
        caller.wait().unwrap();
    }

    #[test]
    fn threads_end_when_they_have_nothing_to_do() {
        let pool = Overflow::new(limits(4, 4, Duration::from_millis(10)));
        let ran = Arc::new(AtomicUsize::new(0));
        for _ in 0..4 {
            let ran = ran.clone();
            assert!(
                pool.submit(job(move || {
                    ran.fetch_add(1, Ordering::SeqCst);
                }))
                .is_ok()
            );
        }
        for _ in 0..12_000 {
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
                pool.submit(job(move || sender.send(number).unwrap()))
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
