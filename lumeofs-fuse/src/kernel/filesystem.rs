//! What a filesystem must be able to do, and which request of the kernel means which of it.

use super::device::Device;
use super::interrupts::{Interrupt, Interrupts};
use super::reply::{
    ReplyAttr, ReplyCopied, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Sender,
};
use super::request::{Body, Request};
use fuser::{Errno, FileHandle, INodeNo, LockOwner, OpenFlags, RenameFlags, WriteFlags};
use lumeofs_base::Timestamp;
use lumeofs_meta::op::SetTime;
use std::ffi::OsStr;
use std::sync::Arc;

/// Numbers of requests: `enum fuse_opcode`.
mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const READLINK: u32 = 5;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const SETXATTR: u32 = 21;
    pub(super) const GETXATTR: u32 = 22;
    pub(super) const LISTXATTR: u32 = 23;
    pub(super) const REMOVEXATTR: u32 = 24;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const FSYNCDIR: u32 = 30;
    pub(super) const GETLK: u32 = 31;
    pub(super) const SETLK: u32 = 32;
    pub(super) const SETLKW: u32 = 33;
    pub(super) const ACCESS: u32 = 34;
    pub(super) const CREATE: u32 = 35;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
    pub(super) const RENAME2: u32 = 45;
    pub(super) const LSEEK: u32 = 46;
    pub(super) const COPY_FILE_RANGE: u32 = 47;
    pub(super) const TMPFILE: u32 = 51;
    /// As `COPY_FILE_RANGE` with a longer answer; kernels from 6.18 on ask for it first.
    pub(super) const COPY_FILE_RANGE_64: u32 = 53;
}

/// `FUSE_FSYNC_FDATASYNC`.
const DATA_ONLY: u32 = 1;
/// `FUSE_READ_LOCKOWNER`: the one who reads is named.
const READ_LOCKOWNER: u32 = 2;
/// `FUSE_LK_FLOCK`: a lock of flock(2).
const LK_FLOCK: u32 = 1;

/// Bits of `fuse_setattr_in.valid`, `FATTR_*`.
mod valid {
    pub(super) const MODE: u32 = 1 << 0;
    pub(super) const UID: u32 = 1 << 1;
    pub(super) const GID: u32 = 1 << 2;
    pub(super) const SIZE: u32 = 1 << 3;
    pub(super) const ATIME: u32 = 1 << 4;
    pub(super) const MTIME: u32 = 1 << 5;
    pub(super) const ATIME_NOW: u32 = 1 << 7;
    pub(super) const MTIME_NOW: u32 = 1 << 8;
    pub(super) const CTIME: u32 = 1 << 10;
}

/// Attributes to set; `None` keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SetAttrRequest {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) atime: Option<SetTime>,
    pub(crate) mtime: Option<SetTime>,
    pub(crate) ctime: Option<Timestamp>,
}

/// A range that is to be locked or unlocked, or asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LockRange {
    /// The kernel's name for the process or open file description.
    pub(crate) owner: u64,
    /// It is one of flock(2), not of fcntl(2).
    pub(crate) flock: bool,
    /// First byte.
    pub(crate) first: u64,
    /// Last byte, included.
    pub(crate) last: u64,
    /// `F_RDLCK`, `F_WRLCK` or `F_UNLCK`.
    pub(crate) kind: i32,
    /// The process.
    pub(crate) pid: u32,
}

/// A filesystem. Each method answers its reply, now or later; forget is not answered.
#[allow(clippy::too_many_arguments, reason = "requests have that many fields")]
pub(crate) trait Filesystem: Send + Sync + 'static {
    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry);
    fn forget(&self, count: u64);
    fn getattr(&self, request: &Request, ino: INodeNo, reply: ReplyAttr);
    fn setattr(&self, request: &Request, ino: INodeNo, set: SetAttrRequest, reply: ReplyAttr);
    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData);
    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    );
    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    );
    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty);
    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &OsStr,
        reply: ReplyEntry,
    );
    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    );
    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        parent: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
    );
    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen);
    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    );
    /// Makes and opens a file without a name.
    fn tmpfile(
        &self,
        request: &Request,
        parent: INodeNo,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    );
    /// With `for_cache` what is read goes into the kernel's page cache.
    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        offset: u64,
        size: u32,
        for_cache: bool,
        flags: OpenFlags,
        reply: ReplyData,
    );
    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        open_flags: OpenFlags,
        reply: ReplyWrite,
    );
    fn flush(&self, request: &Request, ino: INodeNo, owner: LockOwner, reply: ReplyEmpty);
    fn release(&self, request: &Request, ino: INodeNo, handle: FileHandle, reply: ReplyEmpty);
    fn fsync(&self, request: &Request, ino: INodeNo, data_only: bool, reply: ReplyEmpty);
    fn getlk(&self, request: &Request, ino: INodeNo, lock: LockRange, reply: ReplyLock);
    /// With `wait` until it is granted, or the caller got a signal.
    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        lock: LockRange,
        wait: Option<Interrupt>,
        reply: ReplyEmpty,
    );
    fn opendir(&self, request: &Request, ino: INodeNo, reply: ReplyOpen);
    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        cookie: u64,
        flags: OpenFlags,
        reply: ReplyDirectory,
    );
    fn releasedir(&self, request: &Request, ino: INodeNo, handle: FileHandle, reply: ReplyEmpty);
    fn fsyncdir(&self, request: &Request, ino: INodeNo, reply: ReplyEmpty);
    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs);
    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        reply: ReplyEmpty,
    );
    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr);
    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr);
    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty);
    fn access(&self, request: &Request, ino: INodeNo, reply: ReplyEmpty);
    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    );
    fn lseek(&self, request: &Request, ino: INodeNo, offset: i64, whence: i32, reply: ReplyLseek);
    /// From a place in a file, that of the request, to a place in the same or another one, which is open under `handle`.
    fn copy_file_range(
        &self,
        request: &Request,
        from: (INodeNo, u64),
        to: (INodeNo, u64),
        handle: FileHandle,
        len: u64,
        flags: u64,
        reply: ReplyCopied,
    );
}

/// Whether there may be further requests.
pub(super) enum Next {
    GoOn,
    End,
}

/// Serves one request.
pub(super) fn serve<F: Filesystem>(
    filesystem: &F,
    interrupts: &Interrupts,
    device: &Arc<Device>,
    bytes: &[u8],
) -> Next {
    let Some((request, body)) = Request::parse(bytes) else {
        tracing::error!(len = bytes.len(), "the kernel sent what is no request");
        return Next::GoOn;
    };
    let reply = || Sender::new(device, request.unique);
    match request.opcode {
        opcode::DESTROY => {
            ReplyEmpty(reply()).ok();
            return Next::End;
        }
        opcode::FORGET | opcode::BATCH_FORGET => {
            forget(filesystem, request.opcode, body);
        }
        opcode::INTERRUPT => {
            // Not answered: an error would say that none are wanted.
            if let Some(unique) = { body }.u64() {
                interrupts.raise(unique);
            }
        }
        _ => {
            let mut sender = Some(reply());
            if serve_one(filesystem, interrupts, &request, body, &mut sender).is_none() {
                tracing::error!(
                    opcode = request.opcode,
                    "a request is shorter than it must be"
                );
            }
        }
    }
    Next::GoOn
}

fn forget<F: Filesystem>(filesystem: &F, opcode: u32, mut body: Body<'_>) -> Option<()> {
    if opcode == opcode::FORGET {
        filesystem.forget(body.u64()?);
        return Some(());
    }
    let (count, _) = (body.u32()?, body.u32()?);
    for _ in 0..count {
        let (_node, references) = (body.u64()?, body.u64()?);
        filesystem.forget(references);
    }
    Some(())
}

/// Takes a request apart and has it done. `None` if there is less of it than there should be; what is left in `reply` then is
/// answered with EIO.
fn serve_one<F: Filesystem>(
    fs: &F,
    interrupts: &Interrupts,
    request: &Request,
    mut body: Body<'_>,
    reply: &mut Option<Sender>,
) -> Option<()> {
    let ino = INodeNo(request.node);
    let mut take = || reply.take().expect("a request has one reply");
    match request.opcode {
        opcode::LOOKUP => fs.lookup(request, ino, body.name()?, ReplyEntry(take())),
        opcode::GETATTR => fs.getattr(request, ino, ReplyAttr(take())),
        opcode::SETATTR => fs.setattr(request, ino, set_attr(&mut body)?, ReplyAttr(take())),
        opcode::READLINK => fs.readlink(request, ino, ReplyData(take())),
        opcode::SYMLINK => {
            let (name, target) = (body.name()?, body.name()?);
            fs.symlink(request, ino, name, target, ReplyEntry(take()));
        }
        opcode::MKNOD => {
            let (mode, rdev, umask, _) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
            let name = body.name()?;
            fs.mknod(request, ino, name, mode, umask, rdev, ReplyEntry(take()));
        }
        opcode::MKDIR => {
            let (mode, umask, name) = (body.u32()?, body.u32()?, body.name()?);
            fs.mkdir(request, ino, name, mode, umask, ReplyEntry(take()));
        }
        opcode::UNLINK => fs.unlink(request, ino, body.name()?, ReplyEmpty(take())),
        opcode::RMDIR => fs.rmdir(request, ino, body.name()?, ReplyEmpty(take())),
        opcode::RENAME | opcode::RENAME2 => {
            let parent = INodeNo(body.u64()?);
            let flags = match request.opcode {
                opcode::RENAME2 => (body.u32()?, body.u32()?).0,
                _ => 0,
            };
            let flags = RenameFlags::from_bits_retain(flags);
            let (name, new_name) = (body.name()?, body.name()?);
            let reply = ReplyEmpty(take());
            fs.rename(request, ino, name, parent, new_name, flags, reply);
        }
        opcode::LINK => {
            let (linked, name) = (INodeNo(body.u64()?), body.name()?);
            fs.link(request, linked, ino, name, ReplyEntry(take()));
        }
        opcode::OPEN => {
            let flags = OpenFlags(body.i32()?);
            fs.open(request, ino, flags, ReplyOpen(take()));
        }
        opcode::CREATE => {
            let (flags, mode, umask, _) = (body.i32()?, body.u32()?, body.u32()?, body.u32()?);
            let name = body.name()?;
            fs.create(request, ino, name, mode, umask, flags, ReplyCreate(take()));
        }
        opcode::TMPFILE => {
            // What follows is no name.
            let (flags, mode, umask) = (body.i32()?, body.u32()?, body.u32()?);
            fs.tmpfile(request, ino, mode, umask, flags, ReplyCreate(take()));
        }
        opcode::READ => {
            let (_handle, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
            // Who reads directly says on whose behalf.
            let for_cache = body.u32()? & READ_LOCKOWNER == 0;
            let (_owner, flags) = (body.u64()?, OpenFlags(body.i32()?));
            let reply = ReplyData(take());
            fs.read(request, ino, offset, size, for_cache, flags, reply);
        }
        opcode::WRITE => {
            let (_handle, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
            let flags = WriteFlags::from_bits_retain(body.u32()?);
            let (_owner, open_flags, _) = (body.u64()?, OpenFlags(body.i32()?), body.u32()?);
            let (data, reply) = (body.bytes(size)?, ReplyWrite(take()));
            fs.write(request, ino, offset, data, flags, open_flags, reply);
        }
        opcode::STATFS => fs.statfs(request, ino, ReplyStatfs(take())),
        opcode::RELEASE => {
            let handle = FileHandle(body.u64()?);
            fs.release(request, ino, handle, ReplyEmpty(take()));
        }
        opcode::FSYNC => {
            let (_handle, flags) = (body.u64()?, body.u32()?);
            fs.fsync(request, ino, flags & DATA_ONLY != 0, ReplyEmpty(take()));
        }
        opcode::SETXATTR => {
            let (size, flags, name) = (body.u32()?, body.i32()?, body.name()?);
            let value = body.bytes(size)?;
            fs.setxattr(request, ino, name, value, flags, ReplyEmpty(take()));
        }
        opcode::GETXATTR => {
            let (size, _, name) = (body.u32()?, body.u32()?, body.name()?);
            fs.getxattr(request, ino, name, size, ReplyXattr(take()));
        }
        opcode::LISTXATTR => fs.listxattr(request, ino, body.u32()?, ReplyXattr(take())),
        opcode::REMOVEXATTR => fs.removexattr(request, ino, body.name()?, ReplyEmpty(take())),
        opcode::FLUSH => {
            let (_handle, _, owner) = (body.u64()?, body.u64()?, LockOwner(body.u64()?));
            fs.flush(request, ino, owner, ReplyEmpty(take()));
        }
        opcode::OPENDIR => fs.opendir(request, ino, ReplyOpen(take())),
        opcode::READDIR => {
            let (handle, cookie) = (FileHandle(body.u64()?), body.u64()?);
            let (size, _) = (body.u32()?, body.u32()?);
            let (_owner, flags) = (body.u64()?, OpenFlags(body.i32()?));
            let reply = ReplyDirectory::new(take(), size);
            fs.readdir(request, ino, handle, cookie, flags, reply);
        }
        opcode::RELEASEDIR => {
            let handle = FileHandle(body.u64()?);
            fs.releasedir(request, ino, handle, ReplyEmpty(take()));
        }
        opcode::FSYNCDIR => fs.fsyncdir(request, ino, ReplyEmpty(take())),
        opcode::GETLK => {
            let (_handle, lock) = lock(&mut body)?;
            fs.getlk(request, ino, lock, ReplyLock(take()));
        }
        opcode::SETLK | opcode::SETLKW => {
            let (handle, lock) = lock(&mut body)?;
            let waits = request.opcode == opcode::SETLKW;
            let wait = waits.then(|| interrupts.wait(request.unique));
            fs.setlk(request, ino, handle, lock, wait, ReplyEmpty(take()));
        }
        opcode::ACCESS => fs.access(request, ino, ReplyEmpty(take())),
        opcode::FALLOCATE => {
            let (_handle, offset, len) = (body.u64()?, body.u64()?, body.u64()?);
            fs.fallocate(request, ino, offset, len, body.i32()?, ReplyEmpty(take()));
        }
        opcode::LSEEK => {
            let (_handle, offset) = (body.u64()?, body.u64()?.cast_signed());
            fs.lseek(request, ino, offset, body.i32()?, ReplyLseek(take()));
        }
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
            let (_handle, from) = (body.u64()?, (ino, body.u64()?));
            let (node, handle) = (INodeNo(body.u64()?), FileHandle(body.u64()?));
            let (to, len, flags) = ((node, body.u64()?), body.u64()?, body.u64()?);
            let reply = ReplyCopied::new(take(), request.opcode == opcode::COPY_FILE_RANGE_64);
            fs.copy_file_range(request, from, to, handle, len, flags, reply);
        }
        // The kernel does without, and does not ask again.
        _ => take().error(Errno::ENOSYS),
    }
    Some(())
}

/// `struct fuse_lk_in`.
fn lock(body: &mut Body<'_>) -> Option<(FileHandle, LockRange)> {
    let (handle, owner) = (FileHandle(body.u64()?), body.u64()?);
    let (first, last) = (body.u64()?, body.u64()?);
    let (kind, pid, flags) = (body.i32()?, body.u32()?, body.u32()?);
    let range = LockRange {
        owner,
        flock: flags & LK_FLOCK != 0,
        first,
        last,
        kind,
        pid,
    };
    Some((handle, range))
}

/// `struct fuse_setattr_in`.
fn set_attr(body: &mut Body<'_>) -> Option<SetAttrRequest> {
    let (valid, _, _handle, size) = (body.u32()?, body.u32()?, body.u64()?, body.u64()?);
    let _owner = body.u64()?;
    let secs = [body.u64()?, body.u64()?, body.u64()?];
    let nanos = [body.u32()?, body.u32()?, body.u32()?];
    let (mode, _, uid, gid) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
    let has = |bit: u32| valid & bit != 0;
    let at = |which: usize| Timestamp {
        secs: secs[which].cast_signed(),
        nanos: nanos[which],
    };
    let time = |set, now, which| match (has(now), has(set)) {
        (true, _) => Some(SetTime::Now),
        (false, true) => Some(SetTime::At(at(which))),
        (false, false) => None,
    };
    Some(SetAttrRequest {
        mode: has(valid::MODE).then_some(mode),
        uid: has(valid::UID).then_some(uid),
        gid: has(valid::GID).then_some(gid),
        size: has(valid::SIZE).then_some(size),
        atime: time(valid::ATIME, valid::ATIME_NOW, 0),
        mtime: time(valid::MTIME, valid::MTIME_NOW, 1),
        ctime: has(valid::CTIME).then(|| at(2)),
    })
}
