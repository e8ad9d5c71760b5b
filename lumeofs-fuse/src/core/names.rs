//! Operations on names: lookup, making, linking, moving and removing.

use super::Core;
use crate::attr::{kind_of_mode, permissions};
use fuser::{FileAttr, RenameFlags};
use lumeofs_base::{Code, FileKind, FsError, FsResult, InodeId};
use lumeofs_client::Context;
use lumeofs_meta::op::{NewNode, RenameMode};

impl Core {
    pub(crate) fn lookup(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        name: &[u8],
    ) -> FsResult<FileAttr> {
        self.backend
            .lookup(cx, parent, name)
            .map(|attr| self.referenced(&attr))
    }

    pub(crate) fn mknod(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        name: &[u8],
        mode: u32,
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
            .create(cx, parent, name, node, permissions(mode))?;
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
    ) -> FsResult<FileAttr> {
        self.backend
            .create(cx, parent, name, NewNode::Directory, permissions(mode))
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
            .create(cx, parent, name, NewNode::Symlink(target), 0o777)
            .map(|attr| self.referenced(&attr))
    }

    /// Makes and opens a file. The kernel asks for this only after a lookup that found nothing. If
    /// the name has appeared since, it has checked no permission on what is there, nor followed it if it is a
    /// symlink. `Stale` makes it start the whole `open(2)` again and find the name.
    pub(crate) fn create(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        name: &[u8],
        mode: u32,
        flags: i32,
    ) -> FsResult<FileAttr> {
        let made = self
            .backend
            .create(cx, parent, name, NewNode::Regular, permissions(mode));
        match made {
            Ok(attr) => Ok(self.referenced(&attr)),
            Err(error) if error.code == Code::Exists && flags & libc::O_EXCL == 0 => Err(FsError {
                code: Code::Stale,
                ..error
            }),
            Err(error) => Err(error),
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

/// The kernel refuses combinations that make no sense; what is left is one flag at most. NOREPLACE with
/// WHITEOUT would make sense but nobody asks for it.
fn rename_mode(flags: RenameFlags) -> FsResult<RenameMode> {
    match flags.bits() {
        0 => Ok(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        libc::RENAME_WHITEOUT => Ok(RenameMode::Whiteout),
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
        let both = RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_NOREPLACE;
        assert_eq!(rename_mode(both).unwrap_err().code, Code::Invalid);
        let unknown = RenameFlags::from_bits_retain(1 << 20);
        assert_eq!(rename_mode(unknown).unwrap_err().code, Code::Invalid);
    }
}
