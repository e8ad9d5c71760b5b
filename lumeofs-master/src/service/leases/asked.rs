//! What operations are about: which inodes a query shows, which ones a mutation names.

use crate::raft::Overlay;
use lumeofs_base::{Attr, Code, FileKind, FsError, FsResult, InodeId};
use lumeofs_lease::Want;
use lumeofs_meta::namespace::{self, ToList};
use lumeofs_meta::op::{Caller, Mutation, Outcome, Query, Reply};

/// What an answer shows.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// Inodes of which something is shown.
    pub(crate) inodes: Vec<(InodeId, FileKind)>,
    /// What is told only as far as there are leases for it.
    pub(crate) listed: Vec<ToList>,
    /// The one that was asked for, if it is there.
    main: Option<InodeId>,
}

impl Shown {
    /// One inode.
    pub(crate) fn one(attr: &Attr) -> Self {
        Self {
            inodes: vec![(attr.ino, attr.kind)],
            main: Some(attr.ino),
            ..Self::default()
        }
    }
}

/// What an answer to a query shows. A refusal shows something of the inode that was asked about, too.
pub(crate) fn shown(tables: &Overlay, caller: &Caller, query: &Query, outcome: &Outcome) -> Shown {
    let asked = match query {
        Query::Lookup { parent: ino, .. }
        | Query::GetAttr { ino }
        | Query::ReadLink { ino }
        | Query::ReadDir { ino, .. }
        | Query::GetXattr { ino, .. }
        | Query::ListXattr { ino }
        | Query::Chunks { ino, .. }
        | Query::Parent { ino } => *ino,
        // Of what is in the trash it shows what was published last.
        Query::Usage | Query::TestLock { .. } | Query::Trash { .. } => return Shown::default(),
    };
    let mut shown = Shown::default();
    match outcome {
        // What was asked for is a directory or a file whose attributes came.
        Ok(Reply::Attr(attr)) if attr.ino != asked => {
            shown.inodes = vec![(asked, FileKind::Directory), (attr.ino, attr.kind)];
            shown.main = Some(attr.ino);
        }
        Ok(Reply::Attr(attr) | Reply::Chunks { attr, .. }) => shown = Shown::one(attr),
        Ok(Reply::Entries { entries, .. }) => {
            shown.inodes = vec![(asked, FileKind::Directory)];
            shown.listed = namespace::to_list(tables, caller, entries, query.inodes_max());
            shown.main = Some(asked);
        }
        _ => {
            if let Some(attr) = getattr(tables, asked) {
                shown = Shown::one(&attr);
            }
        }
    }
    // Nothing that was asked for is there.
    if matches!((query, outcome), (Query::Lookup { .. }, Err(_))) {
        shown.main = None;
    }
    shown
}

/// What a request wants besides an answer.
///
/// # Errors
/// `Invalid`: a number that means nothing.
pub(crate) fn want(number: u32, query: &Query, shown: &Shown) -> FsResult<Want> {
    Ok(match (number, shown.main) {
        (0, _) => Want::Nothing,
        (1, Some(ino)) if matches!(query, Query::Chunks { .. }) => Want::Data(ino),
        (1, _) | (2, None) => Want::Shared,
        (2, Some(ino)) => Want::Write(ino),
        _ => {
            return Err(FsError::new(
                Code::Invalid,
                format!("a lease of kind {number}"),
            ));
        }
    })
}

/// Inodes that a mutation names, so that unpublished writes of others to them must be published first. Names are not:
/// what is done to them leaves the contents of files alone.
pub(crate) fn named(mutation: &Mutation) -> Option<InodeId> {
    match mutation {
        Mutation::Link { ino, .. }
        | Mutation::Restore { ino, .. }
        | Mutation::SetAttr { ino, .. }
        | Mutation::Allocate { ino, .. }
        | Mutation::Publish { ino, .. }
        | Mutation::Append { ino, .. }
        | Mutation::TailClean { ino, .. }
        | Mutation::Extend { ino, .. }
        | Mutation::CutTail { ino }
        | Mutation::SetXattr { ino, .. }
        | Mutation::RemoveXattr { ino, .. }
        | Mutation::Flush { ino, .. } => Some(*ino),
        // For what it inherits.
        Mutation::CreateUnnamed { parent, .. } => Some(*parent),
        // Times of reads have nothing to do with what others have written.
        Mutation::Access { .. } => None,
        // Locks are no part of what mounts have in memory.
        Mutation::Lock { .. } | Mutation::Unlock { .. } | Mutation::ReturnLocks { .. } => None,
        Mutation::Create { .. }
        | Mutation::Unlink { .. }
        | Mutation::Rmdir { .. }
        | Mutation::Rename { .. }
        | Mutation::Make { .. }
        | Mutation::Reserve { .. }
        | Mutation::EmptyTrash { .. }
        | Mutation::SetTrash { .. } => None,
    }
}

/// Inodes of which the refusal of a mutation, or one that changed nothing there, may show something.
pub(crate) fn shown_by_refusal(tables: &Overlay, mutation: &Mutation) -> Vec<InodeId> {
    let (inodes, names) = match mutation {
        Mutation::Create { parent, name, .. }
        | Mutation::Unlink { parent, name }
        | Mutation::Rmdir { parent, name } => (vec![*parent], vec![(*parent, name)]),
        Mutation::CreateUnnamed { parent, .. } => (vec![*parent], Vec::new()),
        Mutation::Link { ino, parent, name } | Mutation::Restore { ino, parent, name } => {
            (vec![*ino, *parent], vec![(*parent, name)])
        }
        Mutation::Rename {
            parent,
            name,
            new_parent,
            new_name,
            ..
        } => (
            vec![*parent, *new_parent],
            vec![(*parent, name), (*new_parent, new_name)],
        ),
        Mutation::SetXattr { ino, .. } | Mutation::RemoveXattr { ino, .. } => {
            (vec![*ino], Vec::new())
        }
        Mutation::Make { .. } => (mutation.directories(), Vec::new()),
        _ => (named(mutation).into_iter().collect(), Vec::new()),
    };
    let meant = names.into_iter().filter_map(|(parent, name)| {
        let query = Query::Lookup {
            parent,
            name: name.clone(),
        };
        attr(tables, &query).map(|attr| attr.ino)
    });
    let meant: Vec<InodeId> = meant.collect();
    inodes.into_iter().chain(meant).collect()
}

fn getattr(tables: &Overlay, ino: InodeId) -> Option<Attr> {
    attr(tables, &Query::GetAttr { ino })
}

fn attr(tables: &Overlay, query: &Query) -> Option<Attr> {
    let trusted = Caller {
        trusted: true,
        ..Caller::default()
    };
    match namespace::query(tables, &trusted, query) {
        Ok(Reply::Attr(attr)) => Some(attr),
        _ => None,
    }
}
