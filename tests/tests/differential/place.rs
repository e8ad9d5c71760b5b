//! A tree on one filesystem, and how calls are made in it.

use crate::call::{Call, Of, Step, Time, User, Whence};
use lumeofs_tests::coherence::Mapping;
use lumeofs_tests::coherence::look::{self, digest, pattern, told};
use rustix::fs::{
    Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom, Timespec, Timestamps,
    UTIME_NOW, UTIME_OMIT, Uid,
};
use rustix::io::{Errno, IoSlice, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// Room for names in a directory's or file's list of extended attributes.
const ROOM_MAX: usize = 1 << 17;
/// A value of `security.capability` that the kernel takes: version 2, `CAP_NET_RAW` permitted.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// A directory of a filesystem, and what is open in it.
#[derive(Debug)]
pub(crate) struct Place {
    root: File,
    held: BTreeMap<u8, File>,
}

/// This thread is somebody else until the end.
struct Role;

impl Role {
    fn of(user: User) -> Result<Self> {
        let (id, groups) = user.ids();
        let groups: Vec<_> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        rustix::thread::set_thread_groups(&groups)?;
        rustix::thread::set_thread_res_gid(gid, gid, Gid::ROOT)?;
        // Root stays among the saved ones, and so the way back.
        rustix::thread::set_thread_res_uid(uid, uid, Uid::ROOT)?;
        Ok(Self)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let (uid, gid) = (Uid::ROOT, Gid::ROOT);
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root again");
        rustix::thread::set_thread_res_gid(gid, gid, gid).expect("root's group again");
        rustix::thread::set_thread_groups(&[]).expect("no other groups again");
    }
}

/// Gives this thread a working directory and a umask of its own.
pub(crate) fn separate_thread() {
    let flags = rustix::thread::UnshareFlags::FS;
    // SAFETY: file descriptors stay shared.
    #[expect(unsafe_code, reason = "umask(2) and chdir(2) are those of a process")]
    unsafe { rustix::thread::unshare_unsafe(flags) }.expect("CLONE_FS can be undone");
}

fn mode(bits: u32) -> Mode {
    Mode::from_bits_retain(bits)
}

fn expand(name: &str) -> String {
    let name = name.replace('%', &"n".repeat(255));
    name.replace('^', &"m".repeat(256))
}

fn done(result: Result<()>) -> String {
    told(result, |()| "done".into())
}

/// truncate(2), which checks a path otherwise than an open does.
fn truncate(path: &str, length: i64) -> Result<()> {
    let path = std::ffi::CString::new(path).expect("no zeros in a path");
    // SAFETY: a string that ends with a zero and outlives the call.
    #[expect(unsafe_code, reason = "rustix does not have it")]
    let failed = unsafe { libc::truncate(path.as_ptr(), length) } != 0;
    let errno = || Errno::from_io_error(&std::io::Error::last_os_error());
    match failed {
        true => Err(errno().expect("a system call has failed")),
        false => Ok(()),
    }
}

fn timespec(time: Time) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        Time::Now => (0, UTIME_NOW),
        Time::Omit => (0, UTIME_OMIT),
        Time::At(seconds, nanoseconds) => (seconds, nanoseconds),
    };
    Timespec { tv_sec, tv_nsec }
}

/// What is made of an attribute's value: the kernel looks into this one.
fn value(name: &str, length: usize, seed: u64) -> Vec<u8> {
    match name {
        "security.capability" => CAPABILITY.to_vec(),
        _ => pattern(seed, length),
    }
}

impl Place {
    /// In a directory that is there.
    pub(crate) fn new(root: &Path) -> Self {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty()).expect("a root");
        Self {
            root: root.into(),
            held: BTreeMap::new(),
        }
    }

    /// Paths of this thread are relative to the root now.
    pub(crate) fn enter(&self) {
        rustix::process::fchdir(&self.root).expect("the root is there");
    }

    /// What is open.
    pub(crate) fn held(&self) -> &BTreeMap<u8, File> {
        &self.held
    }

    /// The inode of what is open in a slot.
    pub(crate) fn inode(&self, slot: u8) -> Option<u64> {
        let stat = rustix::fs::fstat(self.held.get(&slot)?);
        stat.ok().map(|stat| stat.st_ino)
    }

    /// Begins anew in what is open for appending.
    pub(crate) fn rewind_append(&self, slot: u8) {
        let Some(file) = self.held.get(&slot) else {
            return;
        };
        if rustix::fs::fcntl_getfl(file).is_ok_and(|flags| flags.contains(OFlags::APPEND)) {
            // What is open as a path alone has no position.
            let _ = rustix::fs::seek(file, SeekFrom::Start(0));
        }
    }

    /// Closes what is open in a slot once, and keeps it all the same.
    pub(crate) fn close_another(&self, slot: u8) {
        let another = self.held.get(&slot).map(File::try_clone);
        drop(another.map(|file| file.expect("there is room for another descriptor")));
    }

    /// Makes a call; its answer as text.
    pub(crate) fn make(&mut self, step: &Step) -> String {
        self.enter();
        rustix::process::umask(mode(step.umask));
        let role = Role::of(step.user).expect("root can be anybody");
        let answer = self.call(&step.call);
        drop(role);
        answer
    }

    fn call(&mut self, call: &Call) -> String {
        match call {
            Call::Open {
                slot,
                path,
                flags,
                mode: bits,
            } => {
                // Nothing here waits for the other end of a FIFO.
                let flags = *flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let opened = rustix::fs::open(expand(path), flags, mode(*bits));
                told(opened, |file| self.keep(*slot, file.into()))
            }
            Call::Close(slot) => format!("{}", self.held.remove(slot).is_some()),
            Call::ListHeld(slot) => self.with(*slot, |file| {
                let again = rustix::fs::openat(file, ".", OFlags::RDONLY, Mode::empty());
                told(again.and_then(rustix::fs::Dir::new), |mut directory| {
                    look::held_list(&mut directory)
                })
            }),
            Call::LinkHeld { slot, to } => self.with(*slot, |file| {
                let from = format!("/proc/self/fd/{}", file.as_raw_fd());
                let flags = AtFlags::SYMLINK_FOLLOW;
                done(rustix::fs::linkat(CWD, from, CWD, expand(to), flags))
            }),
            Call::Copy {
                from,
                to,
                from_offset,
                to_offset,
                length,
            } => self.with(*from, |from| {
                self.with(*to, |to| copy(from, to, *from_offset, *to_offset, *length))
            }),
            _ => match self.with_data(call) {
                Some(answer) => answer,
                None => self.attributes(call).unwrap_or_else(|| done(names(call))),
            },
        }
    }

    fn keep(&mut self, slot: u8, file: File) -> String {
        let stat = rustix::fs::fstat(&file).expect("what is open has attributes");
        let kind = FileType::from_raw_mode(stat.st_mode);
        // Two mounts have each its own pipe in a FIFO, and the null device is not in the filesystem.
        if matches!(kind, FileType::RegularFile | FileType::Directory) {
            self.held.insert(slot, file);
        }
        format!("{kind:?}")
    }

    fn with(&self, slot: u8, act: impl FnOnce(&File) -> String) -> String {
        self.held.get(&slot).map_or_else(|| "not open".into(), act)
    }

    /// Calls that move bytes of what is open.
    fn with_data(&self, call: &Call) -> Option<String> {
        let bytes = |count: usize| format!("{count} bytes");
        Some(match call {
            Call::Read { slot, length } => self.with(*slot, |file| {
                let mut room = vec![0; *length];
                let count = rustix::io::read(file, &mut room);
                told(count, |count| digest(&room[..count]))
            }),
            Call::ReadAt {
                slot,
                offset,
                length,
            } => self.with(*slot, |file| {
                let mut room = vec![0; *length];
                let count = rustix::io::pread(file, &mut room, *offset);
                told(count, |count| digest(&room[..count]))
            }),
            Call::Write { slot, length, seed } => self.with(*slot, |file| {
                told(rustix::io::write(file, &pattern(*seed, *length)), bytes)
            }),
            Call::WriteAt {
                slot,
                offset,
                length,
                seed,
            } => self.with(*slot, |file| {
                let written = rustix::io::pwrite(file, &pattern(*seed, *length), *offset);
                told(written, bytes)
            }),
            Call::WriteMany {
                slot,
                lengths,
                seed,
            } => self.with(*slot, |file| {
                let parts = lengths.map(|length| pattern(*seed + length as u64, length));
                let parts = parts.each_ref().map(|part| IoSlice::new(part));
                told(rustix::io::writev(file, &parts), bytes)
            }),
            Call::Seek {
                slot,
                whence,
                offset,
            } => self.with(*slot, |file| {
                // Positions in a directory mean what each filesystem makes of them.
                if is_directory(file) {
                    return "a directory".into();
                }
                let unsigned = offset.unsigned_abs();
                let to = match whence {
                    Whence::Start => SeekFrom::Start(unsigned),
                    Whence::Here => SeekFrom::Current(*offset),
                    Whence::End => SeekFrom::End(*offset),
                    Whence::Data => SeekFrom::Data(unsigned),
                    Whence::Hole => SeekFrom::Hole(unsigned),
                };
                told(rustix::fs::seek(file, to), |to| format!("at {to}"))
            }),
            Call::SetAppend { slot, on } => self.with(*slot, |file| {
                let set = rustix::fs::fcntl_getfl(file).and_then(|mut flags| {
                    flags.set(OFlags::APPEND, *on);
                    rustix::fs::fcntl_setfl(file, flags)
                });
                done(set)
            }),
            Call::Sync { slot, data_only } => self.with(*slot, |file| {
                done(match data_only {
                    true => rustix::fs::fdatasync(file),
                    false => rustix::fs::fsync(file),
                })
            }),
            Call::Allocate {
                slot,
                how,
                offset,
                length,
            } => self.with(*slot, |file| {
                done(rustix::fs::fallocate(file, *how, *offset, *length))
            }),
            Call::Store {
                slot,
                offset,
                length,
                seed,
            } => self.with(*slot, |file| {
                done(store(file, *offset, &pattern(*seed, *length)))
            }),
            _ => return None,
        })
    }

    /// Calls about attributes: the plain ones and the extended ones.
    fn attributes(&self, call: &Call) -> Option<String> {
        Some(match call {
            Call::Truncate { of, length } => self.of(
                of,
                |path, _| truncate(path, *length),
                |file| rustix::fs::ftruncate(file, length.cast_unsigned()),
            ),
            Call::Chmod { of, mode: bits } => self.of(
                of,
                |path, flags| match flags.is_empty() {
                    true => rustix::fs::chmod(path, mode(*bits)),
                    false => rustix::fs::chmodat(CWD, path, mode(*bits), flags),
                },
                |file| rustix::fs::fchmod(file, mode(*bits)),
            ),
            Call::Chown { of, uid, gid } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                self.of(
                    of,
                    |path, flags| rustix::fs::chownat(CWD, path, uid, gid, flags),
                    |file| rustix::fs::fchown(file, uid, gid),
                )
            }
            Call::Utimes { of, atime, mtime } => {
                let times = Timestamps {
                    last_access: timespec(*atime),
                    last_modification: timespec(*mtime),
                };
                self.of(
                    of,
                    |path, flags| rustix::fs::utimensat(CWD, path, &times, flags),
                    |file| rustix::fs::futimens(file, &times),
                )
            }
            Call::Access { path, bits } => {
                let bits = Access::from_bits_retain(*bits);
                done(rustix::fs::access(expand(path), bits))
            }
            Call::Stat(of) => self.ask(
                of,
                |path, flags| rustix::fs::statat(CWD, path, flags),
                |file| rustix::fs::fstat(file),
                |stat| look::attributes(&stat),
            ),
            Call::SetXattr {
                of,
                name,
                length,
                seed,
                flags: how,
            } => {
                let value = value(name, *length, *seed);
                self.of(
                    of,
                    |path, flags| match flags.is_empty() {
                        true => rustix::fs::setxattr(path, *name, &value, *how),
                        false => rustix::fs::lsetxattr(path, *name, &value, *how),
                    },
                    |file| rustix::fs::fsetxattr(file, *name, &value, *how),
                )
            }
            Call::RemoveXattr { of, name } => self.of(
                of,
                |path, flags| match flags.is_empty() {
                    true => rustix::fs::removexattr(path, *name),
                    false => rustix::fs::lremovexattr(path, *name),
                },
                |file| rustix::fs::fremovexattr(file, *name),
            ),
            Call::Xattr { of, name, room } => self.xattr(of, name, *room),
            Call::Xattrs { of, room } => {
                let list = self.xattrs(of, ROOM_MAX);
                // How much room it needs depends on names that only one of the two filesystems shows.
                match room {
                    0 => list,
                    _ => told(self.raw_xattrs(of, *room), |_| list),
                }
            }
            Call::Readlink(path) => look::link(Path::new(&expand(path))),
            Call::List(path) => look::list(Path::new(&expand(path))),
            _ => return None,
        })
    }

    fn xattr(&self, of: &Of, name: &str, room: usize) -> String {
        let mut value = vec![0; room];
        let answer = self.ask_mut(
            of,
            &mut value,
            |path, is_link, value| match is_link {
                false => rustix::fs::getxattr(path, name, value),
                true => rustix::fs::lgetxattr(path, name, value),
            },
            |file, value| rustix::fs::fgetxattr(file, name, value),
        );
        match answer {
            None => "not open".into(),
            Some(answer) => told(answer, |length| match room {
                0 => format!("{length} bytes"),
                _ => digest(&value[..length]),
            }),
        }
    }

    fn xattrs(&self, of: &Of, room: usize) -> String {
        told(self.raw_xattrs(of, room), |names| {
            let names = String::from_utf8_lossy(&names).into_owned();
            let mut names: Vec<_> = names.split_terminator('\0').collect();
            names.sort_unstable();
            names.join(", ")
        })
    }

    fn raw_xattrs(&self, of: &Of, room: usize) -> Result<Vec<u8>> {
        let mut names = vec![0; room];
        let length = self.ask_mut(
            of,
            &mut names,
            |path, is_link, names| match is_link {
                false => rustix::fs::listxattr(path, names),
                true => rustix::fs::llistxattr(path, names),
            },
            |file, names| rustix::fs::flistxattr(file, names),
        );
        names.truncate(length.unwrap_or(Err(Errno::BADF))?);
        Ok(names)
    }

    fn ask_mut(
        &self,
        of: &Of,
        room: &mut [u8],
        by_path: impl FnOnce(&str, bool, &mut [u8]) -> Result<usize>,
        by_file: impl FnOnce(&File, &mut [u8]) -> Result<usize>,
    ) -> Option<Result<usize>> {
        Some(match of {
            Of::Path(path) => by_path(&expand(path), false, room),
            Of::Link(path) => by_path(&expand(path), true, room),
            Of::Slot(slot) => by_file(self.held.get(slot)?, room),
        })
    }

    fn ask<T>(
        &self,
        of: &Of,
        by_path: impl FnOnce(&str, AtFlags) -> Result<T>,
        by_file: impl FnOnce(&File) -> Result<T>,
        tell: impl FnOnce(T) -> String,
    ) -> String {
        match of {
            Of::Path(path) => told(by_path(&expand(path), AtFlags::empty()), tell),
            Of::Link(path) => told(by_path(&expand(path), AtFlags::SYMLINK_NOFOLLOW), tell),
            Of::Slot(slot) => self.with(*slot, |file| told(by_file(file), tell)),
        }
    }

    fn of(
        &self,
        of: &Of,
        by_path: impl FnOnce(&str, AtFlags) -> Result<()>,
        by_file: impl FnOnce(&File) -> Result<()>,
    ) -> String {
        self.ask(of, by_path, by_file, |()| "done".into())
    }
}

fn is_directory(file: &File) -> bool {
    let kind = rustix::fs::fstat(file).map(|stat| FileType::from_raw_mode(stat.st_mode));
    kind == Ok(FileType::Directory)
}

fn is_directory_at(path: &str) -> bool {
    let kind = rustix::fs::lstat(path).map(|stat| FileType::from_raw_mode(stat.st_mode));
    kind == Ok(FileType::Directory)
}

/// Calls about names.
fn names(call: &Call) -> Result<()> {
    match call {
        Call::Mkdir { path, mode: bits } => rustix::fs::mkdir(expand(path), mode(*bits)),
        Call::Mknod {
            path,
            node,
            mode: bits,
        } => {
            let (kind, device) = node.kind();
            rustix::fs::mknodat(CWD, expand(path), kind, mode(*bits), device)
        }
        Call::Symlink { path, target } => rustix::fs::symlink(expand(target), expand(path)),
        Call::Link { from, to, follow } => {
            let mut flags = AtFlags::empty();
            flags.set(AtFlags::SYMLINK_FOLLOW, *follow);
            rustix::fs::linkat(CWD, expand(from), CWD, expand(to), flags)
        }
        Call::Unlink(path) => rustix::fs::unlink(expand(path)),
        Call::Rmdir(path) => rustix::fs::rmdir(expand(path)),
        Call::Rename { from, to, flags } => {
            // If such a one fails for the directory that is in the way, ext4 has made the whiteout and taken it back, which
            // moves the times of the directory that it was in.
            if flags.contains(RenameFlags::WHITEOUT) && is_directory_at(&expand(from)) {
                return Err(Errno::ISDIR);
            }
            rustix::fs::renameat_with(CWD, expand(from), CWD, expand(to), *flags)
        }
        _ => unreachable!("{call:?} is made elsewhere"),
    }
}

/// `copy_file_range` until it copies no more.
fn copy(from: &File, to: &File, mut here: u64, mut there: u64, length: usize) -> String {
    let mut left = length;
    while left > 0 {
        let (source, target) = (Some(&mut here), Some(&mut there));
        match rustix::fs::copy_file_range(from, source, to, target, left) {
            Ok(0) => break,
            Ok(count) => left -= count,
            Err(errno) => return look::error(errno),
        }
    }
    format!("{} bytes", length - left)
}

/// Stores through a mapping what lies within the file.
fn store(file: &File, offset: u64, bytes: &[u8]) -> Result<()> {
    let size = rustix::fs::fstat(file)?.st_size.cast_unsigned();
    // What is called the size of a directory is none.
    if is_directory(file) || size <= offset {
        return Ok(());
    }
    let within = bytes.len().min((size - offset) as usize);
    Mapping::new(file, size as usize, true)?.store(offset as usize, &bytes[..within])
}
