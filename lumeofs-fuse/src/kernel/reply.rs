//! Replies as the kernel reads them. Each is sent once: by one of its methods, or with EIO if it is dropped.

use super::device::Device;
use fuser::{Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo};
use std::ffi::OsStr;
use std::io::IoSlice;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `struct fuse_out_header`.
const HEADER_BYTES: usize = 16;
/// Directory entries begin at multiples of this.
const ENTRY_ALIGN: usize = 8;

/// The way back.
#[derive(Debug)]
pub(super) struct Sender {
    device: Arc<Device>,
    unique: u64,
    sent: bool,
}

impl Sender {
    pub(super) fn new(device: &Arc<Device>, unique: u64) -> Self {
        Self {
            device: device.clone(),
            unique,
            sent: false,
        }
    }

    fn send(mut self, bytes: &[u8]) {
        self.write(0, bytes);
    }

    pub(super) fn error(mut self, errno: Errno) {
        self.write(-errno.code(), &[]);
    }

    fn write(&mut self, error: i32, bytes: &[u8]) {
        let mut header = Out::default();
        let len = HEADER_BYTES + bytes.len();
        header.u32(len as u32).i32(error).u64(self.unique);
        self.sent = true;
        let parts = [IoSlice::new(&header.0), IoSlice::new(bytes)];
        self.device.write(&parts);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if !self.sent {
            self.write(-libc::EIO, &[]);
        }
    }
}

/// A structure being written, field by field.
#[derive(Default)]
pub(super) struct Out(Vec<u8>);

impl Out {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn u32(&mut self, number: u32) -> &mut Self {
        self.0.extend(number.to_ne_bytes());
        self
    }

    pub(super) fn i32(&mut self, number: i32) -> &mut Self {
        self.u32(number.cast_unsigned())
    }

    pub(super) fn u64(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_ne_bytes());
        self
    }

    /// `struct fuse_attr`.
    fn attr(&mut self, attr: &FileAttr) -> &mut Self {
        let times = [attr.atime, attr.mtime, attr.ctime].map(seconds);
        self.u64(attr.ino.0).u64(attr.size).u64(attr.blocks);
        for (secs, _) in times {
            self.u64(secs.cast_unsigned());
        }
        for (_, nanos) in times {
            self.u32(nanos);
        }
        self.u32(type_bits(attr.kind) | u32::from(attr.perm))
            .u32(attr.nlink)
            .u32(attr.uid)
            .u32(attr.gid)
            .u32(attr.rdev)
            .u32(attr.blksize)
            .u32(0)
    }

    /// `struct fuse_entry_out`; entry and attributes are good for the same time.
    fn entry(&mut self, ttl: &Duration, attr: &FileAttr, generation: Generation) -> &mut Self {
        self.u64(attr.ino.0)
            .u64(generation.0)
            .u64(ttl.as_secs())
            .u64(ttl.as_secs())
            .u32(ttl.subsec_nanos())
            .u32(ttl.subsec_nanos())
            .attr(attr)
    }

    /// `struct fuse_open_out`.
    fn open(&mut self, handle: FileHandle, flags: FopenFlags) -> &mut Self {
        self.u64(handle.0).u32(flags.bits()).u32(0)
    }
}

/// Seconds since 1970, rounded down, and nanoseconds from there on.
fn seconds(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (after.as_secs().cast_signed(), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let secs = before.as_secs().cast_signed().wrapping_neg();
            match before.subsec_nanos() {
                0 => (secs, 0),
                nanos => (secs.wrapping_sub(1), 1_000_000_000 - nanos),
            }
        }
    }
}

/// A kind in the type bits of `st_mode`.
fn type_bits(kind: FileType) -> u32 {
    match kind {
        FileType::NamedPipe => libc::S_IFIFO,
        FileType::CharDevice => libc::S_IFCHR,
        FileType::BlockDevice => libc::S_IFBLK,
        FileType::Directory => libc::S_IFDIR,
        FileType::RegularFile => libc::S_IFREG,
        FileType::Symlink => libc::S_IFLNK,
        FileType::Socket => libc::S_IFSOCK,
    }
}

/// Reply types that are a sender and say what they are for.
macro_rules! replies {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name(pub(super) Sender);

        impl $name {
            /// Refuses.
            pub(crate) fn error(self, errno: Errno) {
                self.0.error(errno);
            }
        }
    )*};
}

replies! {
    /// Nothing but that it was done.
    ReplyEmpty,
    /// Bytes.
    ReplyData,
    /// An object of which the kernel now has a reference.
    ReplyEntry,
    /// Attributes.
    ReplyAttr,
    /// An open file or directory.
    ReplyOpen,
    /// An object that was made, and is open.
    ReplyCreate,
    /// How much was written.
    ReplyWrite,
    /// The space of the filesystem.
    ReplyStatfs,
    /// A lock.
    ReplyLock,
    /// An extended attribute.
    ReplyXattr,
    /// A position.
    ReplyLseek,
}

impl ReplyEmpty {
    pub(crate) fn ok(self) {
        self.0.send(&[]);
    }
}

impl ReplyData {
    pub(crate) fn data(self, data: &[u8]) {
        self.0.send(data);
    }
}

impl ReplyEntry {
    pub(crate) fn entry(self, ttl: &Duration, attr: &FileAttr, generation: Generation) {
        let mut out = Out::default();
        self.0.send(&out.entry(ttl, attr, generation).0);
    }
}

impl ReplyAttr {
    pub(crate) fn attr(self, ttl: &Duration, attr: &FileAttr) {
        let mut out = Out::default();
        out.u64(ttl.as_secs()).u32(ttl.subsec_nanos()).u32(0);
        self.0.send(&out.attr(attr).0);
    }
}

impl ReplyOpen {
    pub(crate) fn opened(self, handle: FileHandle, flags: FopenFlags) {
        let mut out = Out::default();
        self.0.send(&out.open(handle, flags).0);
    }
}

impl ReplyCreate {
    pub(crate) fn created(
        self,
        ttl: &Duration,
        attr: &FileAttr,
        generation: Generation,
        handle: FileHandle,
        flags: FopenFlags,
    ) {
        let mut out = Out::default();
        let out = out.entry(ttl, attr, generation).open(handle, flags);
        self.0.send(&out.0);
    }
}

impl ReplyWrite {
    pub(crate) fn written(self, size: u32) {
        let mut out = Out::default();
        self.0.send(&out.u32(size).u32(0).0);
    }
}

impl ReplyStatfs {
    /// The fields of `struct kstatfs`, in its order.
    #[allow(clippy::too_many_arguments, reason = "the structure has that many")]
    pub(crate) fn statfs(
        self,
        blocks: u64,
        blocks_free: u64,
        blocks_available: u64,
        files: u64,
        files_free: u64,
        block_size: u32,
        name_len_max: u32,
        fragment_size: u32,
    ) {
        let mut out = Out::default();
        for number in [blocks, blocks_free, blocks_available, files, files_free] {
            out.u64(number);
        }
        for number in [block_size, name_len_max, fragment_size] {
            out.u32(number);
        }
        for _padding in 0..7 {
            out.u32(0);
        }
        self.0.send(&out.0);
    }
}

impl ReplyLock {
    /// `struct fuse_lk_out`: a lock from `first` to `last`.
    pub(crate) fn locked(self, first: u64, last: u64, kind: i32, pid: u32) {
        let mut out = Out::default();
        self.0.send(&out.u64(first).u64(last).i32(kind).u32(pid).0);
    }
}

impl ReplyXattr {
    pub(crate) fn size(self, size: u32) {
        let mut out = Out::default();
        self.0.send(&out.u32(size).u32(0).0);
    }

    pub(crate) fn data(self, data: &[u8]) {
        self.0.send(data);
    }
}

impl ReplyLseek {
    pub(crate) fn offset(self, offset: i64) {
        let mut out = Out::default();
        self.0.send(&out.u64(offset.cast_unsigned()).0);
    }
}

/// How much was copied.
#[derive(Debug)]
pub(crate) struct ReplyCopied {
    sender: Sender,
    is_64: bool,
}

impl ReplyCopied {
    /// `is_64`: as `struct fuse_copy_file_range_out`, else as `struct fuse_write_out`.
    pub(super) fn new(sender: Sender, is_64: bool) -> Self {
        Self { sender, is_64 }
    }

    pub(crate) fn copied(self, len: u64) {
        let mut out = Out::default();
        match self.is_64 {
            true => out.u64(len),
            // What was asked for had to fit.
            false => out.u32(len as u32).u32(0),
        };
        self.sender.send(&out.0);
    }

    /// Refuses.
    pub(crate) fn error(self, errno: Errno) {
        self.sender.error(errno);
    }
}

/// Entries of a directory, as many as fit.
#[derive(Debug)]
pub(crate) struct ReplyDirectory {
    sender: Sender,
    size: usize,
    entries: Vec<u8>,
}

impl ReplyDirectory {
    pub(super) fn new(sender: Sender, size: u32) -> Self {
        Self {
            sender,
            size: size as usize,
            entries: Vec::new(),
        }
    }

    /// Adds an entry, or says that it does not fit.
    #[must_use]
    pub(crate) fn add(&mut self, ino: INodeNo, cookie: u64, kind: FileType, name: &OsStr) -> bool {
        let name = name.as_bytes();
        let mut out = Out(std::mem::take(&mut self.entries));
        let begin = out.0.len();
        // `struct fuse_dirent`.
        out.u64(ino.0).u64(cookie).u32(name.len() as u32);
        out.u32(type_bits(kind) >> 12);
        out.0.extend(name);
        out.0.resize(out.0.len().next_multiple_of(ENTRY_ALIGN), 0);
        let full = out.0.len() > self.size;
        if full {
            out.0.truncate(begin);
        }
        self.entries = out.0;
        full
    }

    pub(crate) fn ok(self) {
        self.sender.send(&self.entries);
    }

    /// Refuses.
    pub(crate) fn error(self, errno: Errno) {
        self.sender.error(errno);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_kernel() {
        let attr = FileAttr {
            ino: INodeNo(5),
            size: 1,
            blocks: 1,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::Socket,
            perm: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        let (ttl, generation) = (Duration::ZERO, Generation(0));
        assert_eq!(Out::default().attr(&attr).0.len(), 88);
        let mut entry = Out::default();
        assert_eq!(entry.entry(&ttl, &attr, generation).0.len(), 128);
        let open = Out::default()
            .open(FileHandle(1), FopenFlags::empty())
            .0
            .len();
        assert_eq!(open, 16);
    }

    #[test]
    fn times_before_1970_are_rounded_down() {
        let before = |nanos| UNIX_EPOCH - Duration::from_nanos(nanos);
        assert_eq!(seconds(before(0)), (0, 0));
        assert_eq!(seconds(before(1)), (-1, 999_999_999));
        assert_eq!(seconds(before(2_000_000_000)), (-2, 0));
        assert_eq!(seconds(UNIX_EPOCH + Duration::from_nanos(5)), (0, 5));
    }
}
