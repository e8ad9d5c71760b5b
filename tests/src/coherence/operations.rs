//! Calls that an interleaving is made of: made below any directory, answered as text.

mod random;

use super::look::{self, pattern, told};
use super::mapping::Mapping;
use super::registers::write_time;
use rustix::fs::{AtFlags, CWD, FallocateFlags, Gid, Mode, OFlags, RenameFlags, Uid, XattrFlags};
use rustix::io::{Errno, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

type Name = &'static str;

/// One call, or an open with one call.
#[derive(Clone, Debug)]
pub(super) enum Operation {
    Create {
        path: Name,
        exclusive: bool,
    },
    Mkdir(Name),
    Symlink {
        path: Name,
        target: Name,
    },
    Fifo(Name),
    Link {
        from: Name,
        to: Name,
    },
    Unlink(Name),
    Rmdir(Name),
    Rename {
        from: Name,
        to: Name,
        exchange: bool,
        replace: bool,
    },
    Chmod {
        path: Name,
        mode: u32,
    },
    Chown {
        path: Name,
        uid: u32,
        gid: u32,
    },
    SetMtime {
        path: Name,
        seconds: u64,
    },
    Truncate {
        path: Name,
        length: u64,
    },
    Write {
        path: Name,
        offset: u64,
        length: usize,
        seed: u64,
        sync: bool,
    },
    Append {
        path: Name,
        length: usize,
        seed: u64,
    },
    Store {
        path: Name,
        offset: u64,
        length: usize,
        seed: u64,
    },
    Fallocate {
        path: Name,
        how: u8,
        offset: u64,
        length: u64,
    },
    SetXattr {
        path: Name,
        name: Name,
        length: usize,
        seed: u64,
    },
    RemoveXattr {
        path: Name,
        name: Name,
    },
    Xattr {
        path: Name,
        name: Name,
    },
    Xattrs(Name),
    Stat(Name),
    Followed(Name),
    Access(Name),
    Read(Name),
    List(Name),
    Readlink(Name),
    SameFile {
        one: Name,
        other: Name,
    },
    Hold {
        slot: u64,
        path: Name,
    },
    Release(u64),
    HeldRead(u64),
    HeldStat(u64),
    HeldEnd(u64),
    HeldWrite {
        slot: u64,
        offset: u64,
        length: usize,
        seed: u64,
    },
}

use Operation as Op;

/// What a call answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Outcome {
    pub(super) text: String,
    /// Modification time in seconds, where it was shown.
    pub(super) mtime: Option<i64>,
}

impl Outcome {
    /// Whether another filesystem may answer so, where this is the right answer. A time that comes from a clock is of
    /// no account.
    pub(super) fn allows(&self, other: &Self) -> bool {
        let set = self.mtime.filter(|time| *time < look::SET_TIMES_END);
        self.text == other.text && set.is_none_or(|time| other.mtime == Some(time))
    }
}

impl Operation {
    /// The path whose modification time this sets or shows.
    pub(super) fn path_of_time(&self) -> Option<&'static str> {
        match self {
            Op::SetMtime { path, .. } | Op::Stat(path) => Some(path),
            _ => None,
        }
    }

    /// Whether this sets a modification time.
    pub(super) fn sets_time(&self) -> bool {
        matches!(self, Op::SetMtime { .. })
    }

    /// Makes the call below a directory.
    pub(super) fn apply(&self, root: &Path, held: &mut Held) -> Outcome {
        let mtime = match self {
            Op::Stat(path) => look::mtime(&root.join(path))
                .ok()
                .map(|(seconds, _)| seconds),
            _ => None,
        };
        let text = self.look(root, held);
        let text = text.unwrap_or_else(|| told(self.change(root), |()| "done".into()));
        Outcome { text, mtime }
    }

    /// The answer, if this only looks or uses what is held.
    fn look(&self, root: &Path, held: &mut Held) -> Option<String> {
        let at = |path: &Name| root.join(path);
        Some(match self {
            Op::Xattr { path, name } => look::xattr(&at(path), name),
            Op::Xattrs(path) => look::xattrs(&at(path)),
            Op::Stat(path) => look::stat(&at(path)),
            Op::Followed(path) => look::followed(&at(path)),
            Op::Access(path) => look::access(&at(path)),
            Op::Read(path) => look::read(&at(path)),
            Op::List(path) => look::list(&at(path)),
            Op::Readlink(path) => look::link(&at(path)),
            Op::SameFile { one, other } => {
                let inode = |path| rustix::fs::lstat(at(path)).ok().map(|stat| stat.st_ino);
                format!("{}", inode(one) == inode(other))
            }
            Op::Hold { slot, path } => {
                let opened = look::open(&at(path), OFlags::RDWR);
                told(opened, |file| held.keep(*slot, file))
            }
            Op::Release(slot) => format!("{}", held.0.remove(slot).is_some()),
            Op::HeldRead(slot) => held.with(*slot, look::held_read),
            Op::HeldStat(slot) => held.with(*slot, look::held_stat),
            Op::HeldEnd(slot) => held.with(*slot, look::held_end),
            Op::HeldWrite {
                slot,
                offset,
                length,
                seed,
            } => {
                held.mark_written(*slot);
                held.with(*slot, |file| {
                    told(write(file, *offset, &pattern(*seed, *length)), |()| {
                        "done".into()
                    })
                })
            }
            _ => return None,
        })
    }

    fn change(&self, root: &Path) -> Result<()> {
        let at = |path: &Name| root.join(path);
        let open = |path: &Name, flags| look::open(&at(path), flags);
        match self {
            Op::Create { path, exclusive } => {
                let mut flags = OFlags::CREATE | OFlags::WRONLY;
                flags.set(OFlags::EXCL, *exclusive);
                open(path, flags).map(drop)
            }
            Op::Mkdir(path) => rustix::fs::mkdir(at(path), Mode::from(0o755)),
            Op::Symlink { path, target } => rustix::fs::symlink(*target, at(path)),
            Op::Fifo(path) => make_fifo(&at(path)),
            Op::Link { from, to } => rustix::fs::link(at(from), at(to)),
            Op::Unlink(path) => rustix::fs::unlink(at(path)),
            Op::Rmdir(path) => rustix::fs::rmdir(at(path)),
            Op::Rename {
                from,
                to,
                exchange,
                replace,
            } => {
                let mut flags = RenameFlags::empty();
                flags.set(RenameFlags::EXCHANGE, *exchange);
                flags.set(RenameFlags::NOREPLACE, !*replace);
                rename(&at(from), &at(to), flags)
            }
            Op::Chmod { path, mode } => rustix::fs::chmod(at(path), Mode::from(*mode)),
            Op::Chown { path, uid, gid } => {
                let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(CWD, at(path), Some(uid), Some(gid), flags)
            }
            Op::SetMtime { path, seconds } => write_time(&at(path), *seconds),
            Op::Truncate { path, length } => {
                rustix::fs::ftruncate(open(path, OFlags::WRONLY)?, *length)
            }
            Op::Write {
                path,
                offset,
                length,
                seed,
                sync,
            } => {
                let mut flags = OFlags::WRONLY;
                flags.set(OFlags::SYNC, *sync);
                write(&open(path, flags)?, *offset, &pattern(*seed, *length))
            }
            Op::Append { path, length, seed } => {
                let flags = OFlags::WRONLY | OFlags::APPEND;
                write(&open(path, flags)?, 0, &pattern(*seed, *length))
            }
            Op::Store {
                path,
                offset,
                length,
                seed,
            } => store(
                &open(path, OFlags::RDWR)?,
                *offset,
                &pattern(*seed, *length),
            ),
            Op::Fallocate {
                path,
                how,
                offset,
                length,
            } => {
                let flags = [
                    FallocateFlags::empty(),
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    FallocateFlags::ZERO_RANGE,
                    FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                ];
                let file = open(path, OFlags::WRONLY)?;
                rustix::fs::fallocate(file, flags[usize::from(*how)], *offset, *length)
            }
            Op::SetXattr {
                path,
                name,
                length,
                seed,
            } => {
                let value = pattern(*seed, *length);
                rustix::fs::lsetxattr(at(path), *name, &value, XattrFlags::empty())
            }
            Op::RemoveXattr { path, name } => rustix::fs::lremovexattr(at(path), *name),
            _ => unreachable!("`look` has answered"),
        }
    }
}

/// Regular files that are open.
#[derive(Debug, Default)]
pub(super) struct Held(BTreeMap<u64, Open>);

#[derive(Debug)]
struct Open {
    file: File,
    /// Whether it was written to.
    is_written: bool,
}

impl Held {
    fn keep(&mut self, slot: u64, file: File) -> String {
        let told = look::held_stat(&file);
        // Each mount has its own pipe in a FIFO: only files are shared.
        if told.starts_with("RegularFile") {
            let is_written = false;
            self.0.insert(slot, Open { file, is_written });
        }
        told
    }

    fn with(&self, slot: u64, act: impl FnOnce(&File) -> String) -> String {
        let open = self.0.get(&slot);
        open.map_or_else(|| "not open".into(), |open| act(&open.file))
    }

    fn mark_written(&mut self, slot: u64) {
        if let Some(open) = self.0.get_mut(&slot) {
            open.is_written = true;
        }
    }

    /// Whether this inode was written to through what is still open.
    pub(super) fn has_written(&self, inode: u64) -> bool {
        let mut written = self.0.values().filter(|open| open.is_written);
        written.any(|open| rustix::fs::fstat(&open.file).is_ok_and(|stat| stat.st_ino == inode))
    }

    /// Closes all.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

fn write(file: &File, offset: u64, bytes: &[u8]) -> Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        written += rustix::io::pwrite(file, &bytes[written..], offset + written as u64)?;
    }
    Ok(())
}

/// Stores through a mapping what lies within the file.
fn store(file: &File, offset: u64, bytes: &[u8]) -> Result<()> {
    let size = rustix::fs::fstat(file)?.st_size.cast_unsigned();
    if size <= offset {
        return Ok(());
    }
    let within = bytes.len().min((size - offset) as usize);
    Mapping::new(file, size as usize, true)?.store(offset as usize, &bytes[..within])
}

/// Renames. If a directory was moved on another mount, the kernel of this one may still know it by its former name, and
/// cannot correct that during a rename between directories: it fails with ESTALE until the name is looked up otherwise.
fn rename(from: &Path, to: &Path, flags: RenameFlags) -> Result<()> {
    let renamed = rustix::fs::renameat_with(CWD, from, CWD, to, flags);
    if renamed != Err(Errno::STALE) {
        return renamed;
    }
    // Whether they are there is of no account, only that the kernel asks.
    let _ = (rustix::fs::lstat(from), rustix::fs::lstat(to));
    rustix::fs::renameat_with(CWD, from, CWD, to, flags)
}

fn make_fifo(path: &Path) -> Result<()> {
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(CWD, path, kind, Mode::from(0o644), 0)
}
