//! The mount: LumeoFS as a filesystem of the kernel, through FUSE.
//!
//! [`start`] connects to a cluster and mounts it; [`mount`] also waits until it is unmounted.
//! [`parse_options`] reads what `mount -o` and fstab hold. Everything that knows the `fuser` crate is in
//! `adapter`, `answer` and `session`, so that another transport can take its place.
//!
//! The kernel caches nothing that another mount could change: entry and attribute time-outs are 0 and every
//! file is opened for direct I/O. What an operation answers comes from the servers, through
//! [`lumeofs_client::Client`]. `docs/semantics.md` says what a program may rely on.

mod adapter;
mod answer;
mod attr;
mod backend;
mod core;
mod dispatch;
mod ending;
mod errno;
#[cfg(test)]
mod memory;
mod metrics;
mod mountpoint;
mod options;
mod overflow;
mod session;
mod signals;
mod stats;

pub use metrics::Metrics;
pub use options::{MountOptions, OptionError, parse_options};
pub use session::{MountConfig, MountHandle, Mounted, mount, start};
pub use stats::{Op, Stats};
