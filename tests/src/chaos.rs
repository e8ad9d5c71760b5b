//! Scripted days of failure: a cluster of hosts under a load that verifies itself, faults from a table, and what must
//! hold afterwards. A day is a [`round`](run_round): the load runs, something breaks, it is mended, every
//! acknowledged byte is compared through a fresh mount, the cluster must be whole and nothing may have leaked. At the
//! [`end`](Yard::end) of all rounds nothing may be left of files, processes and the cluster itself.
//!
//! `tests/tests/chaos.rs` runs each fault once; `scripts/chaos` runs many rounds, with pairs of faults too.

mod checks;
mod content;
mod day;
mod end;
mod fault;
mod faults;
mod leftovers;
mod load;
mod manifest;
mod random;
mod report;
mod watch;

pub use day::{Outcome, Plan, Yard, run_round};
pub use fault::{KINDS, Kind};
pub use leftovers::{PREFIX, remove_leftovers};
pub use random::Random;
pub use report::table;
