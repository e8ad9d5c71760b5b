//! Operations on names: lookup, making, linking, moving and removing.

use super::Core;
use crate::attr::{kind_of_mode, permissions};
use fuser::{FileAttr, RenameFlags};
use lumeofs_base::limits::SLOT_COUNT;
use lumeofs_base::{Attr, Code, FileKind, FsError, FsResult, InodeId};
use lumeofs_client::Context;
use lumeofs_meta::op::{CreateMode, NewNode, RenameMode};

/// How often a file is to be made whose name appears and disappears.
const CREATE_TRIES: usize = 16;

impl Core {
    pub(crate) fn lookup(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        name: &[u8],
    ) -> FsResult<FileAttr> {
        let attr = match name {
            b"." => self.by_number(cx, parent),
            // Above the mounted directory is the kernel's business.
            b".." if parent == self.root => self.by_number(cx, parent),
            b".." => {
                let dir = self.by_number(cx, parent)?;
                self.backend.parent(cx, dir.ino)
            }
            _ => self.backend.lookup(cx, parent, name),
        };
        attr.map(|attr| self.referenced(&attr))
    }

    /// An inode that the kernel has forgotten, and that somebody names by its handle (`open_by_handle_at(2)`, NFS). What has
    /// lost its names is gone for them.
    fn by_number(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Attr> {
        if ino.slot().get() >= SLOT_COUNT {
            // Nobody would answer for it.
            return Err(FsError::new(Code::Stale, format!("{ino} is no inode")));
        }
        let attr = self.backend.getattr(cx, ino)?;
        match attr.nlink {
            0 => Err(FsError::new(Code::Stale, format!("{ino} was removed"))),
            _ => Ok(attr),
        }
    }

    pub(crate) fn mknod(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
        rdev: u32,
    ) -> FsResult<FileAttr> {
        let node = match kind_of_mode(mode) {
            Some(FileKind::Regular) => NewNode::Regular,
            Some(kind @ (FileKind::CharDevice | FileKind::BlockDevice)) => {
                NewNode::Special(kind, rdev)
            }
            Some(kind @ (FileKind::Fifo | FileKind::Socket)) => NewNode::Special(kind, 0),
            Some(FileKind::Directory | FileKind::Symlink) | None => {
                return Err(FsError::new(
                    Code::Invalid,
                    format!("mknod with mode {mode:o}"),
                ));
            }
        };
        let file = node == NewNode::Regular;
        let attr = self
            .backend
            .create(cx, parent, name, node, create_mode(mode, umask))?;
        if file {
            // A new file counts as open, but mknod does not open it.
            self.backend.release(attr.ino);
        }
        Ok(self.referenced(&attr))
    }

    pub(crate) fn mkdir(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        umask: u32,
    ) -> FsResult<FileAttr> {
        let mode = create_mode(mode, umask);
        self.backend
            .create(cx, parent, name, NewNode::Directory, mode)
            .map(|attr| self.referenced(&attr))
    }

    pub(crate) fn symlink(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        name: &[u8],
        target: Vec<u8>,
    ) -> FsResult<FileAttr> {
        self.backend
            .create(cx, parent, name, NewNode::Symlink(target), 0o777.into())
            .map(|attr| self.referenced(&attr))
    }

    /// Makes and opens a file. The kernel asks for this only after a lookup that found nothing. If
    /// the name has appeared since, it has checked no permission on what is there, nor followed it if it is a
    /// symlink. `Stale` makes it start the whole `open(2)` again and find the name. But it does so only once, and where
    /// names come and go its caller would get ESTALE; so what needs no more checks is opened here.
    pub(crate) fn create(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        name: &[u8],
        (mode, umask): (u32, u32),
        (tid, flags): (u32, i32),
    ) -> FsResult<(FileAttr, u64)> {
        let mode = create_mode(mode, umask);
        for _ in 0..CREATE_TRIES {
            let made = self
                .backend
                .create(cx, parent, name, NewNode::Regular, mode);
            match made {
                Ok(attr) => return Ok((self.referenced(&attr), self.new_handle(flags))),
                Err(error) if error.code == Code::Exists && flags & libc::O_EXCL == 0 => {}
                Err(error) => return Err(error),
            }
            let there = match self.backend.lookup(cx, parent, name) {
                Ok(there) => there,
                Err(error) if error.code == Code::NotFound => continue,
                Err(error) => return Err(error),
            };
            if !is_open_to(&there, cx.caller.uid, flags) {
                break;
            }
            match self.open_existing(cx, there.ino, tid, flags) {
                Err(error) if error.code == Code::Stale => {}
                opened => return opened,
            }
        }
        let name = String::from_utf8_lossy(name);
        Err(FsError::new(
            Code::Stale,
            format!("{name:?} appeared while it was to be made"),
        ))
    }

    /// Makes and opens a file without a name. The kernel lets it be linked unless O_EXCL forbids that.
    pub(crate) fn create_unnamed(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        (mode, umask): (u32, u32),
        flags: i32,
    ) -> FsResult<(FileAttr, u64)> {
        let mode = create_mode(mode, umask);
        let attr = self.backend.create_unnamed(cx, parent, mode)?;
        Ok((self.referenced(&attr), self.new_handle(flags)))
    }

    /// Opens a file in place of making it. `Stale` if it is gone by now.
    fn open_existing(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        tid: u32,
        flags: i32,
    ) -> FsResult<(FileAttr, u64)> {
        self.open(cx, ino, tid, flags)?;
        match self.backend.getattr(cx, ino) {
            Ok(attr) => Ok((self.referenced(&attr), self.new_handle(flags))),
            Err(error) => {
                self.backend.release(ino);
                Err(error)
            }
        }
    }

    pub(crate) fn link(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> FsResult<FileAttr> {
        self.backend
            .link(cx, ino, parent, name)
            .map(|attr| self.referenced(&attr))
    }

    pub(crate) fn unlink(&self, cx: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<()> {
        self.backend.unlink(cx, parent, name)
    }

    pub(crate) fn rmdir(&self, cx: Context<'_>, parent: InodeId, name: &[u8]) -> FsResult<()> {
        self.backend.rmdir(cx, parent, name)
    }

    pub(crate) fn rename(
        &self,
        cx: Context<'_>,
        from: (InodeId, &[u8]),
        to: (InodeId, &[u8]),
        flags: RenameFlags,
    ) -> FsResult<()> {
        self.backend.rename(cx, from, to, rename_mode(flags)?)
    }
}

/// The kernel leaves the umask to whom it asks, since a default ACL takes its place.
fn create_mode(mode: u32, umask: u32) -> CreateMode {
    CreateMode {
        mode: permissions(mode),
        umask: permissions(umask),
    }
}

/// Whether the kernel would certainly let `uid` open this with O_CREAT: a regular file of its own, whose mode gives
/// its owner what is asked.
fn is_open_to(attr: &Attr, uid: u32, flags: i32) -> bool {
    let wanted = match flags & libc::O_ACCMODE {
        libc::O_RDONLY if flags & libc::O_TRUNC == 0 => 0o400,
        libc::O_WRONLY => 0o200,
        _ => 0o600,
    };
    attr.kind == FileKind::Regular && attr.uid == uid && attr.mode & wanted == wanted
}

/// The kernel refuses combinations that make no sense.
fn rename_mode(flags: RenameFlags) -> FsResult<RenameMode> {
    const WHITEOUT_NOREPLACE: u32 = libc::RENAME_WHITEOUT | libc::RENAME_NOREPLACE;
    match flags.bits() {
        0 => Ok(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        libc::RENAME_WHITEOUT => Ok(RenameMode::Whiteout),
        WHITEOUT_NOREPLACE => Ok(RenameMode::WhiteoutNoReplace),
        other => Err(FsError::new(
            Code::Invalid,
            format!("rename with flags {other:#x}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_or_combined_rename_flags_are_refused() {
        assert_eq!(rename_mode(RenameFlags::empty()), Ok(RenameMode::Replace));
        assert_eq!(
            rename_mode(RenameFlags::RENAME_EXCHANGE),
            Ok(RenameMode::Exchange)
        );
        let both = RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_NOREPLACE;
        assert_eq!(rename_mode(both), Ok(RenameMode::WhiteoutNoReplace));
        let both = RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_NOREPLACE;
        assert_eq!(rename_mode(both).unwrap_err().code, Code::Invalid);
        let unknown = RenameFlags::from_bits_retain(1 << 20);
        assert_eq!(rename_mode(unknown).unwrap_err().code, Code::Invalid);
    }
}
