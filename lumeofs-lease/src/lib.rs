//! Leases on inodes: what lets a mount answer from memory and still be one view with all others.
//!
//! Both ends are pure, without I/O, clock or thread: [`Table`] is the leader's side, [`Holder`] that of a client. Time,
//! requests and answers come in as data, and what is to be done goes out as data; so one simulation drives both.
//! Rules L, S and K of `docs/rules.md`.

mod holder;
mod locks;
mod table;
mod wire;

pub use holder::{
    Act, Ahead, Cached, Holder, HolderLimits, Learned, Listing, Told, Touch, WriteRight,
};
pub use locks::{LockVerdict, LockWaits, LockWish};
pub use table::{Blocked, Changed, Created, Effect, Heard, Table, TableLimits, Unheard, Want};
pub use wire::{Ack, Generation, Grant, Held, Kind, Poll, PollAnswer, Recall, Release, What};

use std::time::Duration;

/// How long leases live after the last poll that the leader received: the leader's measure.
pub const TERM: Duration = Duration::from_secs(5);
/// How long a holder relies on them, counted from sending that poll. Shorter than [`TERM`] by more than clocks drift apart
/// in that time.
pub const TERM_OF_HOLDER: Duration = Duration::from_secs(4);
/// How long the leader leaves a poll unanswered when it has nothing to recall.
pub const POLL_WAIT: Duration = Duration::from_secs(1);
/// How long a session may take to give a write lease back while it lives.
pub const GIVE_BACK_MAX: Duration = Duration::from_secs(120);
/// Two sessions that want to write one file within this time share the right instead of handing it to and fro.
pub const CONTENTION: Duration = Duration::from_secs(1);
/// How often a writer that shares the right asks whether it is alone.
pub const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How long a writer that shares the right is taken for active.
pub const WRITER_ACTIVE: Duration = Duration::from_secs(2);

const _: () = assert!(TERM_OF_HOLDER.as_millis() * 10 <= TERM.as_millis() * 9);
const _: () = assert!(POLL_WAIT.as_millis() * 3 < TERM_OF_HOLDER.as_millis());
const _: () = assert!(ASK_AGAIN.as_millis() < WRITER_ACTIVE.as_millis());
