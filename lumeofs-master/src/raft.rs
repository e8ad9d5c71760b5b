//! A member of a Raft group: openraft over our log, our store and our network.
//!
//! The rest of the crate sees a [`Group`] and never openraft itself. One process hosts several
//! groups; each has its own log and its own store (rule R7).

mod backup;
#[cfg(test)]
mod conformance;
mod election;
mod group;
mod handover;
mod lease;
mod log_index;
mod log_record;
mod log_store;
#[cfg(test)]
mod measure;
mod membership;
mod metrics;
mod network;
mod overlay;
mod presence;
mod proposer;
mod reads;
mod snapshot;
mod state_machine;
mod store;
mod types;

pub(crate) use backup::{Outgoing, Restored, rows};
pub(crate) use group::{Group, GroupConfig, Leadership};
pub(crate) use membership::{Members, Step};
pub(crate) use network::{RaftServer, Receiving};
pub(crate) use overlay::Overlay;
pub(crate) use presence::Presence;
pub(crate) use proposer::{Proposed, Proposer};
pub(crate) use store::Store;
#[cfg(test)]
pub(crate) use store::cut;
pub(crate) use types::{Applied, EntryOrigin, Machine, Term};
