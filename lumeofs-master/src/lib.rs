//! A master: hosts the members of the Raft groups (controller and metadata), answers clients over
//! frames and datanodes over gRPC.
//!
//! `openraft` and `redb` are named only in this crate, below `raft`.

mod ask;
#[cfg(test)]
mod cluster_tests;
mod config;
mod done;
pub mod dump;
mod join;
mod keeper;
mod masters;
#[cfg(test)]
mod memory;
mod metrics;
mod raft;
mod room;
mod server;
mod service;
mod standing;
mod superblock;

pub use config::MasterConfig;
pub use metrics::Metrics;
pub use server::run;
