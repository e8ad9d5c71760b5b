//! Coherence between mounts: what one mount has acknowledged, every other one shows in its next call.
//!
//! The tests know the right answer without a model of their own: the same calls are made in a directory of a local
//! filesystem, of which there is one copy and one kernel, and the answers are compared as text ([`look`]).

mod appends;
mod interleaving;
mod linear;
pub mod look;
mod mapping;
mod operations;
mod registers;
mod shrink;
mod turns;

pub use appends::{append_records, check_log, tail};
pub use interleaving::{Interleaving, Step, random_steps};
pub use linear::{Action, Event, check as check_linear};
pub use mapping::Mapping;
pub use registers::{read_name, read_time, unique_value, write_name, write_time};
pub use shrink::shrink;
pub use turns::{git_turns, sqlite_turns};
