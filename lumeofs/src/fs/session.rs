//! A session with the cluster for one command, and what it does with names.

use crate::access::Access;
use crate::output;
use lumeofs_base::{Attr, Code, FileKind, FsError, FsResult, InodeId, RequestId};
use lumeofs_client::{Client, Context};
use lumeofs_meta::op::{Caller, CreateMode, NewNode, RenameMode};
use std::sync::Arc;

/// The mode of what these commands make: a default ACL takes the place of the umask.
pub(super) fn with_umask(mode: u16) -> CreateMode {
    CreateMode { mode, umask: 0o022 }
}

/// A session of one command, with the rights of who runs it.
pub(crate) struct Session {
    /// The client.
    pub(crate) client: Arc<Client>,
    caller: Caller,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Nothing that a command writes stays in memory, so nothing is lost.
        self.client.close().ok();
    }
}

impl Session {
    /// Connects.
    pub(crate) fn open(access: &Access) -> anyhow::Result<Self> {
        let caller = Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: rustix::process::getgroups()?
                .into_iter()
                .map(rustix::fs::Gid::as_raw)
                .collect(),
            trusted: false,
        };
        Ok(Self {
            client: access.connect()?,
            caller,
        })
    }

    /// Who calls.
    pub(crate) fn context(&self) -> Context<'_> {
        Context {
            request: RequestId::next(),
            caller: &self.caller,
            interrupted: &|| false,
        }
    }

    /// The object of a path from the root. Symlinks are not followed.
    pub(crate) fn resolve(&self, path: &[u8]) -> FsResult<Attr> {
        let mut attr = self.client.getattr(self.context(), InodeId::ROOT)?;
        for name in names(path) {
            let found = self.client.lookup(self.context(), attr.ino, name);
            attr = found.map_err(|error| error.during(output::name(path)))?;
        }
        Ok(attr)
    }

    /// The directory that a path names an object in, and the object's name.
    pub(super) fn resolve_parent<'p>(&self, path: &'p [u8]) -> FsResult<(InodeId, &'p [u8])> {
        let Some(name) = names(path).last() else {
            let text = format!("{:?} names no object in a directory", output::name(path));
            return Err(FsError::new(Code::Invalid, text));
        };
        let end = name.as_ptr() as usize - path.as_ptr() as usize;
        Ok((self.resolve(&path[..end])?.ino, name))
    }

    /// All entries of a directory, by name.
    pub(super) fn entries(&self, ino: InodeId) -> FsResult<Vec<(Vec<u8>, InodeId)>> {
        let mut all = Vec::new();
        let (mut cookie, mut more) = (0, true);
        while more {
            let (entries, further) = self.client.readdir(self.context(), ino, cookie, 1000)?;
            more = further && !entries.is_empty();
            for entry in entries {
                cookie = entry.cookie;
                all.push((entry.name, entry.ino));
            }
        }
        all.sort();
        Ok(all)
    }

    /// Removes an object; a directory only if it is `recursive`, with all below it.
    pub(super) fn remove(&self, parent: InodeId, name: &[u8], recursive: bool) -> FsResult<()> {
        let cx = self.context();
        let attr = self.client.lookup(cx, parent, name)?;
        if attr.kind != FileKind::Directory {
            return self.client.unlink(cx, parent, name);
        }
        if !recursive {
            let text = format!("{:?} is a directory: add -r", output::name(name));
            return Err(FsError::new(Code::IsDirectory, text));
        }
        for (entry, _) in self.entries(attr.ino)? {
            self.remove(attr.ino, &entry, true)?;
        }
        self.client.rmdir(cx, parent, name)
    }

    /// Makes a directory, and with `parents` those above it.
    pub(super) fn mkdir(&self, path: &[u8], parents: bool) -> FsResult<()> {
        let cx = self.context();
        if !parents {
            let (parent, name) = self.resolve_parent(path)?;
            return self
                .client
                .create(
                    cx,
                    parent,
                    name,
                    NewNode::Directory,
                    with_umask(0o777),
                    true,
                )
                .map(drop);
        }
        let mut parent = InodeId::ROOT;
        for name in names(path) {
            let made = self.client.create(
                cx,
                parent,
                name,
                NewNode::Directory,
                with_umask(0o777),
                true,
            );
            parent = match made {
                Ok((attr, _)) => attr.ino,
                Err(error) if error.code == Code::Exists => {
                    self.client.lookup(cx, parent, name)?.ino
                }
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }

    /// Where an object called `name` goes that is put at `path`: into it if it is a directory.
    pub(super) fn target<'p>(
        &self,
        path: &'p [u8],
        name: &'p [u8],
    ) -> FsResult<(InodeId, &'p [u8])> {
        match self.resolve(path) {
            Ok(attr) if attr.kind == FileKind::Directory => Ok((attr.ino, name)),
            Err(error) if error.code != Code::NotFound => Err(error),
            _ => self.resolve_parent(path),
        }
    }

    /// Renames; into a directory if the target is one.
    pub(super) fn rename(&self, from: &[u8], to: &[u8]) -> FsResult<()> {
        let (parent, name) = self.resolve_parent(from)?;
        let (new_parent, new_name) = self.target(to, name)?;
        let cx = self.context();
        self.client
            .rename(cx, parent, name, new_parent, new_name, RenameMode::Replace)
    }
}

/// The names of a path.
pub(super) fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty())
}
