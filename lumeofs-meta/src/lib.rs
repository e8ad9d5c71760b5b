//! The pure state machines of LumeoFS: the namespace of a metadata group and the controller.
//!
//! No I/O, clock, randomness, threads or async: the same log gives the same bytes on every member.
//! Time, ids of replica groups and whatever else a leader chose come in with the commands.

pub mod attributes;
pub mod change;
pub mod controller;
pub mod keys;
pub mod locks;
pub mod made;
pub mod namespace;
pub mod op;
pub mod restore;
pub mod tables;

mod access;
mod acl;
mod directories;
mod directory;
mod ops;
mod query;
mod record;
mod session;
mod transaction;
mod trash;

pub use record::FORMAT as RECORD_FORMAT;

#[cfg(test)]
mod tests;
