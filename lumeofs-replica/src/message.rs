//! What members of a group say to each other.
//!
//! All but beacons and questions travel on the stream that the primary opened to a member, in order.

use lumeofs_base::{
    ChunkId, ChunkOp, ChunkState, Code, Epoch, Fence, GroupConfig, NodeId, Sequence, Version,
};
use std::sync::Arc;
use std::time::Duration;

/// Name of a stream, never used twice.
pub type StreamId = u64;

/// Data of an operation: cheap to clone, never copied by the core.
pub trait Payload: Clone {
    /// Bytes.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The first `len` bytes.
    #[must_use]
    fn prefix(&self, len: usize) -> Self;
}

impl Payload for Vec<u8> {
    fn len(&self) -> usize {
        self.len()
    }
    fn prefix(&self, len: usize) -> Self {
        self[..len].to_vec()
    }
}

/// Who wrote, for D3. Session 0 is not checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    /// The session.
    pub session: u64,
    /// Its connection generation.
    pub generation: u32,
}

/// One ordered operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<P> {
    /// Its place, kept for ever.
    pub version: Version,
    /// Its writer.
    pub writer: Writer,
    /// What is done.
    pub op: ChunkOp,
    /// Data of a write.
    pub data: P,
}

/// Primary -> member.
#[derive(Clone, Debug)]
pub enum ToMember<P> {
    /// First on a stream: follow me in this configuration, and tell what you have.
    Attach {
        /// The configuration.
        config: GroupConfig,
    },
    /// The configuration changed, the primary did not.
    Config {
        /// The next configuration.
        config: GroupConfig,
    },
    /// The next operation.
    Op {
        /// The operation.
        entry: Arc<Entry<P>>,
        /// Everything up to here is committed.
        committed: Sequence,
        /// Make it durable at once.
        sync: bool,
    },
    /// During catch-up: what the next operation does to the copied beginning of the chunk that is being
    /// copied. The chunk keeps its mark of being incomplete.
    Patch {
        /// The operation, clipped.
        entry: Arc<Entry<P>>,
    },
    /// During catch-up: the next operation concerns nothing that was copied yet.
    Skip {
        /// Its place.
        version: Version,
        /// Its writer.
        writer: Writer,
    },
    /// Everything up to here is committed.
    Commit {
        /// The sequence.
        committed: Sequence,
    },
    /// Make everything up to here durable and acknowledge it.
    Sync {
        /// The sequence.
        upto: Sequence,
    },
    /// Send your operations after this one, which I lack.
    Tail {
        /// My last.
        after: Sequence,
    },
    /// A catch-up begins: operations that follow come after `position`.
    CatchUp {
        /// The primary's last operation.
        position: Version,
    },
    /// List your chunks after this one.
    List {
        /// `None` = from the first.
        after: Option<ChunkId>,
    },
    /// A step of copying.
    Copy(CopyStep<P>),
    /// The catch-up is complete: your history ends with `last` now.
    Done {
        /// The last operation.
        last: Version,
        /// Epoch starts of the primary.
        starts: Vec<(Epoch, Sequence)>,
        /// Writers seen of late.
        writers: Vec<Writer>,
        /// The primary's fence.
        fence: Fence,
    },
}

/// How a chunk gets to a member.
#[derive(Clone, Debug)]
pub enum CopyStep<P> {
    /// Drop what you have of it, pieces follow.
    Begin {
        /// The chunk.
        chunk: ChunkId,
    },
    /// A piece. Between pieces there are holes.
    Piece {
        /// The chunk.
        chunk: ChunkId,
        /// First byte.
        offset: u64,
        /// Of the data.
        checksums: Vec<u32>,
        /// Data.
        data: P,
    },
    /// The chunk is complete.
    End {
        /// Its state at the primary.
        state: ChunkState,
    },
    /// The primary does not know this chunk: drop it.
    Drop {
        /// The chunk.
        chunk: ChunkId,
    },
}

/// Member -> primary, on the same stream.
#[derive(Clone, Debug)]
pub enum ToPrimary<P> {
    /// To `Attach`.
    Attached {
        /// Has all that an in-sync member must have; else it needs a catch-up.
        complete: bool,
        /// Its last operation.
        last: Version,
        /// First operation that it still can send; one after `last` if none.
        tail_from: Sequence,
        /// Applied up to here.
        applied: Sequence,
        /// On disk up to here.
        durable: Sequence,
    },
    /// To `Attach` and `Config` of an epoch that is over. The stream is of no use.
    Refused {
        /// The member's epoch.
        epoch: Epoch,
    },
    /// Progress.
    Ack {
        /// Applied up to here.
        applied: Sequence,
        /// On disk up to here.
        durable: Sequence,
    },
    /// To `Tail`: one operation.
    TailOp {
        /// The operation.
        entry: Arc<Entry<P>>,
    },
    /// To `Tail`: that was all.
    TailEnd,
    /// To `List`.
    Listed {
        /// Its chunks, by id.
        chunks: Vec<ChunkState>,
        /// There are no more.
        end: bool,
    },
    /// A copied piece has been written.
    Copied,
    /// To `Done`: the history is durable and complete up to here.
    Finished {
        /// The last operation of the catch-up.
        last: Sequence,
    },
    /// The member's store failed, it cannot follow.
    Failed {
        /// Why.
        code: Code,
    },
}

/// A group's part of a beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeaconItem {
    /// The primary's epoch.
    pub epoch: Epoch,
    /// Committed up to here.
    pub committed: Sequence,
    /// Time, on the addressee's clock, of its last answer that the primary has received.
    pub echo: Option<Duration>,
}

/// What is kept of a beacon until its answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeaconSent {
    /// Epoch that the beacon named. Its answer counts for no other.
    pub epoch: Epoch,
    /// When it was sent, taken before the beacon was made.
    pub at: Duration,
}

/// A group's part of the answer to a beacon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BeaconAnswer {
    /// The answerer's epoch: the beacon is accepted if it is the beacon's.
    pub epoch: Epoch,
    /// The answerer's disk is nearly full.
    pub low_space: bool,
}

/// What a member says of itself when asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerState {
    /// The member.
    pub node: NodeId,
    /// Its epoch.
    pub epoch: Epoch,
    /// It has all that an in-sync member must have.
    pub complete: bool,
    /// It may lead after a restart of the group.
    pub eligible: bool,
    /// Its last operation.
    pub last: Version,
}
