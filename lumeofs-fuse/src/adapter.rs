//! The binding: implements [`fuser::Filesystem`] and nothing else. Each callback copies what it must keep, says
//! what to run, and leaves the rest to [`Dispatcher`].
//!
//! Answered at once, without a place among the busy threads, is only what asks no server: forget, release,
//! opendir, releasedir, fsyncdir, access, and a flush of a file with nothing to publish. So files can be closed
//! however many operations wait.

use crate::attr::{from_request, permissions, set_time};
use crate::core::{Core, WriteRequest};
use crate::dispatch::{Answer, Dispatcher, Header};
use crate::stats::Op;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::limits::IO_BYTES_MAX;
use lumeofs_base::{FsResult, InodeId, RequestId};
use lumeofs_client::Context;
use lumeofs_meta::op::SetAttr;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Asynchronous requests (read-ahead, AIO, write-back of mmap) that the kernel sends at once.
const BACKGROUND_MAX: u16 = 128;
/// From here on the kernel slows their senders down.
const BACKGROUND_CONGESTED: u16 = 96;

/// What is asked of the kernel, each for itself, so that an older one grants the rest.
///
/// - `ASYNC_DIO`: AIO and io_uring are really asynchronous.
/// - `PARALLEL_DIROPS`: lookups and listings of one directory side by side.
/// - `ATOMIC_O_TRUNC`: O_TRUNC comes with the open, not after it.
/// - `DIRECT_IO_ALLOW_MMAP`: shared mappings in spite of direct I/O.
/// - `AUTO_INVAL_DATA`: pages that mmap left in the kernel go when a stat or open shows another mtime.
///
/// Not asked for: the write-back cache, which makes the kernel the owner of size and times; readdirplus, whose
/// attributes would be worth nothing with time-outs of 0; locks, which so stay local to this machine;
/// OVER_IO_URING, which without a ring hangs every request.
const CAPABILITIES: [InitFlags; 5] = [
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    InitFlags::FUSE_AUTO_INVAL_DATA,
];

/// The filesystem as fuser wants it.
pub(crate) struct Adapter {
    dispatcher: Dispatcher<Core>,
}

impl Adapter {
    pub(crate) fn new(dispatcher: Dispatcher<Core>) -> Self {
        Self { dispatcher }
    }

    fn core(&self) -> &Core {
        self.dispatcher.target()
    }

    /// Runs an operation on the inode `ino`.
    fn run<A: Answer>(
        &self,
        op: Op,
        request: &Request,
        ino: INodeNo,
        answer: A,
        work: impl FnOnce(&Core, Context<'_>, InodeId) -> FsResult<A::Value> + Send + 'static,
    ) {
        let header = header(op, request, ino);
        let ino = self.core().inode(ino);
        self.dispatcher
            .run(header, &[], answer, move |core, cx, _| work(core, cx, ino));
    }

    /// Answers with what is known already.
    fn now<A: Answer>(&self, op: Op, request: &Request, ino: INodeNo, answer: A, value: A::Value) {
        self.dispatcher
            .answer_now(header(op, request, ino), answer, Ok(value));
    }
}

fn header(op: Op, request: &Request, ino: INodeNo) -> Header {
    Header {
        op,
        ino: ino.0,
        uid: request.uid(),
        gid: request.gid(),
        tid: request.pid(),
        came: SystemClock.monotonic(),
        request: RequestId::next(),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            if let Err(missing) = config.add_capabilities(capability) {
                tracing::info!(?missing, "this kernel does not offer a capability of FUSE");
            }
        }
        let refused = |what: &str, nearest: &dyn std::fmt::Debug| {
            io::Error::other(format!("FUSE does not take {what}; nearest is {nearest:?}"))
        };
        config
            .set_max_write(IO_BYTES_MAX as u32)
            .map_err(|nearest| refused("requests of 1 MiB", &nearest))?;
        config
            .set_max_background(BACKGROUND_MAX)
            .map_err(|nearest| refused("background requests", &nearest))?;
        config
            .set_congestion_threshold(BACKGROUND_CONGESTED)
            .map_err(|nearest| refused("a congestion threshold", &nearest))?;
        config
            .set_time_granularity(Duration::from_nanos(1))
            .map_err(|nearest| refused("times in nanoseconds", &nearest))?;
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.run(
            Op::Lookup,
            request,
            parent,
            reply,
            move |core, cx, parent| core.lookup(cx, parent, &name),
        );
    }

    fn forget(&self, _: &Request, _: INodeNo, count: u64) {
        self.core().forget(count);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.run(Op::GetAttr, request, ino, reply, Core::getattr);
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(permissions),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(from_request),
        };
        let tid = request.pid();
        self.run(Op::SetAttr, request, ino, reply, move |core, cx, ino| {
            core.setattr(cx, ino, tid, set)
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.run(Op::ReadLink, request, ino, reply, Core::readlink);
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let name = name.as_bytes().to_vec();
        self.run(
            Op::MkNod,
            request,
            parent,
            reply,
            move |core, cx, parent| core.mknod(cx, parent, &name, mode, rdev),
        );
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let name = name.as_bytes().to_vec();
        self.run(
            Op::MkDir,
            request,
            parent,
            reply,
            move |core, cx, parent| core.mkdir(cx, parent, &name, mode),
        );
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.run(
            Op::Unlink,
            request,
            parent,
            reply,
            move |core, cx, parent| core.unlink(cx, parent, &name),
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.run(
            Op::RmDir,
            request,
            parent,
            reply,
            move |core, cx, parent| core.rmdir(cx, parent, &name),
        );
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let name = name.as_bytes().to_vec();
        let target = target.as_os_str().as_bytes().to_vec();
        self.run(
            Op::SymLink,
            request,
            parent,
            reply,
            move |core, cx, parent| core.symlink(cx, parent, &name, target),
        );
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        let new_parent = self.core().inode(new_parent);
        self.run(
            Op::Rename,
            request,
            parent,
            reply,
            move |core, cx, parent| {
                core.rename(cx, (parent, &name), (new_parent, &new_name), flags)
            },
        );
    }

    fn link(
        &self,
        request: &Request,
        ino: INodeNo,
        parent: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
    ) {
        let name = name.as_bytes().to_vec();
        let parent = self.core().inode(parent);
        self.run(Op::Link, request, ino, reply, move |core, cx, ino| {
            core.link(cx, ino, parent, &name)
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let tid = request.pid();
        self.run(Op::Open, request, ino, reply, move |core, cx, ino| {
            core.open(cx, ino, tid, flags.0)
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, tid) = (name.as_bytes().to_vec(), request.pid());
        self.run(
            Op::Create,
            request,
            parent,
            reply,
            move |core, cx, parent| core.create(cx, parent, &name, mode, (tid, flags)),
        );
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.run(Op::Read, request, ino, reply, move |core, cx, ino| {
            core.read(cx, ino, offset, size)
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        open_flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let write = WriteRequest {
            offset,
            open_flags: open_flags.0,
            flags,
            tid: request.pid(),
        };
        let mut header = header(Op::Write, request, ino);
        if write.is_from_page_cache() {
            // Whoever happens to write the page back may die; the page must not get lost for that.
            header.tid = 0;
        }
        let ino = self.core().inode(ino);
        self.dispatcher
            .run(header, data, reply, move |core, cx, data| {
                core.write(cx, ino, write, data)
            });
    }

    fn flush(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: LockOwner,
        reply: ReplyEmpty,
    ) {
        if self.core().is_flushed(self.core().inode(ino)) {
            self.now(Op::Flush, request, ino, reply, ());
        } else {
            self.run(Op::Flush, request, ino, reply, Core::flush);
        }
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.core().release(self.core().inode(ino));
        self.now(Op::Release, request, ino, reply, ());
    }

    fn fsync(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.run(Op::Fsync, request, ino, reply, move |core, cx, ino| {
            core.fsync(cx, ino, data_only)
        });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.now(Op::OpenDir, request, ino, reply, self.core().opendir());
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        position: u64,
        reply: ReplyDirectory,
    ) {
        self.run(Op::ReadDir, request, ino, reply, move |core, cx, ino| {
            core.readdir(cx, ino, handle, position)
        });
    }

    fn releasedir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.core().releasedir(handle);
        self.now(Op::ReleaseDir, request, ino, reply, ());
    }

    /// Every change of a directory is durable when it is acknowledged.
    fn fsyncdir(&self, request: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.now(Op::Fsync, request, ino, reply, ());
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.run(Op::StatFs, request, ino, reply, |core, cx, _| {
            core.statfs(cx)
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        self.run(Op::SetXattr, request, ino, reply, move |core, cx, ino| {
            core.setxattr(cx, ino, &name, &value, flags)
        });
    }

    fn getxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let name = name.as_bytes().to_vec();
        self.run(Op::GetXattr, request, ino, reply, move |core, cx, ino| {
            core.getxattr(cx, ino, &name, size)
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.run(Op::ListXattr, request, ino, reply, move |core, cx, ino| {
            core.listxattr(cx, ino, size)
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.run(
            Op::RemoveXattr,
            request,
            ino,
            reply,
            move |core, cx, ino| core.removexattr(cx, ino, &name),
        );
    }

    /// The kernel checks permissions itself (`default_permissions`).
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let tid = request.pid();
        self.run(Op::Fallocate, request, ino, reply, move |core, cx, ino| {
            core.fallocate(cx, ino, tid, (offset, len), mode)
        });
    }

    fn lseek(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.run(Op::Lseek, request, ino, reply, move |core, cx, ino| {
            core.lseek(cx, ino, offset, whence)
        });
    }

    /// The one ENOSYS: the kernel then copies by reading and writing, and does not ask again.
    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
