//! The types that openraft is parametrised with, and what a hosted state machine must do.

use super::overlay::Overlay;
use super::snapshot::SnapshotData;
use bytes::Bytes;
use lumeofs_base::{FsError, FsResult};
use lumeofs_meta::change;
use lumeofs_meta::controller::ControllerReply;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

openraft::declare_raft_types!(
    /// openraft's parameters, the same for all groups.
    pub(crate) TypeConfig:
        D = Payload,
        R = Applied,
        NodeId = u64,
        Node = openraft::BasicNode,
        SnapshotData = SnapshotData,
);

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type LeaderId = openraft::LeaderId<u64>;
pub(crate) type Membership = openraft::StoredMembership<u64, openraft::BasicNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, openraft::BasicNode>;
pub(crate) type Snapshot = openraft::Snapshot<TypeConfig>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type StorageIOError = openraft::StorageIOError<u64>;

/// A batch of commands as it stands in the log: its encoding is the state machine's matter.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Payload(pub(crate) Bytes);

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Copy;
        impl Visitor<'_> for Copy {
            type Value = Payload;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Payload, E> {
                Ok(Payload(Bytes::copy_from_slice(bytes)))
            }
        }
        deserializer.deserialize_bytes(Copy)
    }
}

/// What an applied entry answers to its proposer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Applied {
    /// Nothing: an entry of openraft's own.
    Nothing,
    /// What became of the commands of a metadata batch, in order.
    Metadata(Vec<change::Applied>),
    /// Replies of a controller batch, in order.
    Controller(Vec<ControllerReply>),
}

/// Names one leadership. Several leaders can share openraft's term, so its node belongs to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Term {
    /// openraft's term.
    pub(crate) number: u64,
    /// The leader.
    pub(crate) node: u64,
}

impl Term {
    /// One number for the wire, different for each leadership. Clients compare it for equality only.
    pub(crate) fn to_wire(self) -> u64 {
        self.number << 16 | (self.node & 0xffff)
    }
}

impl From<LeaderId> for Term {
    fn from(id: LeaderId) -> Self {
        Self {
            number: id.term,
            node: id.node_id,
        }
    }
}

/// Where an entry that is being applied comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryOrigin {
    /// Its index.
    pub(crate) index: u64,
    /// The leadership that proposed it.
    pub(crate) term: Term,
}

/// A state machine as the host sees it. Applying is deterministic; whatever else an implementation
/// does while it applies must not change the tables.
pub(crate) trait Machine: Send + Sync + 'static {
    /// One command.
    type Command: Send + 'static;
    /// What one command answers.
    type Reply: Send + 'static;

    /// Makes the log's form of a batch.
    fn seal(&self, commands: Vec<Self::Command>) -> Vec<u8>;
    /// Applies a batch. An error means that the log's form cannot be read.
    fn apply(&self, tables: &mut Overlay, origin: EntryOrigin, batch: &[u8]) -> FsResult<Applied>;
    /// The replies of an applied batch.
    fn replies(&self, applied: Applied) -> Vec<Self::Reply>;
}

/// The error as openraft wants it.
pub(crate) fn any(error: &FsError) -> openraft::AnyError {
    openraft::AnyError::new(error)
}
