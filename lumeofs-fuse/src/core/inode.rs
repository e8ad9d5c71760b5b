//! Operations on one inode: attributes, symlink targets, and the filesystem as a whole.

use super::{Core, ReadBuffer};
use crate::answer::StatFs;
use fuser::FileAttr;
use lumeofs_base::limits::{BLOCK_SIZE, NAME_LEN_BYTES_MAX, ROOT_STAT_PATIENCE};
use lumeofs_base::{FsResult, InodeId};
use lumeofs_client::{Context, Usage};
use lumeofs_meta::op::SetAttr;
use parking_lot::Mutex;

impl Core {
    pub(crate) fn getattr(&self, cx: Context<'_>, ino: InodeId) -> FsResult<FileAttr> {
        let attr = if ino == self.root {
            let root = |cx: Context<'_>| self.backend.getattr(cx, ino);
            self.or_last_seen(cx, &self.root_seen, root)
        } else {
            self.backend.getattr(cx, ino)
        };
        attr.map(|attr| self.shown(&attr))
    }

    /// An answer of the cluster; the last one that was seen when the cluster has not answered for long. For what
    /// umount(8) asks for first: else no mount could be taken away in an outage.
    fn or_last_seen<T: Clone>(
        &self,
        cx: Context<'_>,
        last: &Mutex<Option<T>>,
        ask: impl Fn(Context<'_>) -> FsResult<T>,
    ) -> FsResult<T> {
        let is_gone = || self.backend.silence() >= ROOT_STAT_PATIENCE;
        let answer = ask(Context {
            interrupted: &|| (cx.interrupted)() || is_gone(),
            ..cx
        });
        let mut last = last.lock();
        match (answer, &*last) {
            (Ok(answer), _) => Ok(last.insert(answer).clone()),
            (Err(_), Some(seen)) if is_gone() => Ok(seen.clone()),
            (answer, _) => answer,
        }
    }

    pub(crate) fn setattr(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        tid: u32,
        mut set: SetAttr,
    ) -> FsResult<FileAttr> {
        if set.size.is_some() {
            set.clear_sgid = self.takes_sgid(cx, ino, tid, set.mode)?;
        }
        self.backend
            .setattr(cx, ino, set)
            .map(|attr| self.shown(&attr))
    }

    pub(crate) fn readlink(&self, cx: Context<'_>, ino: InodeId) -> FsResult<ReadBuffer> {
        let target = self.backend.readlink(cx, ino)?;
        self.accessed(ino, false, 0);
        Ok(ReadBuffer::owned(target))
    }

    /// Something was read, through an open file with these flags.
    pub(crate) fn accessed(&self, ino: InodeId, is_directory: bool, open_flags: i32) {
        if open_flags & libc::O_NOATIME == 0
            && let Some(is_strict) = self.atime.counts(is_directory)
        {
            self.backend.accessed(ino, is_strict);
        }
    }

    pub(crate) fn statfs(&self, cx: Context<'_>) -> FsResult<StatFs> {
        let usage = |cx: Context<'_>| self.backend.usage(cx);
        self.or_last_seen(cx, &self.usage_seen, usage).map(statfs)
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
