//! Where mutations change names.

use crate::op::{Mutation, Step};
use lumeofs_base::InodeId;
use std::collections::BTreeSet;

impl Mutation {
    /// Directories in which it changes names, or on which it relies on its session's exclusive lease.
    pub fn directories(&self) -> Vec<InodeId> {
        match self {
            Self::Create { parent, .. }
            | Self::Link { parent, .. }
            | Self::Unlink { parent, .. }
            | Self::Rmdir { parent, .. } => vec![*parent],
            Self::Rename {
                parent, new_parent, ..
            } => vec![*parent, *new_parent],
            Self::Make { steps } => {
                let parents: BTreeSet<InodeId> = steps.iter().map(Step::ino).collect();
                parents.into_iter().collect()
            }
            Self::Reserve { .. }
            | Self::CreateUnnamed { .. }
            | Self::Access { .. }
            | Self::SetAttr { .. }
            | Self::SetXattr { .. }
            | Self::RemoveXattr { .. }
            | Self::Allocate { .. }
            | Self::Publish { .. }
            | Self::Append { .. }
            | Self::TailClean { .. }
            | Self::Extend { .. }
            | Self::CutTail { .. }
            | Self::Flush { .. }
            | Self::Lock { .. }
            | Self::Unlock { .. }
            | Self::ReturnLocks { .. } => Vec::new(),
        }
    }
}
