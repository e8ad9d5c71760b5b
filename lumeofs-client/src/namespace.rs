//! The namespace: each call is one query or mutation, answered by the leader of the metadata group.

use crate::client::{Client, Context, Usage};
use crate::data::CAPABILITY;
use crate::meta::unexpected;
use lumeofs_base::{Attr, Code, FileKind, FsError, FsResult, InodeId};
use lumeofs_meta::op::{
    CreateMode, DirEntry, Mutation, NewNode, Query, RenameMode, Reply, SetAttr, XattrMode,
};

impl Client {
    /// The object that `name` means in `parent`; `.` and `..` are answered too.
    pub fn lookup(&self, cx: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<Attr> {
        let asker = self.link.asker(&cx);
        let query = Query::Lookup {
            parent,
            name: name.to_vec(),
        };
        let attr = self.link.query_attr(&asker, parent, &query)?;
        self.link.fresh(&asker, attr)
    }

    /// Attributes of an inode.
    pub fn getattr(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Attr> {
        let asker = self.link.asker(&cx);
        let attr = match self.link.publish(&asker, ino)? {
            Some(attr) => attr,
            None => self.link.query_attr(&asker, ino, &Query::GetAttr { ino })?,
        };
        Ok(self.link.with_own_writes(attr))
    }

    /// Attributes that are in memory. Never waits.
    pub fn known_attr(&self, ino: InodeId) -> Option<Attr> {
        match self.link.remembered(&Query::GetAttr { ino }) {
            Some(Ok(Reply::Attr(attr))) => Some(self.link.with_own_writes(attr)),
            _ => None,
        }
    }

    /// Sets attributes. A new size also cuts the last chunk before this returns.
    pub fn setattr(&self, cx: Context<'_>, ino: InodeId, set: SetAttr) -> FsResult<Attr> {
        self.link.set_attr_leased(&self.link.asker(&cx), ino, set)
    }

    /// Makes an object and says whether it was made by this call. A regular file counts as one
    /// [`Client::open`].
    pub fn create(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        name: &[u8],
        node: NewNode,
        mode: impl Into<CreateMode>,
        exclusive: bool,
    ) -> FsResult<(Attr, bool)> {
        let link = &self.link;
        let asker = link.asker(&cx);
        let mode = mode.into();
        if let Some(attr) = link.make(&asker, parent, name, &node, mode) {
            return Ok((attr, true));
        }
        let opens = matches!(node, NewNode::Regular);
        let restatements = if opens {
            link.opens.restatements(&asker.patience)?
        } else {
            0
        };
        let mutation = Mutation::Create {
            parent,
            name: name.to_vec(),
            node,
            mode,
            exclusive,
        };
        let era = link.era();
        let reply = link.mutate(&asker, parent, &mutation)?;
        let Reply::Created {
            attr,
            first_chunk,
            created,
        } = reply
        else {
            return Err(unexpected(&reply));
        };
        if attr.kind == FileKind::Regular {
            if created && let Some(chunk) = first_chunk {
                let inode = link.inodes.get(attr.ino);
                inode.learn_chunks(&attr, &[chunk], era);
            }
            if opens && !(created && link.opens.created(attr.ino, restatements)) {
                link.open(&asker, attr.ino)?;
            }
        }
        let attr = if created {
            attr
        } else {
            link.fresh(&asker, attr)?
        };
        Ok((attr, created))
    }

    /// A further name of an inode, or the first one of a file that was made without.
    pub fn link(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> FsResult<Attr> {
        let mutation = Mutation::Link {
            ino,
            parent,
            name: name.to_vec(),
        };
        self.name(cx, parent, &mutation)
    }

    /// Gives something a name in a directory.
    pub(crate) fn name(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        mutation: &Mutation,
    ) -> FsResult<Attr> {
        let asker = self.link.asker(&cx);
        let attr = self.link.mutate_attr(&asker, parent, mutation)?;
        self.link.fresh(&asker, attr)
    }

    /// Removes a name that is no directory.
    pub fn unlink(&self, cx: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<()> {
        let asker = self.link.asker(&cx);
        let mutation = Mutation::Unlink {
            parent,
            name: name.to_vec(),
        };
        self.link.mutate(&asker, parent, &mutation).map(drop)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, cx: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<()> {
        let asker = self.link.asker(&cx);
        let mutation = Mutation::Rmdir {
            parent,
            name: name.to_vec(),
        };
        self.link.mutate(&asker, parent, &mutation).map(drop)
    }

    /// Moves a name.
    pub fn rename(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        name: &[u8],
        new_parent: InodeId,
        new_name: &[u8],
        mode: RenameMode,
    ) -> FsResult<()> {
        let asker = self.link.asker(&cx);
        let (name, new_name) = (name.to_vec(), new_name.to_vec());
        let mutation = Mutation::Rename {
            parent,
            name,
            new_parent,
            new_name,
            mode,
        };
        self.link.mutate(&asker, parent, &mutation).map(drop)
    }

    /// Target of a symlink.
    pub fn readlink(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Vec<u8>> {
        self.bytes(&cx, ino, &Query::ReadLink { ino })
    }

    /// Entries after `cookie` (0 = start), at most `count_max`, without `.` and `..`, and whether
    /// more follow.
    pub fn readdir(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        cookie: u64,
        count_max: u32,
    ) -> FsResult<(Vec<DirEntry>, bool)> {
        let asker = self.link.asker(&cx);
        match self.link.list(&asker, ino, cookie, count_max)? {
            Reply::Entries { entries, more, .. } => Ok((entries, more)),
            other => Err(unexpected(&other)),
        }
    }

    /// The parent of a directory.
    pub fn parent(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Attr> {
        self.link
            .query_attr(&self.link.asker(&cx), ino, &Query::Parent { ino })
    }

    /// Value of an extended attribute.
    pub fn getxattr(&self, cx: Context<'_>, ino: InodeId, name: &[u8]) -> FsResult<Vec<u8>> {
        if name == CAPABILITY && self.link.has_taken_capability(ino) {
            let what = format!("{ino} was written to since it was set");
            return Err(FsError::new(Code::NoData, what));
        }
        self.bytes(
            &cx,
            ino,
            &Query::GetXattr {
                ino,
                name: name.to_vec(),
            },
        )
    }

    /// Sets an extended attribute.
    pub fn setxattr(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
    ) -> FsResult<()> {
        let (name, value) = (name.to_vec(), value.to_vec());
        let mutation = Mutation::SetXattr {
            ino,
            name,
            value,
            mode,
        };
        self.link
            .set_xattr_leased(&self.link.asker(&cx), ino, &mutation)
    }

    /// Names of all extended attributes.
    pub fn listxattr(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Vec<Vec<u8>>> {
        match self
            .link
            .query(&self.link.asker(&cx), ino, &Query::ListXattr { ino })?
        {
            Reply::Names(mut names) => {
                if names.iter().any(|name| name == CAPABILITY)
                    && self.link.has_taken_capability(ino)
                {
                    names.retain(|name| name != CAPABILITY);
                }
                Ok(names)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Removes an extended attribute.
    pub fn removexattr(&self, cx: Context<'_>, ino: InodeId, name: &[u8]) -> FsResult<()> {
        let mutation = Mutation::RemoveXattr {
            ino,
            name: name.to_vec(),
        };
        self.link
            .set_xattr_leased(&self.link.asker(&cx), ino, &mutation)
    }

    /// Counters of the filesystem; what the datanodes can take is divided by the number of copies.
    pub fn usage(&self, cx: Context<'_>) -> FsResult<Usage> {
        let reply = self
            .link
            .query(&self.link.asker(&cx), InodeId::ROOT, &Query::Usage)?;
        let Reply::Usage { inodes, bytes } = reply else {
            return Err(unexpected(&reply));
        };
        let (capacity_bytes, free_bytes) = self.link.space(&self.link.asker(&cx).patience);
        Ok(Usage {
            inodes,
            bytes,
            capacity_bytes,
            free_bytes,
        })
    }

    fn bytes(&self, cx: &Context<'_>, ino: InodeId, query: &Query) -> FsResult<Vec<u8>> {
        match self.link.query(&self.link.asker(cx), ino, query)? {
            Reply::Bytes(bytes) => Ok(bytes),
            other => Err(unexpected(&other)),
        }
    }
}
