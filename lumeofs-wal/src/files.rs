//! The files of a log: opened direct and dsync, so that a write that returned is durable.

use crate::format::{BLOCK, Floor, Name, SegmentHeader};
use lumeofs_base::disk::{Disk, DiskFile, OpenMode};
use lumeofs_base::limits::{BLOCK_SIZE, WAL_FILL_PIECE_BYTES};
use lumeofs_base::{AlignedBuf, FsError, FsResult};
use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file and the name that it has at the moment.
pub(crate) struct LogFile {
    pub(crate) file: Arc<dyn DiskFile>,
    path: Mutex<PathBuf>,
}

impl LogFile {
    pub(crate) fn open(disk: &Arc<dyn Disk>, path: PathBuf, create: bool) -> FsResult<Arc<Self>> {
        let mode = OpenMode {
            create,
            direct: true,
            dsync: true,
        };
        let file = disk.open(&path, mode).map_err(disk_error("open", &path))?;
        Ok(Arc::new(Self {
            file,
            path: Mutex::new(path),
        }))
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.path.lock().clone()
    }

    /// Whole blocks that the file has: they were filled with zeros or records.
    pub(crate) fn filled(&self) -> FsResult<u64> {
        let len = self
            .file
            .len()
            .map_err(disk_error("read the size of", &self.path()))?;
        Ok(len / BLOCK * BLOCK)
    }
}

/// The directory of a log and what is done to it.
pub(crate) struct LogDir {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
}

impl LogDir {
    /// Makes a spare the segment that `header` describes. Three durability points: without the
    /// first, a segment with a wrong header could appear; without the last (and the order), records
    /// could become durable in a file whose name is not.
    pub(crate) fn begin(&self, file: &LogFile, header: &SegmentHeader) -> FsResult<()> {
        let mut block = AlignedBuf::zeroed(BLOCK_SIZE);
        header.encode(&mut block);
        let path = file.path();
        file.file
            .write_all_at(&block, 0)
            .map_err(disk_error("write the header of", &path))?;
        self.rename(file, Name::Segment(header.generation))?;
        self.sync()
    }

    /// Creates an empty spare. Its name becomes durable when it turns into a segment.
    pub(crate) fn create_spare(&self, number: u64) -> FsResult<Arc<LogFile>> {
        LogFile::open(&self.disk, Name::Spare(number).path(&self.dir), true)
    }

    /// Writes `len` zeros from `zeros`, at least one piece long.
    pub(crate) fn fill(
        &self,
        file: &LogFile,
        offset: u64,
        len: u64,
        zeros: &AlignedBuf,
    ) -> FsResult<()> {
        assert!(
            len as usize <= WAL_FILL_PIECE_BYTES,
            "filled piece by piece"
        );
        let written = file.file.write_all_at(&zeros[..len as usize], offset);
        written.map_err(disk_error("prepare", &file.path()))
    }

    pub(crate) fn rename(&self, file: &LogFile, name: Name) -> FsResult<()> {
        let mut path = file.path.lock();
        let to = name.path(&self.dir);
        self.disk
            .rename(&path, &to)
            .map_err(disk_error("rename", &path))?;
        *path = to;
        Ok(())
    }

    pub(crate) fn remove(&self, file: &LogFile) -> FsResult<()> {
        let path = file.path();
        self.disk.remove(&path).map_err(disk_error("remove", &path))
    }

    pub(crate) fn sync(&self) -> FsResult<()> {
        self.disk
            .sync_dir(&self.dir)
            .map_err(disk_error("sync", &self.dir))
    }

    /// Makes the next floor durable, in the slot that the one before it does not use.
    pub(crate) fn write_floor(&self, file: &LogFile, floor: Floor) -> FsResult<()> {
        let mut block = AlignedBuf::zeroed(BLOCK_SIZE);
        floor.encode(&mut block);
        let written = file.file.write_all_at(&block, floor.counter % 2 * BLOCK);
        written.map_err(disk_error("write", &file.path()))
    }
}

/// For `map_err`: an error of the disk, with the operation and the file.
pub(crate) fn disk_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> FsError {
    let path = path.to_path_buf();
    move |error| FsError::from_disk(&error, format_args!("{operation} {}", path.display()))
}
