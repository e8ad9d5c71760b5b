//! Where mutations change names, and which directories those mean.

use crate::directory::{self, Found};
use crate::op::{Mutation, Step};
use crate::tables::Tables;
use lumeofs_base::{FileKind, InodeId};
use std::collections::BTreeSet;

impl Mutation {
    /// Directories in which it changes names, or on which it relies on its session's exclusive lease.
    pub fn directories(&self) -> Vec<InodeId> {
        match self {
            Self::Create { parent, .. }
            | Self::Link { parent, .. }
            | Self::Restore { parent, .. }
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
            | Self::EmptyTrash { .. }
            | Self::SetTrash { .. }
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

    /// Directories that it moves or removes, as far as its names mean any now.
    pub fn moved_directories(&self, tables: &dyn Tables) -> Vec<InodeId> {
        let names = match self {
            Self::Rmdir { parent, name } => vec![(*parent, name)],
            Self::Rename {
                parent,
                name,
                new_parent,
                new_name,
                ..
            } => vec![(*parent, name), (*new_parent, new_name)],
            _ => Vec::new(),
        };
        let meant = names.into_iter().filter_map(|(parent, name)| {
            match directory::find(tables, parent, name) {
                Found::At(_, entry) if entry.kind == FileKind::Directory => Some(entry.ino),
                _ => None,
            }
        });
        meant.collect()
    }
}
