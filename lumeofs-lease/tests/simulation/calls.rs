//! What mounts and masters say to each other.

use lumeofs_base::{InodeId, SessionId};
use lumeofs_lease::{Generation, Grant, Poll, PollAnswer, Want};
use lumeofs_meta::change::Change;
use lumeofs_meta::op::{Mutation, Outcome, Query};

/// To a master.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Open {
        nonce: u128,
    },
    Query {
        session: SessionId,
        query: Query,
        want: Want,
    },
    Mutate {
        session: SessionId,
        sequence: u64,
        acked_below: u64,
        mutation: Mutation,
    },
    Poll {
        session: SessionId,
        poll: Poll,
        /// It may be held back.
        long: bool,
    },
    /// To the datanode, as what follows.
    Read {
        ino: InodeId,
        block: u8,
    },
    Write {
        session: SessionId,
        ino: InodeId,
        attempt: u64,
        blocks: Vec<(u8, u64)>,
    },
}

/// From a master.
#[derive(Clone, Debug)]
pub(crate) enum Tell {
    NotLeader,
    Expired,
    Opened(SessionId),
    Answer {
        query: Query,
        outcome: Outcome,
        generation: Generation,
        number: u64,
        grants: Vec<Grant>,
    },
    Done {
        outcome: Outcome,
        generation: Generation,
        number: u64,
        changes: Vec<Change>,
        grants: Vec<Grant>,
        repeated: bool,
    },
    Polled(PollAnswer),
    Overtaken,
    /// From the datanode, as what follows.
    Data(Option<u64>),
    Written {
        attempt: u64,
    },
    Fenced,
}

/// Where a request came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct From {
    pub(crate) mount: usize,
    pub(crate) incarnation: u32,
    pub(crate) call: u64,
}
