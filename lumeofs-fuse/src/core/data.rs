//! Open files and their bytes.

use super::Core;
use crate::answer::Opened;
use fuser::WriteFlags;
use lumeofs_base::{Code, FsError, FsResult, InodeId};
use lumeofs_client::{Context, Range, WriteMode};
use std::cell::Cell;

thread_local! {
    /// The buffer of this thread's last read, kept so that a read neither allocates nor clears memory.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes for a reply.
pub(crate) struct ReadBuffer {
    bytes: Vec<u8>,
    len: usize,
    /// Goes back to the thread when it is dropped.
    reused: bool,
}

impl ReadBuffer {
    /// A buffer of `size` bytes of unspecified contents.
    fn of_size(size: usize) -> Self {
        let mut bytes = BUFFER.take();
        if bytes.len() < size {
            bytes.resize(size, 0);
        }
        Self {
            bytes,
            len: size,
            reused: true,
        }
    }

    /// These bytes.
    pub(crate) fn owned(bytes: Vec<u8>) -> Self {
        Self {
            len: bytes.len(),
            bytes,
            reused: false,
        }
    }

    /// What is in it.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for ReadBuffer {
    fn drop(&mut self) {
        if self.reused {
            BUFFER.set(std::mem::take(&mut self.bytes));
        }
    }
}

/// A WRITE without its data.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteRequest {
    /// Where the kernel thinks that it goes.
    pub(crate) offset: u64,
    /// Flags of the open file at this moment.
    pub(crate) open_flags: i32,
    /// Flags of the write.
    pub(crate) flags: WriteFlags,
    /// The thread that writes.
    pub(crate) tid: u32,
}

impl WriteRequest {
    /// Whether it comes from the page cache, that is from mmap: in nobody's name, long after the store.
    pub(crate) fn is_from_page_cache(&self) -> bool {
        self.flags.contains(WriteFlags::FUSE_WRITE_CACHE)
    }

    /// O_APPEND is looked up in each write: `F_SETFL` may set it after the open, and the kernel's idea of the end
    /// may be stale. A page of the page cache has its place, whatever the flags of the file it came through.
    ///
    /// For a file that is opened for direct I/O the kernel leaves it to us to take suid and sgid away. It would say
    /// so (`KILL_SUIDGID`) only under a capability (HANDLE_KILLPRIV_V2) whose other half, the same for truncate and
    /// chown, fuser does not hand on. So anybody but root counts as one without CAP_FSETID.
    fn mode(&self, uid: u32) -> WriteMode {
        WriteMode {
            append: self.open_flags & libc::O_APPEND != 0 && !self.is_from_page_cache(),
            // O_SYNC contains the bit of O_DSYNC.
            durable: self.open_flags & libc::O_DSYNC != 0,
            direct: self.open_flags & libc::O_DIRECT != 0 && !self.is_from_page_cache(),
            clear_suid: self.flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID)
                || (uid != 0 && !self.is_from_page_cache()),
        }
    }
}

impl Core {
    /// Opens a file. With O_TRUNC, which the kernel leaves to us, it is empty afterwards. The servers take suid and sgid away as for
    /// any other truncation.
    pub(crate) fn open(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        tid: u32,
        flags: i32,
    ) -> FsResult<Opened> {
        let truncate = flags & libc::O_TRUNC != 0;
        if truncate {
            self.drop_sgid(cx, ino, tid)?;
        }
        self.backend.open(cx, ino, truncate)?;
        Ok(Opened::File(self.new_handle(flags)))
    }

    /// Never waits.
    pub(crate) fn release(&self, ino: InodeId, handle: u64) {
        self.backend.release_locks(handle);
        self.backend.release(ino);
    }

    pub(crate) fn read(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        offset: u64,
        size: u32,
        for_cache: bool,
    ) -> FsResult<ReadBuffer> {
        let _pages = for_cache.then(|| self.backend.page_request(ino));
        let mut buffer = ReadBuffer::of_size(size as usize);
        let len = self
            .backend
            .read(cx, ino, offset, &mut buffer.bytes[..size as usize])?;
        buffer.len = len;
        self.stats.add_read(len);
        Ok(buffer)
    }

    pub(crate) fn write(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        request: WriteRequest,
        data: &[u8],
    ) -> FsResult<u32> {
        let _pages = request
            .is_from_page_cache()
            .then(|| self.backend.page_request(ino));
        let mode = request.mode(cx.caller.uid);
        if mode.clear_suid && !data.is_empty() {
            self.drop_sgid_if_known(cx, ino, request.tid)?;
        }
        self.backend.write(cx, ino, request.offset, data, mode)?;
        self.stats.add_written(data.len());
        Ok(data.len() as u32)
    }

    /// Whether a flush has nothing to do. Never waits.
    pub(crate) fn is_flushed(&self, ino: InodeId) -> bool {
        self.backend.is_flushed(ino)
    }

    pub(crate) fn flush(&self, cx: Context<'_>, ino: InodeId) -> FsResult<()> {
        self.backend.flush(cx, ino)
    }

    pub(crate) fn fsync(&self, cx: Context<'_>, ino: InodeId, data_only: bool) -> FsResult<()> {
        self.backend.fsync(cx, ino, data_only)
    }

    pub(crate) fn fallocate(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        tid: u32,
        (offset, len): (u64, u64),
        mode: i32,
    ) -> FsResult<()> {
        let range = range(mode)?;
        self.drop_sgid(cx, ino, tid)?;
        self.backend.allocate(cx, ino, offset, len, range)
    }

    /// From a place in a file to one in a file that is open under `handle`. Never from or to the page cache: the kernel writes its pages of the source first, and drops those of the range.
    #[expect(
        clippy::too_many_arguments,
        reason = "the request has that many fields"
    )]
    pub(crate) fn copy_file_range(
        &self,
        cx: Context<'_>,
        tid: u32,
        from: (InodeId, u64),
        to: (InodeId, u64),
        handle: u64,
        len: u64,
        flags: u64,
    ) -> FsResult<u64> {
        if flags != 0 {
            let what = format!("copy_file_range with flags {flags:#x}");
            return Err(FsError::new(Code::Invalid, what));
        }
        self.drop_sgid(cx, to.0, tid)?;
        // As for a write: only root keeps suid.
        let clear_suid = cx.caller.uid != 0;
        let copied = self.backend.copy_range(cx, from, to, len, clear_suid)?;
        if Self::is_durable(handle) {
            self.backend.fsync(cx, to.0, false)?;
        }
        self.stats.add_copied(copied);
        if copied > 0 {
            // The request does not tell how the source was opened.
            self.accessed(from.0, false, 0);
        }
        Ok(copied)
    }

    /// The kernel asks only for SEEK_DATA and SEEK_HOLE.
    pub(crate) fn lseek(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        offset: i64,
        whence: i32,
    ) -> FsResult<i64> {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            other => {
                return Err(FsError::new(
                    Code::Invalid,
                    format!("lseek with whence {other}"),
                ));
            }
        };
        let offset = u64::try_from(offset)
            .map_err(|_| FsError::new(Code::NoSuchOffset, format!("lseek to offset {offset}")))?;
        self.backend
            .seek(cx, ino, offset, hole)
            .map(u64::cast_signed)
    }
}

/// What a mode of fallocate(2) does.
fn range(mode: i32) -> FsResult<Range> {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_KEEP: i32 = ZERO | KEEP;
    match mode {
        0 => Ok(Range::Allocate { keep_size: false }),
        KEEP => Ok(Range::Allocate { keep_size: true }),
        PUNCH => Ok(Range::Punch),
        ZERO => Ok(Range::Zero { keep_size: false }),
        ZERO_KEEP => Ok(Range::Zero { keep_size: true }),
        other => Err(FsError::new(
            Code::Unsupported,
            format!("fallocate with mode {other:#x}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(open_flags: i32, flags: WriteFlags) -> WriteRequest {
        WriteRequest {
            offset: 0,
            open_flags,
            flags,
            tid: 0,
        }
    }

    #[test]
    fn flags_of_the_open_file_decide_how_a_write_goes() {
        let none = WriteFlags::empty();
        assert_eq!(request(libc::O_WRONLY, none).mode(0), WriteMode::default());
        assert!(request(libc::O_APPEND, none).mode(0).append);
        assert!(request(libc::O_SYNC, none).mode(0).durable);
        assert!(request(libc::O_DSYNC, none).mode(0).durable);
        assert!(request(libc::O_DIRECT, none).mode(0).direct);
    }

    #[test]
    fn only_root_keeps_suid_when_it_writes() {
        let kill = WriteFlags::FUSE_WRITE_KILL_SUIDGID;
        assert!(!request(0, WriteFlags::empty()).mode(0).clear_suid);
        assert!(request(0, WriteFlags::empty()).mode(1000).clear_suid);
        assert!(request(0, kill).mode(0).clear_suid);
    }

    #[test]
    fn a_page_of_the_page_cache_is_written_where_it_belongs() {
        let page = request(libc::O_APPEND, WriteFlags::FUSE_WRITE_CACHE);
        assert_eq!(page.mode(1000), WriteMode::default());
    }

    #[test]
    fn fallocate_modes_are_known_or_unsupported() {
        assert_eq!(range(0), Ok(Range::Allocate { keep_size: false }));
        assert_eq!(
            range(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
            Ok(Range::Punch)
        );
        assert_eq!(
            range(libc::FALLOC_FL_ZERO_RANGE),
            Ok(Range::Zero { keep_size: false })
        );
        for mode in [libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_PUNCH_HOLE] {
            assert_eq!(range(mode).unwrap_err().code, Code::Unsupported);
        }
    }

    #[test]
    fn a_read_buffer_is_used_again_and_shows_only_its_own_bytes() {
        let mut buffer = ReadBuffer::of_size(100);
        buffer.bytes[..100].fill(7);
        let place = buffer.bytes.as_ptr();
        drop(buffer);
        let buffer = ReadBuffer::of_size(10);
        assert_eq!(buffer.bytes().len(), 10);
        assert_eq!(buffer.bytes.as_ptr(), place);
        assert_eq!(ReadBuffer::owned(b"x".to_vec()).bytes(), b"x");
    }
}
