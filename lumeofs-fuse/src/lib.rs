//! The mount: LumeoFS as a filesystem of the kernel, through FUSE.
//!
//! [`start`] connects to a cluster and mounts it; [`mount`] also waits until it is unmounted.
//! [`parse_options`] reads what `mount -o` and fstab hold, [`remount()`] changes what can be changed of a mount.
//! `session` has fuser mount and agree with the kernel; from then on `kernel` takes its requests, and `adapter` says what each
//! means.
//!
//! The kernel caches nothing that another mount could change: entry and attribute time-outs are 0 and every
//! file is opened for direct I/O. What an operation answers comes from the memory or the servers of
//! [`lumeofs_client::Client`]. `docs/semantics.md` says what a program may rely on.

mod adapter;
mod answer;
mod atime;
mod attr;
mod backend;
mod core;
mod dispatch;
mod ending;
mod errno;
mod handshake;
mod kernel;
#[cfg(test)]
mod memory;
mod metrics;
mod mountinfo;
mod mountpoint;
mod options;
mod overflow;
mod record;
mod remount;
mod session;
mod signals;
mod stats;
mod task;

pub use atime::Atime;
pub use metrics::Metrics;
pub use options::{MountOptions, OptionError, is_remount, parse_options, without_unknown};
pub use remount::remount;
pub use session::{MountConfig, MountHandle, Mounted, mount, start};
pub use stats::{Op, Stats};

/// An extended attribute that every object of a mount has: the mount's counters, as lines `NAME{LABELS} VALUE` in the text format of
/// Prometheus, without help and buckets.
pub const LIVE_COUNTERS: &str = "lumeofs.stats";
