//! The replication protocol of a replica group as a pure state machine (rules D1–D7), after PacificA.
//!
//! One [`Group`] per group and datanode. Events come in as calls with the time beside them, effects
//! go out as values: what to write, send, answer, propose. Nothing here knows sockets, threads,
//! disks or clocks, so a whole cluster of them runs in one thread from one seed (`tests/`).
//!
//! The primary keeps one ordered *stream* to every other member. A member that has the primary's
//! history is *live* on its stream and receives every operation; one that has not (it restarted, was
//! away, has a diverged tail) is caught up on the same stream: see `catchup`. An operation is
//! committed when every in-sync member has applied it.

pub mod clip;
pub mod effect;
pub mod group;
pub mod history;
pub mod message;
pub mod tail;
pub mod writers;

pub use effect::{Effect, Outcome, Piece, SyncPoint, Ticket, Work};
pub use group::read::{ReadEnd, ReadStart, Reader};
pub use group::{Admission, CatchUpProgress, Group, Local, Role, State, Waits, WriteRequest};
pub use history::Note;
pub use message::{
    BeaconAnswer, BeaconItem, BeaconSent, CopyStep, Entry, PeerState, StreamId, ToMember,
    ToPrimary, Writer,
};
