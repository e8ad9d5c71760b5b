//! What a mutation touched.

use crate::op::DirEntry;
use lumeofs_base::{Attr, InodeId};
use serde::{Deserialize, Serialize};

/// One thing that is different now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// An inode, perhaps a new one, has these attributes.
    Attr(Attr),
    /// A name means something else.
    Name {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: Vec<u8>,
        /// What it means, if anything.
        entry: Option<DirEntry>,
    },
    /// Some extended attribute of an inode.
    Xattr {
        /// The inode.
        ino: InodeId,
    },
    /// An inode is no more.
    Gone {
        /// The inode.
        ino: InodeId,
    },
}

impl Change {
    /// The inode whose lease covers it.
    pub fn ino(&self) -> InodeId {
        match self {
            Self::Attr(attr) => attr.ino,
            Self::Name { parent: ino, .. } | Self::Xattr { ino } | Self::Gone { ino } => *ino,
        }
    }
}
