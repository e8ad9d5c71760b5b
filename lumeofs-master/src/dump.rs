//! Dumps of the metadata: a file that holds what the masters know, from which the first master of a new cluster is
//! made when all masters are lost.
//!
//! The file is read twice: whole, before anything is made from it, then for its rows.

mod file;
mod load;

pub use file::{Block, DumpReader, DumpWriter, GroupHead, Head};
pub use load::{GroupSummary, Loaded, NewMaster, Summary, inspect, load};
pub use lumeofs_meta::RECORD_FORMAT;

/// Groups of a dump, in the order in which they stand there. What the metadata names is in the controller's rows then,
/// since those are newer.
pub const GROUPS: [&str; 2] = ["metadata", "controller"];
