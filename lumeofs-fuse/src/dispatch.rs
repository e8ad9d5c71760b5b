//! The one way from a callback to its reply: where the operation runs, who it runs for, and the one exit
//! that counts, logs and answers.
//!
//! A FUSE thread runs the operation itself and blocks in it: a hop to another thread would cost more than most
//! operations take. What must not happen is that all threads block, for then nobody reads the requests that
//! need no server, and neither a release nor a forget nor an unmount gets through. So the threads that are busy
//! are counted, and the *last free one* never runs an operation that may wait: it hands the operation with its
//! reply to the overflow pool and goes back to `/dev/fuse`.
//!
//! Only when that pool and its queue are full (over 4000 operations wait, or 256 MiB of them) does the last thread run one itself.
//! Refusing it instead would fail a call of a program that asked to wait out an outage; so the kernel's own
//! queue takes what comes then, until operations end or their callers are killed.

use crate::errno::errno;
use crate::overflow::{Job, Limits, Overflow};
use crate::signals;
use crate::stats::{Op, Stats};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{Code, FsError, FsResult, RequestId};
use lumeofs_client::Context;
use lumeofs_meta::op::Caller;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Callers that wait for locks at once. None of them waits for a thread.
const WAITERS: Limits = Limits {
    threads_max: 512,
    queue_max: 0,
    queue_bytes_max: 0,
    idle_timeout: Duration::from_secs(1),
};

/// Where the answer goes. Consumed by it, so that there is exactly one.
pub(crate) trait Answer: Send + 'static {
    /// What a success carries.
    type Value;
    /// Sends a success.
    fn value(self, value: Self::Value);
    /// Sends an error.
    fn error(self, errno: fuser::Errno);
}

/// What of a request's header matters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// The request.
    pub(crate) op: Op,
    /// Its inode as the kernel calls it, for the log.
    pub(crate) ino: u64,
    /// The caller's user.
    pub(crate) uid: u32,
    /// The caller's group.
    pub(crate) gid: u32,
    /// The calling thread, 0 if nobody waits.
    pub(crate) tid: u32,
    /// When it came, on the monotonic clock.
    pub(crate) came: Duration,
    /// Names it in the logs of this mount and of all servers that take part in it.
    pub(crate) request: RequestId,
}

/// Runs operations on a `T`.
pub(crate) struct Dispatcher<T> {
    target: Arc<T>,
    stats: Arc<Stats>,
    /// Threads that read requests.
    threads: usize,
    /// Of these, how many run an operation that may wait.
    busy: AtomicUsize,
    overflow: Overflow,
    /// For callers that wait for each other rather than for servers: any number of them leaves the other pool alone.
    waiters: Overflow,
}

impl<T: Send + Sync + 'static> Dispatcher<T> {
    /// For a session of `threads` threads.
    pub(crate) fn new(target: Arc<T>, stats: Arc<Stats>, threads: usize, limits: Limits) -> Self {
        Self {
            target,
            stats,
            threads,
            busy: AtomicUsize::new(0),
            overflow: Overflow::new(limits),
            waiters: Overflow::new(WAITERS),
        }
    }

    /// What the operations run on.
    pub(crate) fn target(&self) -> &T {
        &self.target
    }

    /// Runs `work`, here or on another thread, and sends its result. `data` is copied only if it must outlive
    /// this call.
    pub(crate) fn run<A, W>(&self, header: Header, data: &[u8], answer: A, work: W)
    where
        A: Answer,
        W: FnOnce(&T, Context<'_>, &[u8]) -> FsResult<A::Value> + Send + 'static,
    {
        self.stats.begin();
        let place = Place::take(&self.busy);
        if place.number < self.threads {
            serve(&*self.target, &self.stats, header, data, answer, work);
            return;
        }
        let (target, stats, data) = (self.target.clone(), self.stats.clone(), data.to_vec());
        let job = Job {
            tid: header.tid,
            bytes: data.len(),
            run: Box::new(move |abandoned| {
                // What nobody waits for any more need not be sent.
                if abandoned {
                    finish(&stats, header, answer, Err(Code::Interrupted.into()));
                } else {
                    serve(&*target, &stats, header, &data, answer, work);
                }
            }),
        };
        self.stats.count_handed_over();
        if let Err(job) = self.overflow.submit(job) {
            self.stats.count_overloaded();
            if let Some(held_back) = self.stats.may_warn() {
                tracing::warn!(
                    op = header.op.name(),
                    held_back,
                    "too many operations wait: the last free thread runs one itself"
                );
            }
            (job.run)(false);
        }
    }

    /// Has `work` wait, on a thread of its own.
    pub(crate) fn wait<A, W>(&self, header: Header, answer: A, work: W)
    where
        A: Answer,
        W: FnOnce(&T, Context<'_>) -> FsResult<A::Value> + Send + 'static,
    {
        self.stats.begin();
        let (target, stats) = (self.target.clone(), self.stats.clone());
        let job = Job {
            tid: header.tid,
            bytes: 0,
            run: Box::new(move |refused| {
                if refused {
                    let text = format!("over {} callers wait for locks", WAITERS.threads_max);
                    let error = FsError::new(Code::NoLocks, text);
                    finish(&stats, header, answer, Err(error));
                } else {
                    serve(&*target, &stats, header, &[], answer, |target, cx, _| {
                        work(target, cx)
                    });
                }
            }),
        };
        if let Err(job) = self.waiters.submit(job) {
            (job.run)(true);
        }
    }

    /// Answers what needs no server. Never waits and so takes no place.
    pub(crate) fn answer_now<A: Answer>(
        &self,
        header: Header,
        answer: A,
        result: FsResult<A::Value>,
    ) {
        self.stats.begin();
        finish(&self.stats, header, answer, result);
    }
}

/// A busy thread, as long as it lives.
struct Place<'a> {
    busy: &'a AtomicUsize,
    /// How many were busy with this one.
    number: usize,
}

impl<'a> Place<'a> {
    fn take(busy: &'a AtomicUsize) -> Self {
        Self {
            busy,
            number: busy.fetch_add(1, Ordering::AcqRel) + 1,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.busy.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Runs an operation for its caller. The kernel has checked permissions (`default_permissions`), so the caller is
/// trusted.
fn serve<T, A, W>(target: &T, stats: &Stats, header: Header, data: &[u8], answer: A, work: W)
where
    A: Answer,
    W: FnOnce(&T, Context<'_>, &[u8]) -> FsResult<A::Value>,
{
    let caller = Caller {
        uid: header.uid,
        gid: header.gid,
        groups: Vec::new(),
        trusted: true,
    };
    let interrupted = || signals::is_dying(header.tid);
    let result = work(
        target,
        Context {
            request: header.request,
            caller: &caller,
            interrupted: &interrupted,
        },
        data,
    );
    finish(stats, header, answer, result);
}

/// The one exit.
fn finish<A: Answer>(stats: &Stats, header: Header, answer: A, result: FsResult<A::Value>) {
    let took = SystemClock.monotonic().saturating_sub(header.came);
    stats.count(header.op, result.is_err(), took);
    let (request, op, ino, tid) = (header.request, header.op.name(), header.ino, header.tid);
    let took_ms = took.as_millis() as u64;
    // Who waits for a lock waits for whoever has it.
    if header.op != Op::SetLkW
        && let Some(held_back) = stats.slow.tell(took)
    {
        let error = result.as_ref().err().map(tracing::field::display);
        tracing::info!(%request, op, ino, tid, took_ms, held_back, error, "slow operation");
    }
    match result {
        Ok(value) => {
            tracing::debug!(%request, op, ino, tid, took_ms, "operation");
            answer.value(value);
        }
        Err(error) => {
            log_error(stats, header, took_ms, &error);
            answer.error(errno(error.code));
        }
    }
}

/// Errors that a program gets as plain EIO say nothing to it, so they are kept here; all others are its
/// own business.
fn log_error(stats: &Stats, header: Header, took_ms: u64, error: &FsError) {
    let (request, op, ino, tid) = (header.request, header.op.name(), header.ino, header.tid);
    let ours = errno(error.code).code() == libc::EIO || error.code == Code::NoSpace;
    match ours.then(|| stats.may_warn()).flatten() {
        Some(held_back) => {
            tracing::warn!(%request, op, ino, tid, took_ms, held_back, %error, "operation failed")
        }
        None => tracing::debug!(%request, op, ino, tid, took_ms, %error, "operation"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::ThreadId;

    struct Reply(Sender<Result<ThreadId, i32>>);
    impl Answer for Reply {
        type Value = ThreadId;
        fn value(self, value: ThreadId) {
            self.0.send(Ok(value)).unwrap();
        }
        fn error(self, errno: fuser::Errno) {
            self.0.send(Err(errno.code())).unwrap();
        }
    }

    fn header(tid: u32) -> Header {
        Header {
            op: Op::Read,
            ino: 1,
            uid: 0,
            gid: 0,
            tid,
            came: SystemClock.monotonic(),
            request: RequestId::next(),
        }
    }

    fn dispatcher(threads: usize, limits: Limits) -> Arc<Dispatcher<()>> {
        Arc::new(Dispatcher::new(
            Arc::new(()),
            Arc::default(),
            threads,
            limits,
        ))
    }

    fn soon<V>(receiver: &Receiver<V>) -> V {
        receiver
            .recv_timeout(Duration::from_secs(10))
            .expect("in time")
    }

    #[test]
    fn a_thread_that_is_not_the_last_free_one_runs_the_operation_itself() {
        let dispatcher = dispatcher(2, Limits::default());
        let (sender, receiver) = channel();
        dispatcher.run(header(0), b"", Reply(sender), |(), _, _| {
            Ok(std::thread::current().id())
        });
        assert_eq!(soon(&receiver), Ok(std::thread::current().id()));
        assert_eq!(dispatcher.stats.handed_over(), 0);
    }

    #[test]
    fn the_last_free_thread_hands_over_and_stays_free() {
        let dispatcher = dispatcher(2, Limits::default());
        let (open, gate) = channel::<()>();
        let (entered, enters) = channel();
        let (sender, receiver) = channel();
        let blocked = {
            let (dispatcher, sender) = (dispatcher.clone(), sender.clone());
            std::thread::spawn(move || {
                dispatcher.run(header(0), b"", Reply(sender), move |(), _, _| {
                    entered.send(()).unwrap();
                    gate.recv().unwrap();
                    Ok(std::thread::current().id())
                });
            })
        };
        soon(&enters);
        // This thread is now the last free one: what it is given runs elsewhere, and it comes back at once,
        // as often as it likes, although that operation waits as well.
        let (open_second, gate_second) = channel::<()>();
        dispatcher.run(
            header(0),
            b"data",
            Reply(sender.clone()),
            move |(), _, data| {
                gate_second.recv().unwrap();
                assert_eq!(data, b"data");
                Ok(std::thread::current().id())
            },
        );
        dispatcher.run(header(0), b"", Reply(sender), |(), _, _| {
            Err(Code::NotFound.into())
        });
        assert_eq!(soon(&receiver), Err(libc::ENOENT));
        assert_eq!(dispatcher.stats.handed_over(), 2);
        open_second.send(()).unwrap();
        assert_ne!(soon(&receiver).unwrap(), std::thread::current().id());
        open.send(()).unwrap();
        soon(&receiver).unwrap();
        blocked.join().unwrap();
        assert_eq!(dispatcher.busy.load(Ordering::SeqCst), 0);
        assert_eq!(dispatcher.stats.done(Op::Read), 3);
        assert_eq!(dispatcher.stats.failed(Op::Read), 1);
    }

    #[test]
    fn with_a_full_pool_the_operation_still_runs() {
        let limits = Limits {
            threads_max: 0,
            queue_max: 0,
            ..Limits::default()
        };
        let dispatcher = dispatcher(1, limits);
        let (sender, receiver) = channel();
        dispatcher.run(header(0), b"", Reply(sender), |(), _, _| {
            Ok(std::thread::current().id())
        });
        assert_eq!(soon(&receiver), Ok(std::thread::current().id()));
        assert_eq!(dispatcher.stats.overloaded(), 1);
    }

    #[test]
    fn the_caller_is_trusted_and_keeps_its_ids() {
        let dispatcher = dispatcher(2, Limits::default());
        let (sender, receiver) = channel();
        let header = Header {
            uid: 7,
            gid: 8,
            ..header(std::process::id())
        };
        dispatcher.run(header, b"", Reply(sender), |(), cx, _| {
            assert_eq!(
                (cx.caller.uid, cx.caller.gid, cx.caller.trusted),
                (7, 8, true)
            );
            assert!(!(cx.interrupted)());
            Ok(std::thread::current().id())
        });
        soon(&receiver).unwrap();
    }
}
