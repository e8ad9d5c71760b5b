//! The SDK: one session with a cluster, its namespace and its files. Knows nothing of FUSE.
//!
//! All calls block the calling thread and may be made from any number of threads. What is answered from memory is covered by
//! a lease; what is remembered beyond that only decides what is asked, and the servers confirm it. See [`Client`].

mod atimes;
mod client;
mod data;
mod fenced;
mod files;
mod inodes;
mod kernel;
mod leases;
mod link;
mod locks;
mod map;
mod masters;
mod meta;
mod namespace;
mod opens;
mod pages;
mod pool;
mod ranges;
mod report;
mod retry;
mod session;
#[cfg(test)]
mod tests;
mod trash;
mod wait;
mod window;

pub use client::{Client, ClientOptions, Context, OnOutage, Range, Usage, WriteMode, Written};
pub use kernel::PageRequest;
pub use leases::{GiveBacks, LeaseStats, Lookups, Polls};
pub use locks::Interrupted;
pub use pages::{CACHE_BYTES_DEFAULT, CACHE_BYTES_MIN, CacheStats};
pub use report::{ChunkReport, ReplicaReport, ReplicaState};
pub use trash::TrashPage;
