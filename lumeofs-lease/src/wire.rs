//! What holder and table say to each other.

use lumeofs_base::{Attr, InodeId};
use lumeofs_meta::op::DirEntry;
use serde::{Deserialize, Serialize};

/// Names one unbroken series of leases of a session. A later one is greater, over leaderships too.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation {
    /// The leadership, 0 for none.
    pub term: u64,
    /// Of its table.
    pub number: u64,
}

/// A right on one inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// To cache all that is in it. Any number of sessions, none of them a writer.
    Shared,
    /// Besides, to keep what is written, or made in a directory, in memory for a while. Nobody else has any right.
    Exclusive,
    /// To read and write at the datanodes and keep nothing of the file. Of regular files; any number of sessions.
    Through,
}

impl Kind {
    /// Whether data may be on its way under it, so that it ends by its holder's word or a fence, never by time alone.
    pub fn writes(self) -> bool {
        match self {
            Self::Exclusive | Self::Through => true,
            Self::Shared => false,
        }
    }
}

/// A right that comes with an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// On what.
    pub ino: InodeId,
    /// Which.
    pub kind: Kind,
    /// Orders the answer among recalls and other answers: both count in the same numbers.
    pub number: u64,
}

/// A write lease that a holder asserts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// On what.
    pub ino: InodeId,
    /// Which.
    pub kind: Kind,
}

/// A recall was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Its number.
    pub id: u64,
    /// The inode is open at the holder.
    pub open: bool,
}

/// A right that is given up without being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// On what.
    pub ino: InodeId,
    /// Number of the last grant that is meant; a later one stays.
    pub number: u64,
    /// Of an exclusive one a shared one is kept.
    pub keeps_shared: bool,
}

/// What a holder says. One is under way at all times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poll {
    /// Counts the polls of a session: one that was overtaken counts for nothing.
    pub serial: u64,
    /// Of all its leases; the default one when it has none yet.
    pub generation: Generation,
    /// All its write leases, in its first poll of a generation.
    pub asserts: Option<Vec<Held>>,
    /// Number of the last recall that has arrived.
    pub seen: u64,
    /// Recalls that were done.
    pub acks: Vec<Ack>,
    /// Rights that are given up.
    pub released: Vec<Release>,
}

/// What the table answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollAnswer {
    /// The generation that counts from now on.
    pub generation: Generation,
    /// The shared leases are void; the write leases are to be asserted under this generation.
    pub restate: bool,
    /// The term counts anew from the sending of the poll.
    pub renewed: bool,
    /// How many leases the session may keep: it gives up those that it used least.
    pub leases_max: u64,
    /// In the order of their numbers.
    pub recalls: Vec<Recall>,
}

/// Something that a holder must know, or do, before others go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recall {
    /// Its number.
    pub id: u64,
    /// The inode whose lease it concerns.
    pub ino: InodeId,
    /// What.
    pub what: What,
    /// What is told may be shown at once. Else others may still show what was before: it only makes forget, and whoever
    /// asks then is answered when all have heard.
    pub is_alone: bool,
}

/// What a recall is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// The attributes are these now. The lease stays.
    Attr(Attr),
    /// The name in this directory means this now. The lease stays.
    Name {
        /// The name.
        name: Vec<u8>,
        /// Its entry, if there is one.
        entry: Option<DirEntry>,
    },
    /// Some extended attribute has changed. The lease stays.
    Xattr,
    /// Give the lease up: after what was written is with the datanodes and its size published.
    Drop,
    /// Keep a shared lease of an exclusive one, after the same.
    Downgrade,
}

impl What {
    /// What recalls can be about, for people.
    pub const NAMES: [&str; 5] = ["attr", "name", "xattr", "drop", "downgrade"];

    /// One of them.
    pub fn name(&self) -> &'static str {
        let [attr, name, xattr, drop, downgrade] = Self::NAMES;
        match self {
            Self::Attr(_) => attr,
            Self::Name { .. } => name,
            Self::Xattr => xattr,
            Self::Drop => drop,
            Self::Downgrade => downgrade,
        }
    }

    /// Whether the lease, or a part of it, is to be given back.
    pub fn takes(&self) -> bool {
        match self {
            Self::Drop | Self::Downgrade => true,
            Self::Attr(_) | Self::Name { .. } | Self::Xattr => false,
        }
    }
}
