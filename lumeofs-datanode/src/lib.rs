//! The datanode: chunk store, replication, and the frames by which clients reach both.
//!
//! The replication protocol is `lumeofs-replica`; here are its threads and sockets. One thread per
//! connection, one worker per group, one thread per peer for beacons, one for the controller, one per
//! store that scrubs it. The chunks of a datanode that does not run are read by [`StoppedStore`] and [`salvage()`].

mod attest;
mod blocked;
mod control;
mod convert;
mod damage;
mod data;
mod fetch;
mod group;
mod inbound;
mod known;
mod listener;
mod masters;
mod metrics;
mod node;
mod outbox;
mod pace;
mod peers;
mod placing;
mod requests;
mod run;
mod salvage;
mod scrub;
mod stopped;
pub mod store;
mod streams;
mod work;

pub use metrics::Metrics;
pub use run::{DatanodeConfig, run};
pub use salvage::{Conflict, Damage, Gap, Salvaged, salvage};
pub use stopped::StoppedStore;
