//! Everything that one mount can change under another's eyes.

use lumeofs_tests::coherence::look::{open, pattern};
use lumeofs_tests::coherence::{Mapping, write_time};
use rustix::fs::{CWD, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, XattrFlags};
use rustix::io::Result;
use std::path::Path;

/// Bytes of `file` in the beginning.
pub(crate) const FILE_LENGTH: u64 = 12_288;
/// What `utimensat` sets, in seconds.
pub(crate) const SET_TIME: u64 = 12_345;

/// A change that is made in a [`fixture`].
pub(crate) struct Change {
    pub(crate) name: &'static str,
    pub(crate) make: fn(&Path) -> Result<()>,
    /// Paths of which something changes.
    pub(crate) touches: &'static [&'static str],
    /// Those of them whose modification time others see moved at once.
    pub(crate) moves: &'static [&'static str],
}

/// What may be there before a change.
pub(crate) const ALL: [&str; 6] = ["file", "other", "soft", "dir", "dir/inner", "empty"];

/// Makes a new directory with those of [`ALL`] that are among the names.
pub(crate) fn fixture(root: &Path, names: &[&str]) -> Result<()> {
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    let directory = |path: &Path| rustix::fs::mkdir(path, Mode::from(0o755));
    directory(root)?;
    for name in ALL.iter().filter(|name| names.contains(name)) {
        let path = root.join(name);
        match *name {
            "soft" => rustix::fs::symlink("file", path)?,
            "dir" | "empty" => directory(&path)?,
            "dir/inner" => drop(open(&path, create)?),
            _ => {
                let length = if *name == "file" { FILE_LENGTH } else { 5000 };
                let bytes = pattern(length, length as usize);
                rustix::io::pwrite(open(&path, create)?, &bytes, 0)?;
                if *name == "file" {
                    set_xattr(root, name, "user.one", 1)?;
                }
            }
        }
    }
    Ok(())
}

/// `u::rwx,u:7:rw-,g::r--,m::rw-,o::---`
fn set_acl(root: &Path, path: &str, name: &str) -> Result<()> {
    let mut value = vec![2, 0, 0, 0];
    for (tag, allows, id) in [
        (1, 7, 255),
        (2, 6, 7),
        (4, 4, 255),
        (16, 6, 255),
        (32, 0, 255),
    ] {
        let high = if id == 255 { 255 } else { 0 };
        value.extend([tag, 0, allows, 0, id, high, high, high]);
    }
    rustix::fs::setxattr(root.join(path), name, &value, XattrFlags::empty())
}

fn set_xattr(root: &Path, path: &str, name: &str, seed: u64) -> Result<()> {
    let value = pattern(seed, 100 + seed as usize);
    rustix::fs::setxattr(root.join(path), name, &value, XattrFlags::empty())
}

/// Writes into `file` through a new open with these flags.
fn write(root: &Path, offset: u64, length: usize, flags: OFlags) -> Result<()> {
    let file = open(&root.join("file"), OFlags::WRONLY | flags)?;
    // Where O_DIRECT wants the bytes to lie.
    let mut room = vec![0; length + 4096];
    let at = room.as_ptr().align_offset(4096);
    room[at..at + length].copy_from_slice(&pattern(99, length));
    let written = rustix::io::pwrite(&file, &room[at..at + length], offset)?;
    assert_eq!(written, length, "a whole write");
    Ok(())
}

fn allocate(root: &Path, flags: FallocateFlags, offset: u64, length: u64) -> Result<()> {
    let file = open(&root.join("file"), OFlags::WRONLY)?;
    rustix::fs::fallocate(file, flags, offset, length)
}

/// Copies the first 3000 bytes of `file` to another place in it.
fn copy(root: &Path, mut to: u64) -> Result<()> {
    let file = open(&root.join("file"), OFlags::RDWR)?;
    let copied = rustix::fs::copy_file_range(&file, Some(&mut 0), &file, Some(&mut to), 3000)?;
    assert_eq!(copied, 3000, "a whole copy");
    Ok(())
}

fn resize(root: &Path, length: u64) -> Result<()> {
    rustix::fs::ftruncate(open(&root.join("file"), OFlags::WRONLY)?, length)
}

fn rename(root: &Path, from: &str, to: &str, flags: RenameFlags) -> Result<()> {
    rustix::fs::renameat_with(CWD, root.join(from), CWD, root.join(to), flags)
}

fn own(root: &Path, path: &str) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(12), Gid::from_raw(34));
    rustix::fs::chown(root.join(path), Some(uid), Some(gid))
}

fn store(root: &Path) -> Result<()> {
    let file = open(&root.join("file"), OFlags::RDWR)?;
    Mapping::new(&file, FILE_LENGTH as usize, true)?.store(5000, &pattern(98, 3000))
}

fn create(root: &Path, length: usize) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
    let file = open(&root.join("absent"), flags)?;
    rustix::io::pwrite(file, &pattern(97, length), 0).map(drop)
}

macro_rules! change {
    ($name:literal, touches $touches:expr, moves $moves:expr, $make:expr) => {
        Change {
            name: $name,
            make: $make,
            touches: &$touches,
            moves: &$moves,
        }
    };
}

/// All of them.
#[rustfmt::skip]
pub(crate) const CHANGES: &[Change] = &[
    change!("create", touches [".", "absent"], moves ["."], |at| create(at, 0)),
    change!("create and write", touches [".", "absent"], moves ["."], |at| create(at, 3000)),
    change!("mkdir", touches [".", "absent"], moves ["."], |at| rustix::fs::mkdir(at.join("absent"), Mode::from(0o700))),
    change!("symlink", touches [".", "absent"], moves ["."], |at| rustix::fs::symlink("other", at.join("absent"))),
    change!("mknod of a FIFO", touches [".", "absent"], moves ["."], |at| {
        rustix::fs::mknodat(CWD, at.join("absent"), FileType::Fifo, Mode::from(0o640), 0)
    }),
    change!("link", touches [".", "absent", "file"], moves ["."], |at| rustix::fs::link(at.join("file"), at.join("absent"))),
    change!("unlink", touches [".", "file"], moves ["."], |at| rustix::fs::unlink(at.join("file"))),
    change!("unlink of a symlink", touches [".", "soft"], moves ["."], |at| rustix::fs::unlink(at.join("soft"))),
    change!("unlink in a directory", touches ["dir", "dir/inner"], moves ["dir"], |at| rustix::fs::unlink(at.join("dir/inner"))),
    change!("rmdir", touches [".", "empty"], moves ["."], |at| rustix::fs::rmdir(at.join("empty"))),
    change!("rename", touches [".", "file", "absent"], moves ["."], |at| rename(at, "file", "absent", RenameFlags::empty())),
    change!("rename over a file", touches [".", "file", "other"], moves ["."], |at| rename(at, "file", "other", RenameFlags::empty())),
    change!("rename into a directory", touches [".", "file", "dir", "dir/new"], moves [".", "dir"], |at| rename(at, "file", "dir/new", RenameFlags::empty())),
    change!("rename of a directory", touches [".", "dir", "absent", "dir/inner", "absent/inner"], moves ["."], |at| {
        rename(at, "dir", "absent", RenameFlags::empty())
    }),
    change!("rename over an empty directory", touches [".", "dir", "empty", "dir/inner", "empty/inner"], moves ["."], |at| {
        rename(at, "dir", "empty", RenameFlags::empty())
    }),
    change!("exchange of files", touches [".", "file", "other"], moves ["."], |at| rename(at, "file", "other", RenameFlags::EXCHANGE)),
    change!("exchange of a file and a directory", touches [".", "file", "dir", "file/inner", "dir/inner"], moves ["."], |at| {
        rename(at, "file", "dir", RenameFlags::EXCHANGE)
    }),
    change!("chmod", touches ["file"], moves [], |at| rustix::fs::chmod(at.join("file"), Mode::from(0o4711))),
    change!("chmod of a directory", touches ["dir"], moves [], |at| rustix::fs::chmod(at.join("dir"), Mode::from(0o1777))),
    change!("chown", touches ["file"], moves [], |at| own(at, "file")),
    change!("chown of a directory", touches ["dir"], moves [], |at| own(at, "dir")),
    change!("utimens", touches ["file"], moves ["file"], |at| write_time(&at.join("file"), SET_TIME)),
    change!("truncate up", touches ["file"], moves ["file"], |at| resize(at, 20_001)),
    change!("truncate down", touches ["file"], moves ["file"], |at| resize(at, 5001)),
    change!("truncate to nothing and up", touches ["file"], moves ["file"], |at| resize(at, 0).and_then(|()| resize(at, 9000))),
    change!("open with O_TRUNC", touches ["file"], moves ["file"], |at| {
        open(&at.join("file"), OFlags::WRONLY | OFlags::TRUNC).map(drop)
    }),
    change!("overwrite", touches ["file"], moves [], |at| write(at, 3000, 6000, OFlags::empty())),
    change!("overwrite of all", touches ["file"], moves [], |at| write(at, 0, FILE_LENGTH as usize, OFlags::empty())),
    change!("write past the end", touches ["file"], moves ["file"], |at| write(at, 15_000, 6000, OFlags::empty())),
    change!("write across the end", touches ["file"], moves ["file"], |at| write(at, 12_000, 6000, OFlags::empty())),
    change!("append", touches ["file"], moves ["file"], |at| write(at, 0, 6000, OFlags::APPEND)),
    change!("O_DIRECT overwrite", touches ["file"], moves [], |at| write(at, 4096, 4096, OFlags::DIRECT)),
    change!("O_DIRECT extend", touches ["file"], moves ["file"], |at| write(at, FILE_LENGTH, 8192, OFlags::DIRECT)),
    change!("O_SYNC overwrite", touches ["file"], moves ["file"], |at| write(at, 100, 5000, OFlags::SYNC)),
    change!("fallocate", touches ["file"], moves ["file"], |at| allocate(at, FallocateFlags::empty(), 12_000, 9000)),
    change!("punched hole", touches ["file"], moves [], |at| {
        allocate(at, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 2000, 7000)
    }),
    change!("zeroed range", touches ["file"], moves [], |at| {
        allocate(at, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 2000, 7000)
    }),
    change!("zeroed range across the end", touches ["file"], moves ["file"], |at| {
        allocate(at, FallocateFlags::ZERO_RANGE, 10_000, 9000)
    }),
    change!("copy_file_range", touches ["file"], moves ["file"], |at| copy(at, 5000)),
    change!("copy_file_range across the end", touches ["file"], moves ["file"], |at| copy(at, 12_000)),
    change!("setxattr", touches ["file"], moves [], |at| set_xattr(at, "file", "user.two", 2)),
    change!("setxattr of one that is there", touches ["file"], moves [], |at| set_xattr(at, "file", "user.one", 3)),
    change!("setxattr of a directory", touches ["dir"], moves [], |at| set_xattr(at, "dir", "user.one", 4)),
    change!("removexattr", touches ["file"], moves [], |at| rustix::fs::removexattr(at.join("file"), "user.one")),
    change!("access ACL", touches ["file"], moves [], |at| set_acl(at, "file", "system.posix_acl_access")),
    change!("access ACL of a directory", touches ["dir"], moves [], |at| set_acl(at, "dir", "system.posix_acl_access")),
    change!("default ACL", touches ["dir"], moves [], |at| set_acl(at, "dir", "system.posix_acl_default")),
    change!("store through a mapping and msync", touches ["file"], moves [], store),
];
