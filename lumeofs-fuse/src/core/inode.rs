//! Operations on one inode: attributes, symlink targets, and the filesystem as a whole.

use super::{Core, ReadBuffer};
use crate::answer::StatFs;
use fuser::FileAttr;
use lumeofs_base::limits::{BLOCK_SIZE, NAME_LEN_BYTES_MAX, ROOT_STAT_PATIENCE};
use lumeofs_base::{Attr, FsResult, InodeId};
use lumeofs_client::{Context, Usage};
use lumeofs_meta::op::SetAttr;

impl Core {
    pub(crate) fn getattr(&self, cx: Context<'_>, ino: InodeId) -> FsResult<FileAttr> {
        let attr = if ino == self.root {
            self.root_attr(cx)
        } else {
            self.backend.getattr(cx, ino)
        };
        attr.map(|attr| self.shown(&attr))
    }

    /// Attributes of the root; as they were seen last when the cluster has not answered for long. umount(8) asks
    /// for them first, so without this a mount could not be taken away in an outage.
    fn root_attr(&self, cx: Context<'_>) -> FsResult<Attr> {
        let is_gone = || self.backend.silence() >= ROOT_STAT_PATIENCE;
        let asked = Context {
            caller: cx.caller,
            interrupted: &|| (cx.interrupted)() || is_gone(),
        };
        let found = self.backend.getattr(asked, self.root);
        let mut seen = self.root_seen.lock();
        match (found, &*seen) {
            (Ok(attr), _) => Ok(seen.insert(attr).clone()),
            (Err(_), Some(attr)) if is_gone() => Ok(attr.clone()),
            (found, _) => found,
        }
    }

    pub(crate) fn setattr(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        set: SetAttr,
    ) -> FsResult<FileAttr> {
        self.backend
            .setattr(cx, ino, set)
            .map(|attr| self.shown(&attr))
    }

    pub(crate) fn readlink(&self, cx: Context<'_>, ino: InodeId) -> FsResult<ReadBuffer> {
        self.backend.readlink(cx, ino).map(ReadBuffer::owned)
    }

    pub(crate) fn statfs(&self, cx: Context<'_>) -> FsResult<StatFs> {
        self.backend.usage(cx).map(statfs)
    }
}

/// Inodes have no limit of their own; since even an empty file takes some space, as many are called free as
/// blocks are.
fn statfs(usage: Usage) -> StatFs {
    let block_size = BLOCK_SIZE as u64;
    let blocks_free = usage.free_bytes / block_size;
    StatFs {
        blocks: usage.capacity_bytes / block_size,
        blocks_free,
        files: usage.inodes + blocks_free,
        files_free: blocks_free,
        block_size: BLOCK_SIZE as u32,
        name_len_max: NAME_LEN_BYTES_MAX as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statfs_counts_in_blocks_of_4096() {
        let usage = Usage {
            inodes: 10,
            bytes: 5,
            capacity_bytes: 1 << 30,
            free_bytes: (1 << 29) + 1,
        };
        let shown = statfs(usage);
        assert_eq!((shown.blocks, shown.blocks_free), (1 << 18, 1 << 17));
        assert_eq!(
            (shown.files - shown.files_free, shown.block_size),
            (10, 4096)
        );
        assert_eq!(shown.name_len_max, 255);
    }
}
