//! Disks as data: the trait through which every byte reaches storage.
//!
//! There is a real form ([`os::OsDisk`]) and a simulated one ([`sim::SimDisk`]) that can lose, tear
//! and reorder whatever was not synced, so that crash safety is tested and not hoped for;
//! [`scratch::ScratchDisk`] is for looking at a disk without changing it. All calls block. An error of a sync is final for the file: whoever sees one must stop using it.

pub mod os;
pub mod scratch;
pub mod sim;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a file is opened. It is always opened for reading and, unless the disk is read-only, writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenMode {
    /// Create the file if it is missing. The caller syncs the directory.
    pub create: bool,
    /// Bypass the page cache. Offsets, lengths and addresses must then be multiples of
    /// [`crate::limits::BLOCK_SIZE`]. Where the filesystem cannot, the page cache is used.
    pub direct: bool,
    /// Each write returns only when it is durable.
    pub dsync: bool,
}

/// A directory tree on one disk.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a directory and its missing parents.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Renames a file over `to`. Durable after [`Disk::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable after [`Disk::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes creations, renames and removals in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Bytes in all and bytes free of the filesystem that holds `path`.
    fn space(&self, path: &Path) -> io::Result<(u64, u64)>;
}

/// An open file. Reads and writes are positional and may run in parallel.
#[allow(
    clippy::len_without_is_empty,
    reason = "the size of a file, not of a collection"
)]
pub trait DiskFile: Send + Sync {
    /// Reads until `buf` is full; an end of file before that is `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf`. Visible to reads at once, durable after [`DiskFile::sync`].
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes all earlier writes durable, and the size.
    fn sync(&self) -> io::Result<()>;
    /// Size in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Sets the size; new bytes read as zero.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves space for a range, growing the file to its end. The range reads as zero where it was
    /// never written. Fails with `StorageFull` rather than later in a write.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Says that a range will probably be read soon. Whoever can fetches it into the page cache meanwhile.
    fn will_read(&self, _offset: u64, _len: u64) {}
}
