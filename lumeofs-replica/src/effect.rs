//! What the core wants done. Effects are carried out in the order in which they were produced.

use crate::history::Note;
use crate::message::{Entry, StreamId, ToMember, ToPrimary, Writer};
use lumeofs_base::{
    ChunkId, ChunkState, Code, Epoch, FsResult, GroupConfig, NodeId, Sequence, Version,
};
use std::sync::Arc;

/// Name of a waiting request, chosen by the driver.
pub type Ticket = u64;

/// Something to do.
#[derive(Debug)]
pub enum Effect<P> {
    /// Put into the group's queue of store work, which is done strictly in order.
    Work(Work<P>),
    /// Send on a stream that this side opened.
    Send {
        /// The member.
        to: NodeId,
        /// The stream; nothing is sent if it is closed.
        stream: StreamId,
        /// What.
        message: ToMember<P>,
    },
    /// Send on the stream that the primary opened.
    Answer {
        /// The stream.
        stream: StreamId,
        /// What.
        message: ToPrimary<P>,
    },
    /// Connect to a member; then `on_stream_open` or `on_stream_closed`.
    Open {
        /// The member.
        to: NodeId,
        /// The stream's name.
        stream: StreamId,
    },
    /// Close a stream that this side opened; no event follows.
    Close {
        /// The member.
        to: NodeId,
        /// The stream.
        stream: StreamId,
    },
    /// Close a stream that a primary opened; no event follows.
    Hangup {
        /// The stream.
        stream: StreamId,
    },
    /// Answer a client's request.
    Reply {
        /// The request.
        ticket: Ticket,
        /// The operation's place, or of a sync the place up to which all is durable.
        result: FsResult<Version>,
    },
    /// Ask the controller to replace the configuration.
    Propose {
        /// Epoch that is replaced.
        expected: Epoch,
        /// The next configuration.
        config: GroupConfig,
    },
    /// Ask a member for its [`crate::PeerState`].
    Ask {
        /// The member.
        node: NodeId,
    },
    /// Ask the controller for the configuration.
    Refresh,
    /// Send beacons now.
    BeaconNow,
    /// What a request may wait for has changed: look again.
    Changed,
}

/// Store work. Done in order, one at a time per group.
#[derive(Debug)]
pub enum Work<P> {
    /// Apply; then `on_applied`.
    Apply {
        /// The operation.
        entry: Arc<Entry<P>>,
    },
    /// During catch-up at the member: apply an operation on a chunk that is complete, or, `partial`, on
    /// the copied beginning of one that is not and must keep its mark. Then `on_followed`.
    Follow {
        /// The operation.
        entry: Arc<Entry<P>>,
        /// See above.
        partial: bool,
        /// The stream that it came by.
        stream: StreamId,
    },
    /// Keep this note.
    Note(Note),
    /// Make all that was applied durable; then `on_durable(upto)`.
    Sync {
        /// The last applied operation.
        upto: SyncPoint,
    },
    /// At the primary: list own chunks after `after`; then `on_own_list`.
    ListOwn {
        /// For whom.
        member: NodeId,
        /// Its stream.
        stream: StreamId,
        /// `None` = from the first.
        after: Option<ChunkId>,
    },
    /// At the primary: read the next piece at or after `offset`; then `on_piece`.
    ReadPiece {
        /// For whom.
        member: NodeId,
        /// Its stream.
        stream: StreamId,
        /// The chunk.
        chunk: ChunkId,
        /// First byte that is wanted.
        offset: u64,
    },
    /// At the member: list own chunks; then `on_listed`.
    ListForPrimary {
        /// The stream.
        stream: StreamId,
        /// `None` = from the first.
        after: Option<ChunkId>,
    },
    /// At the member: a step of copying; then `on_copied`, of pieces only.
    Copy {
        /// The stream.
        stream: StreamId,
        /// The step.
        step: crate::message::CopyStep<P>,
    },
    /// At the member: set the end of the history, keep the note, make all durable; then `on_finished`.
    Finish {
        /// The stream.
        stream: StreamId,
        /// The last operation.
        last: Version,
        /// Its note.
        note: Note,
    },
}

/// A place in a member's history, for [`Work::Sync`]. After the history was cut or replaced the same
/// sequence may mean another operation, so an answer that comes later says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncPoint {
    pub(crate) sequence: Sequence,
    pub(crate) history: u64,
}

/// A piece of a chunk as read at the primary.
#[derive(Clone, Debug)]
pub struct Piece<P> {
    /// The chunk.
    pub chunk: ChunkId,
    /// First byte of the data. What lies between the wanted byte and it is a hole.
    pub offset: u64,
    /// Of the data.
    pub checksums: Vec<u32>,
    /// At most 1 MiB; ends at a block boundary unless the chunk ends.
    pub data: P,
    /// The chunk's truncation number.
    pub truncations: u32,
    /// The chunk's state, if this was its last piece.
    pub end: Option<ChunkState>,
}

/// What became of an applied operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Applied,
    /// Refused, by every member alike.
    Refused(Code),
}

/// A request that waits for its operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) ticket: Ticket,
    pub(crate) version: Version,
    pub(crate) durable: bool,
    pub(crate) refused: Option<Code>,
    pub(crate) writer: Writer,
}
