//! The binding: implements [`Filesystem`] and nothing else. Each callback copies what it must keep, says
//! what to run, and leaves the rest to [`Dispatcher`].
//!
//! Answered at once, without a place among the busy threads, is only what asks no server: forget, release,
//! opendir, releasedir, fsyncdir, access, and a flush of a file with nothing to publish or unlock. So files can be closed
//! however many operations wait.

use crate::attr::permissions;
use crate::core::{Core, WriteRequest};
use crate::dispatch::{Answer, Dispatcher, Header};
use crate::kernel::{
    Filesystem, Interrupt, LockRange, ReplyAttr, ReplyCopied, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, SetAttrRequest,
};
use crate::stats::Op;
use fuser::{FileHandle, INodeNo, LockOwner, OpenFlags, RenameFlags, WriteFlags};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{FsResult, InodeId, RequestId};
use lumeofs_client::Context;
use lumeofs_meta::op::SetAttr;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// The filesystem as the kernel wants it.
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

    fn forget(&self, count: u64) {
        self.core().forget(count);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, reply: ReplyAttr) {
        self.run(Op::GetAttr, request, ino, reply, Core::getattr);
    }

    fn setattr(&self, request: &Request, ino: INodeNo, set: SetAttrRequest, reply: ReplyAttr) {
        let set = SetAttr {
            mode: set.mode.map(permissions),
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: set.atime,
            mtime: set.mtime,
            ctime: set.ctime,
            clear_sgid: false,
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
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let name = name.as_bytes().to_vec();
        self.run(
            Op::MkNod,
            request,
            parent,
            reply,
            move |core, cx, parent| core.mknod(cx, parent, &name, mode, umask, rdev),
        );
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let name = name.as_bytes().to_vec();
        self.run(
            Op::MkDir,
            request,
            parent,
            reply,
            move |core, cx, parent| core.mkdir(cx, parent, &name, mode, umask),
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
        target: &OsStr,
        reply: ReplyEntry,
    ) {
        let name = name.as_bytes().to_vec();
        let target = target.as_bytes().to_vec();
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
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, tid) = (name.as_bytes().to_vec(), request.pid());
        self.run(
            Op::Create,
            request,
            parent,
            reply,
            move |core, cx, parent| core.create(cx, parent, &name, (mode, umask), (tid, flags)),
        );
    }

    fn tmpfile(
        &self,
        request: &Request,
        parent: INodeNo,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.run(
            Op::TmpFile,
            request,
            parent,
            reply,
            move |core, cx, parent| core.create_unnamed(cx, parent, (mode, umask), flags),
        );
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        offset: u64,
        size: u32,
        for_cache: bool,
        flags: OpenFlags,
        reply: ReplyData,
    ) {
        self.run(Op::Read, request, ino, reply, move |core, cx, ino| {
            let read = core.read(cx, ino, offset, size, for_cache)?;
            core.accessed(ino, false, flags.0);
            Ok(read)
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        open_flags: OpenFlags,
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

    fn flush(&self, request: &Request, ino: INodeNo, owner: LockOwner, reply: ReplyEmpty) {
        let (core, inode) = (self.core(), self.core().inode(ino));
        if core.is_flushed(inode) && core.is_unlocked(inode, owner.0) {
            self.now(Op::Flush, request, ino, reply, ());
        } else {
            self.run(Op::Flush, request, ino, reply, move |core, cx, ino| {
                core.close_locks(cx, ino, owner.0);
                core.flush(cx, ino)
            });
        }
    }

    fn release(&self, request: &Request, ino: INodeNo, handle: FileHandle, reply: ReplyEmpty) {
        self.core().release(self.core().inode(ino), handle.0);
        self.now(Op::Release, request, ino, reply, ());
    }

    fn fsync(&self, request: &Request, ino: INodeNo, data_only: bool, reply: ReplyEmpty) {
        self.run(Op::Fsync, request, ino, reply, move |core, cx, ino| {
            core.fsync(cx, ino, data_only)
        });
    }

    fn getlk(&self, request: &Request, ino: INodeNo, lock: LockRange, reply: ReplyLock) {
        self.run(Op::GetLk, request, ino, reply, move |core, cx, ino| {
            core.getlk(cx, ino, lock)
        });
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        lock: LockRange,
        wait: Option<Interrupt>,
        reply: ReplyEmpty,
    ) {
        let Some(interrupt) = wait.filter(|_| lock.kind != libc::F_UNLCK) else {
            self.run(Op::SetLk, request, ino, reply, move |core, cx, ino| {
                core.setlk(cx, ino, handle.0, lock, None)
            });
            return;
        };
        let header = header(Op::SetLkW, request, ino);
        let ino = self.core().inode(ino);
        self.dispatcher.wait(header, reply, move |core, cx| {
            let interrupted = || interrupt.is_raised() || (cx.interrupted)();
            core.setlk(cx, ino, handle.0, lock, Some(&interrupted))
        });
    }

    fn opendir(&self, request: &Request, ino: INodeNo, reply: ReplyOpen) {
        self.now(Op::OpenDir, request, ino, reply, self.core().opendir());
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        position: u64,
        flags: OpenFlags,
        reply: ReplyDirectory,
    ) {
        self.run(Op::ReadDir, request, ino, reply, move |core, cx, ino| {
            let listing = core.readdir(cx, ino, handle, position)?;
            core.accessed(ino, true, flags.0);
            Ok(listing)
        });
    }

    fn releasedir(&self, request: &Request, ino: INodeNo, handle: FileHandle, reply: ReplyEmpty) {
        self.core().releasedir(handle);
        self.now(Op::ReleaseDir, request, ino, reply, ());
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, reply: ReplyEmpty) {
        self.run(Op::Fsync, request, ino, reply, move |core, cx, ino| {
            core.fsync(cx, ino, false)
        });
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
        reply: ReplyEmpty,
    ) {
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        let tid = request.pid();
        self.run(Op::SetXattr, request, ino, reply, move |core, cx, ino| {
            core.setxattr(cx, tid, ino, &name, (&value, flags))
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
    fn access(&self, _: &Request, _: INodeNo, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
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

    fn lseek(&self, request: &Request, ino: INodeNo, offset: i64, whence: i32, reply: ReplyLseek) {
        self.run(Op::Lseek, request, ino, reply, move |core, cx, ino| {
            core.lseek(cx, ino, offset, whence)
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        (from, from_offset): (INodeNo, u64),
        (to, to_offset): (INodeNo, u64),
        handle: FileHandle,
        len: u64,
        flags: u64,
        reply: ReplyCopied,
    ) {
        let (tid, from) = (request.pid(), (self.core().inode(from), from_offset));
        self.run(
            Op::CopyFileRange,
            request,
            to,
            reply,
            move |core, cx, to| {
                core.copy_file_range(cx, tid, from, (to, to_offset), handle.0, len, flags)
            },
        );
    }
}
