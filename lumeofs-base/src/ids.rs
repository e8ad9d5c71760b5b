//! Identifiers and counters, one type each, so that no two of them can be confused.
//!
//! All are plain integers on the wire and on disk; the conversions are `from`/`get` and happen at
//! those edges only.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $repr:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $repr);

        impl $name {
            /// The number itself, for the wire and the disk.
            pub const fn get(self) -> $repr {
                self.0
            }
        }
        impl From<$repr> for $name {
            fn from(value: $repr) -> Self {
                Self(value)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id_type!(
    /// One of [`crate::limits::SLOT_COUNT`] logical partitions of the namespace.
    SlotId, u16, "s"
);
id_type!(
    /// A file, directory or other object: 16 bits of slot, 48 bits of counter within the slot.
    /// Allocated by the metadata state machine, never reused. The root is [`InodeId::ROOT`].
    InodeId, u64, "i"
);
id_type!(
    /// A chunk of file data. Named by its own id rather than by file and index, so that two files
    /// can share one. Allocated by the metadata state machine, never reused.
    ChunkId, u64, "c"
);
id_type!(
    /// Position of a chunk in its file: `offset / chunk_size`.
    ChunkIndex, u32, "#"
);
id_type!(
    /// A replica group: the ordered set of datanodes that stores a set of chunks together.
    GroupId, u32, "g"
);
id_type!(
    /// A Raft group: [`RaftGroupId::CONTROLLER`] or a metadata group.
    RaftGroupId, u32, "r"
);
id_type!(
    /// A server process: master or datanode. Stable over restarts, never reused for another data
    /// directory.
    NodeId, u64, "n"
);
id_type!(
    /// Fencing number of a replica group's configuration; every change of members or primary adds
    /// one. Requests of an older epoch are refused.
    Epoch, u64, "e"
);
id_type!(
    /// Order of operations inside a replica group; monotonic over epochs, starting at 1.
    Sequence, u64, "q"
);
id_type!(
    /// Identity of a client at the metadata groups. `(session, sequence)` names a mutation.
    SessionId, u64, "S"
);

impl InodeId {
    /// Bits of the counter within a slot.
    pub const COUNTER_BITS: u32 = 48;
    /// The root directory: slot 0, counter 1. FUSE calls its root 1 as well.
    pub const ROOT: Self = Self(1);

    /// Builds an id. `counter` must fit 48 bits.
    pub const fn new(slot: SlotId, counter: u64) -> Self {
        assert!(counter < 1 << Self::COUNTER_BITS);
        Self(((slot.0 as u64) << Self::COUNTER_BITS) | counter)
    }
    /// The slot that holds this inode.
    pub const fn slot(self) -> SlotId {
        SlotId((self.0 >> Self::COUNTER_BITS) as u16)
    }
    /// The counter inside the slot.
    pub const fn counter(self) -> u64 {
        self.0 & ((1 << Self::COUNTER_BITS) - 1)
    }
}

impl RaftGroupId {
    /// The controller group: nodes, replica groups, policies, slot map.
    pub const CONTROLLER: Self = Self(0);
    /// The first metadata group.
    pub const METADATA: Self = Self(1);
}

impl Sequence {
    /// The sequence after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Name of a cluster, drawn at random when it is created. Nodes and clients of different clusters
/// refuse each other. Written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
impl std::str::FromStr for ClusterId {
    type Err = crate::FsError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || {
            crate::FsError::new(
                crate::Code::Invalid,
                format!("cluster id {text:?}: want 32 hexadecimal digits"),
            )
        };
        if text.len() != 32 || !text.is_ascii() {
            return Err(bad());
        }
        let mut id = [0; 16];
        for (index, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inode_id_keeps_slot_and_counter() {
        let ino = InodeId::new(SlotId(1023), (1 << 48) - 1);
        assert_eq!((ino.slot(), ino.counter()), (SlotId(1023), (1 << 48) - 1));
        assert_eq!(InodeId::ROOT, InodeId::new(SlotId(0), 1));
    }

    #[test]
    fn cluster_id_round_trips_through_text() {
        let id = ClusterId(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse::<ClusterId>().unwrap(), id);
        assert!("xyz".parse::<ClusterId>().is_err());
        assert!("é".repeat(16).parse::<ClusterId>().is_err());
    }
}
