//! How often each operation ran and failed.

use lumeofs_base::clock::{Clock, SystemClock};
use lumeofs_base::metrics::Operations;
use lumeofs_base::slow::SlowLog;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

macro_rules! operations {
    ($($variant:ident => $name:literal),* $(,)?) => {
        /// An operation of the kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each is the FUSE request of that name")]
        pub enum Op { $($variant),* }

        impl Op {
            /// All of them.
            pub const ALL: &'static [Op] = &[$(Op::$variant),*];
            /// Their names, in the same order.
            const NAMES: &'static [&'static str] = &[$($name),*];

            /// Its name, in lower case.
            pub const fn name(self) -> &'static str {
                match self { $(Op::$variant => $name),* }
            }
        }
    };
}

operations! {
    Lookup => "lookup", GetAttr => "getattr", SetAttr => "setattr", ReadLink => "readlink",
    MkNod => "mknod", MkDir => "mkdir", Unlink => "unlink", RmDir => "rmdir", SymLink => "symlink",
    Rename => "rename", Link => "link", Open => "open", Create => "create", Read => "read",
    Write => "write", Flush => "flush", Fsync => "fsync", Release => "release",
    OpenDir => "opendir", ReadDir => "readdir", ReleaseDir => "releasedir", StatFs => "statfs",
    SetXattr => "setxattr", GetXattr => "getxattr", ListXattr => "listxattr",
    RemoveXattr => "removexattr", Fallocate => "fallocate", Lseek => "lseek",
    GetLk => "getlk", SetLk => "setlk", SetLkW => "setlkw", TmpFile => "tmpfile",
}

/// Counters of a mount since it began.
#[derive(Debug)]
pub struct Stats {
    pub(crate) operations: Operations,
    /// Operations between the kernel's request and its answer.
    in_progress: AtomicI64,
    pub(crate) slow: SlowLog,
    handed_over: AtomicU64,
    overloaded: AtomicU64,
    references: AtomicI64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    /// Second of the last warning, and warnings held back since.
    warned_at: AtomicU64,
    held_back: AtomicU64,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            operations: Operations::new(Op::NAMES),
            in_progress: AtomicI64::new(0),
            slow: SlowLog::default(),
            handed_over: AtomicU64::new(0),
            overloaded: AtomicU64::new(0),
            references: AtomicI64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            warned_at: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
        }
    }
}

impl Stats {
    /// How often `op` was answered, with or without an error.
    pub fn done(&self, op: Op) -> u64 {
        self.operations.done(op as usize)
    }
    /// How often `op` was answered with an error, "no such file" included.
    pub fn failed(&self, op: Op) -> u64 {
        self.operations.failed(op as usize)
    }
    /// Operations that the last free thread handed over.
    pub fn handed_over(&self) -> u64 {
        self.handed_over.load(Ordering::Relaxed)
    }
    /// Operations that the last free thread had to run itself, since the overflow pool was full.
    pub fn overloaded(&self) -> u64 {
        self.overloaded.load(Ordering::Relaxed)
    }
    /// References that the kernel holds to inodes: lookups less forgets.
    pub fn references(&self) -> i64 {
        self.references.load(Ordering::Relaxed)
    }
    /// Bytes that reads returned.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }
    /// Bytes that writes took.
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::Relaxed)
    }

    /// Operations that are under way.
    pub fn in_progress(&self) -> i64 {
        self.in_progress.load(Ordering::Relaxed)
    }

    /// The kernel asked for something.
    pub(crate) fn begin(&self) {
        self.in_progress.fetch_add(1, Ordering::Relaxed);
    }

    /// It was answered.
    pub(crate) fn count(&self, op: Op, failed: bool, took: Duration) {
        self.operations.count(op as usize, failed, took);
        self.in_progress.fetch_sub(1, Ordering::Relaxed);
    }
    pub(crate) fn count_handed_over(&self) {
        self.handed_over.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn count_overloaded(&self) {
        self.overloaded.fetch_add(1, Ordering::Relaxed);
    }
    pub(crate) fn add_references(&self, count: i64) {
        self.references.fetch_add(count, Ordering::Relaxed);
    }
    pub(crate) fn add_read(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    pub(crate) fn add_written(&self, bytes: usize) {
        self.bytes_written
            .fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Whether a warning may be logged now: one a second, so that an outage does not fill the log. Gives
    /// the number of those held back before it.
    pub(crate) fn may_warn(&self) -> Option<u64> {
        let now = SystemClock.monotonic().as_secs() + 1;
        let last = self.warned_at.load(Ordering::Relaxed);
        let mine = last != now
            && self
                .warned_at
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if mine {
            return Some(self.held_back.swap(0, Ordering::Relaxed));
        }
        self.held_back.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_operation_is_counted_for_itself() {
        let stats = Stats::default();
        stats.count(Op::Lookup, false, Duration::ZERO);
        stats.count(Op::Lookup, true, Duration::ZERO);
        stats.count(Op::Lseek, true, Duration::ZERO);
        assert_eq!((stats.done(Op::Lookup), stats.failed(Op::Lookup)), (2, 1));
        assert_eq!((stats.done(Op::Lseek), stats.failed(Op::Lseek)), (1, 1));
        assert_eq!(stats.done(Op::Read), 0);
        assert!(
            Op::ALL
                .iter()
                .enumerate()
                .all(|(at, &op)| op as usize == at)
        );
    }

    #[test]
    fn warnings_are_held_back_and_counted() {
        let stats = Stats::default();
        let begun = std::time::Instant::now();
        let allowed = (0..1000).filter(|_| stats.may_warn().is_some()).count();
        let most = 2 + begun.elapsed().as_secs() as usize;
        assert!((1..=most).contains(&allowed), "{allowed}");
    }
}
