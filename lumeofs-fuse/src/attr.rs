//! Attributes and times between the cluster's form and FUSE's.

use fuser::{FileAttr, FileType, INodeNo};
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::{Attr, FileKind, Timestamp};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `st_blksize`: the size of request that programs are asked to use. Nothing is read ahead for a file that
/// is opened for direct I/O, so this is what `cat`, `cp` and language runtimes get per round trip; larger
/// values mostly make programs allocate more per open file.
const PREFERRED_IO_BYTES: u32 = 128 << 10;
/// Unit of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;

/// What `stat(2)` shows of `attr` under the inode number `ino`.
pub(crate) fn file_attr(attr: &Attr, ino: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: attr.size,
        blocks: blocks(attr),
        atime: to_system(attr.atime),
        mtime: to_system(attr.mtime),
        ctime: to_system(attr.ctime),
        crtime: to_system(attr.btime),
        kind: file_type(attr.kind),
        perm: attr.mode & 0o7777,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: PREFERRED_IO_BYTES,
        flags: 0,
    }
}

/// `st_blocks`: what the allocated chunks can hold, but no more than the file has, since a chunk takes
/// only the space that was written.
fn blocks(attr: &Attr) -> u64 {
    let used = attr
        .size
        .div_ceil(BLOCK_SIZE as u64)
        .saturating_mul(BLOCK_SIZE as u64);
    attr.allocated.min(used) / STAT_BLOCK_BYTES
}

/// The kind as FUSE calls it.
pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// The kind in the type bits of `st_mode`, which `mknod(2)` gets; zero means a regular file.
pub(crate) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileKind::Regular),
        libc::S_IFDIR => Some(FileKind::Directory),
        libc::S_IFLNK => Some(FileKind::Symlink),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDevice),
        libc::S_IFBLK => Some(FileKind::BlockDevice),
        _ => None,
    }
}

/// The permission bits that the cluster keeps.
pub(crate) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// A time for a reply. What `SystemTime` cannot hold shows as 1970.
fn to_system(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let whole = if time.secs >= 0 {
        UNIX_EPOCH.checked_add(whole)
    } else {
        UNIX_EPOCH.checked_sub(whole)
    };
    whole
        .and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into())))
        .unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::InodeId;

    fn attr(size: u64, allocated: u64) -> Attr {
        let time = Timestamp {
            secs: -2,
            nanos: 800_000_000,
        };
        Attr {
            ino: InodeId(77),
            kind: FileKind::Regular,
            mode: 0o4755,
            uid: 1,
            gid: 2,
            nlink: 3,
            rdev: 0,
            size,
            allocated,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            truncations: 0,
            tail_unclean: false,
            has_xattrs: false,
        }
    }

    #[test]
    fn blocks_are_at_most_the_size_and_at_most_what_is_allocated() {
        assert_eq!(file_attr(&attr(5000, 64 << 20), 1).blocks, 16);
        assert_eq!(
            file_attr(&attr(1 << 30, 64 << 20), 1).blocks,
            (64 << 20) / 512
        );
        assert_eq!(file_attr(&attr(1 << 30, 0), 1).blocks, 0);
        assert_eq!(file_attr(&attr(0, 64 << 20), 1).blocks, 0);
        assert_eq!(file_attr(&attr(u64::MAX, 4096), 1).blocks, 8);
    }

    #[test]
    fn the_inode_number_is_the_one_given_and_mode_bits_survive() {
        let shown = file_attr(&attr(1, 1), 1);
        assert_eq!(
            (shown.ino, shown.perm, shown.nlink),
            (INodeNo(1), 0o4755, 3)
        );
    }

    #[test]
    fn times_before_1970_are_shown_as_they_are() {
        let shown = file_attr(&attr(0, 0), 1).mtime;
        assert_eq!(
            UNIX_EPOCH.duration_since(shown).unwrap(),
            Duration::from_millis(1200)
        );
    }

    #[test]
    fn a_time_beyond_the_clock_does_not_panic() {
        let far = Timestamp {
            secs: i64::MIN,
            nanos: 999_999_999,
        };
        let _ = to_system(far);
        let _ = to_system(Timestamp {
            secs: i64::MAX,
            nanos: 999_999_999,
        });
    }

    #[test]
    fn mknod_without_a_type_makes_a_regular_file() {
        assert_eq!(kind_of_mode(0o644), Some(FileKind::Regular));
        assert_eq!(kind_of_mode(libc::S_IFIFO | 0o600), Some(FileKind::Fifo));
        assert_eq!(kind_of_mode(0o110_000), None);
    }
}
