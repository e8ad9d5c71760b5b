//! The trash: what was deleted and is kept for a while. All of it is for root.

use crate::client::{Client, Context};
use crate::meta::unexpected;
use lumeofs_base::{Attr, FsResult, InodeId};
use lumeofs_meta::op::{Mutation, Query, Reply, TrashEntry, TrashKey, TrashPolicy};

/// Entries of the trash, the oldest first.
#[derive(Clone, Debug)]
pub struct TrashPage {
    /// What is kept, and how long.
    pub policy: TrashPolicy,
    /// The entries.
    pub entries: Vec<TrashEntry>,
    /// Whether more follow.
    pub more: bool,
}

impl Client {
    /// What was deleted after an entry of the trash, at most `count_max`.
    pub fn trash(
        &self,
        cx: Context<'_>,
        after: Option<TrashKey>,
        count_max: u32,
    ) -> FsResult<TrashPage> {
        let of = None;
        self.ask_trash(
            &cx,
            &Query::Trash {
                after,
                of,
                count_max,
            },
        )
    }

    /// The entry of an inode, if it is in the trash.
    pub fn trashed(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Option<TrashEntry>> {
        let query = Query::Trash {
            after: None,
            of: Some(ino),
            count_max: 1,
        };
        Ok(self.ask_trash(&cx, &query)?.entries.pop())
    }

    /// Gives what is in the trash a name again. Nothing is overwritten.
    pub fn restore(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> FsResult<Attr> {
        let mutation = Mutation::Restore {
            ino,
            parent,
            name: name.to_vec(),
        };
        self.name(cx, parent, &mutation)
    }

    /// Drops entries; those that are there no more are passed over. At most
    /// [`lumeofs_base::limits::TRASH_ENTRIES_MAX`].
    pub fn empty_trash(&self, cx: Context<'_>, entries: Vec<TrashKey>) -> FsResult<()> {
        self.change_trash(&cx, &Mutation::EmptyTrash { entries })
    }

    /// Sets how long what is deleted from now on is kept, in seconds; `None`: not at all.
    pub fn set_trash(&self, cx: Context<'_>, keep_s: Option<u64>) -> FsResult<()> {
        self.change_trash(&cx, &Mutation::SetTrash { keep_s })
    }

    fn ask_trash(&self, cx: &Context<'_>, query: &Query) -> FsResult<TrashPage> {
        let asker = self.link.asker(cx);
        match self.link.query(&asker, InodeId::ROOT, query)? {
            Reply::Trash {
                policy,
                entries,
                more,
            } => Ok(TrashPage {
                policy,
                entries,
                more,
            }),
            other => Err(unexpected(&other)),
        }
    }

    fn change_trash(&self, cx: &Context<'_>, mutation: &Mutation) -> FsResult<()> {
        let asker = self.link.asker(cx);
        self.link.mutate(&asker, InodeId::ROOT, mutation).map(drop)
    }
}
