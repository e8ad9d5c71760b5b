//! What a command touched, for those who cache it elsewhere.
//!
//! It follows from the log alone, so every member knows the same. A transaction writes each inode, name and extended
//! attribute through functions that note it here: nothing can change without a word. Kept per command and once per
//! object, with what the object is *after* the command.

use crate::op::{DirEntry, Outcome};
use lumeofs_base::{Attr, InodeId};
use serde::{Deserialize, Serialize};

/// An object that a command touched, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// An inode, also a new one. It stands for what attributes do not show as well: the chunks of a file, the parent
    /// of a directory.
    Attr(Attr),
    /// A name.
    Name {
        /// Its directory.
        parent: InodeId,
        /// The name. Never `.` or `..`.
        name: Vec<u8>,
        /// What it means now; `None`: there is no such name any more.
        entry: Option<DirEntry>,
    },
    /// Names or values of the extended attributes of an inode.
    Xattr {
        /// The inode.
        ino: InodeId,
    },
    /// An inode was freed. Its id is never used again.
    Gone {
        /// The inode.
        ino: InodeId,
    },
}

impl Change {
    /// The inode whose cached state it concerns: of a name its directory.
    pub fn ino(&self) -> InodeId {
        match self {
            Self::Attr(attr) => attr.ino,
            Self::Name { parent, .. } => *parent,
            Self::Xattr { ino } | Self::Gone { ino } => *ino,
        }
    }

    /// Whether a later change makes this one superfluous.
    fn is_replaced_by(&self, later: &Self) -> bool {
        match (self, later) {
            (Self::Attr(_), Self::Attr(_)) | (Self::Xattr { .. }, Self::Xattr { .. }) => {
                self.ino() == later.ino()
            }
            (Self::Name { name, .. }, Self::Name { name: again, .. }) => {
                self.ino() == later.ino() && name == again
            }
            (Self::Attr(_) | Self::Xattr { .. }, Self::Gone { ino }) => self.ino() == *ino,
            _ => false,
        }
    }
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// What it answers.
    pub outcome: Outcome,
    /// What it touched; nothing if it failed.
    pub changes: Vec<Change>,
    /// The outcome is that of an earlier command of the same session and sequence: what that one touched is not known any
    /// more, and nothing has changed now.
    pub repeated: bool,
}

impl Applied {
    /// An earlier outcome.
    pub(crate) fn again(outcome: Outcome) -> Self {
        Self {
            outcome,
            changes: Vec::new(),
            repeated: true,
        }
    }
}

/// Changes of the command that is being applied.
#[derive(Debug, Default)]
pub(crate) struct Changes(Vec<Change>);

impl Changes {
    /// Notes what an object is now. A command touches few objects: looking at all of them is quick.
    pub(crate) fn note(&mut self, change: Change) {
        self.0.retain(|earlier| !earlier.is_replaced_by(&change));
        self.0.push(change);
    }

    /// All of them, once the command is done.
    pub(crate) fn take(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.0)
    }
}
