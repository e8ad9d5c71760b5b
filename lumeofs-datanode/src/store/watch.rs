//! How long the disk has been at what it was asked for.
//!
//! A disk that fails says so; one that hangs keeps its callers waiting and says nothing. So every call
//! that may wait for it passes through here, whoever makes it, the log included.

use lumeofs_base::clock::Clock;
use lumeofs_base::disk::{Disk, DiskFile, OpenMode};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The calls that are under way.
pub(super) struct Watch {
    clock: Arc<dyn Clock>,
    calls: Mutex<Calls>,
}

#[derive(Default)]
struct Calls {
    next: u64,
    /// When each began, in that order.
    begun: BTreeMap<u64, Duration>,
}

impl Watch {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        let calls = Mutex::default();
        Arc::new(Self { clock, calls })
    }

    /// How long the oldest call is under way; `None` if there is none.
    pub(super) fn oldest(&self) -> Option<Duration> {
        let begun = *self.calls.lock().begun.first_key_value()?.1;
        Some(self.clock.monotonic().saturating_sub(begun))
    }

    fn during<R>(&self, call: impl FnOnce() -> R) -> R {
        let now = self.clock.monotonic();
        let number = {
            let mut calls = self.calls.lock();
            calls.next += 1;
            let number = calls.next;
            calls.begun.insert(number, now);
            number
        };
        let result = call();
        self.calls.lock().begun.remove(&number);
        result
    }
}

/// A disk whose calls are watched.
pub(super) struct WatchedDisk {
    disk: Arc<dyn Disk>,
    watch: Arc<Watch>,
}

impl WatchedDisk {
    pub(super) fn new(disk: Arc<dyn Disk>, watch: Arc<Watch>) -> Arc<Self> {
        Arc::new(Self { disk, watch })
    }
}

impl Disk for WatchedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.watch.during(|| self.disk.open(path, mode))?;
        let watch = self.watch.clone();
        Ok(Arc::new(WatchedFile { file, watch }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.watch.during(|| self.disk.create_dir_all(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.watch.during(|| self.disk.list(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.watch.during(|| self.disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.watch.during(|| self.disk.remove(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.watch.during(|| self.disk.sync_dir(path))
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        // Answered from memory.
        self.disk.space(path)
    }
}

struct WatchedFile {
    file: Arc<dyn DiskFile>,
    watch: Arc<Watch>,
}

impl DiskFile for WatchedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.watch.during(|| self.file.read_exact_at(buf, offset))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.watch.during(|| self.file.write_all_at(buf, offset))
    }

    fn sync(&self) -> io::Result<()> {
        self.watch.during(|| self.file.sync())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.watch.during(|| self.file.set_len(len))
    }

    fn will_read(&self, offset: u64, len: u64) {
        self.watch.during(|| self.file.will_read(offset, len));
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.watch.during(|| self.file.allocate(offset, len))
    }
}
