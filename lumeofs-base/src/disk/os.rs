//! The machine's disks, below one directory.

use super::{Disk, DiskFile, OpenMode};
use crate::limits::BLOCK_SIZE;
use rustix::fs::{Advice, FallocateFlags, OFlags, fadvise};
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The filesystem of the machine. Paths are relative to `root`.
#[derive(Clone, Debug)]
pub struct OsDisk {
    root: PathBuf,
    /// Files are opened for reading only, and none is made.
    read_only: bool,
    /// That there is no direct I/O here is told once.
    told_buffered: Arc<AtomicBool>,
}

impl OsDisk {
    /// A disk whose paths start at `root`, which must exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            read_only: false,
            told_buffered: Arc::default(),
        }
    }

    /// The same for reading: its files refuse to be written, and the calls that change names are the caller's to avoid.
    pub fn read_only(root: impl Into<PathBuf>) -> Self {
        Self {
            read_only: true,
            ..Self::new(root)
        }
    }

    /// The directory that paths are relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn tell_buffered(&self) {
        if !self.told_buffered.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                dir = %self.root.display(),
                "this filesystem has no direct I/O (O_DIRECT): data goes through the page cache, which is slower"
            );
        }
    }
}

impl Disk for OsDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.root.join(path);
        let open = |flags: OFlags| {
            File::options()
                .read(true)
                .write(!self.read_only)
                .create(mode.create && !self.read_only)
                .custom_flags(flags.bits().cast_signed())
                .open(&path)
        };
        let sync = if mode.dsync {
            OFlags::DSYNC
        } else {
            OFlags::empty()
        };
        if mode.direct {
            match open(sync | OFlags::DIRECT) {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.tell_buffered(),
                opened => {
                    return Ok(Arc::new(OsFile {
                        file: opened?,
                        direct: true,
                    }));
                }
            }
        }
        Ok(Arc::new(OsFile {
            file: open(sync)?,
            direct: false,
        }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(self.root.join(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(self.root.join(path))?;
        let mut names: Vec<_> = entries
            .map(|entry| Ok(entry?.file_name().into()))
            .collect::<io::Result<_>>()?;
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(self.root.join(from), self.root.join(to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(self.root.join(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(self.root.join(path))?.sync_all()
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(self.root.join(path))?;
        Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
    }
}

struct OsFile {
    file: File,
    direct: bool,
}

impl OsFile {
    fn check_alignment(&self, buf: &[u8], offset: u64) {
        debug_assert!(
            !self.direct
                || (buf.len().is_multiple_of(BLOCK_SIZE)
                    && offset.is_multiple_of(BLOCK_SIZE as u64)
                    && (buf.as_ptr() as usize).is_multiple_of(BLOCK_SIZE)),
            "unaligned direct I/O"
        );
    }
}

impl DiskFile for OsFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.check_alignment(buf, offset);
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.check_alignment(buf, offset);
        self.file.write_all_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn will_read(&self, offset: u64, len: u64) {
        // A hint: where it cannot be followed the read itself takes longer.
        let _ = fadvise(&self.file, offset, NonZeroU64::new(len), Advice::WillNeed);
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => {
                if self.len()? < offset + len {
                    self.set_len(offset + len)?;
                }
                Ok(())
            }
            done => Ok(done?),
        }
    }
}
