//! A disk of which one kind of call can be held up, as if it hung.

use super::*;
use lumeofs_base::disk::{DiskFile, OpenMode};
use parking_lot::{Condvar, Mutex};
use std::io;
use std::path::Path;

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Allocate,
    /// Also writes that sync.
    Sync,
}

/// The simulated disk behind a gate.
#[derive(Clone)]
pub(crate) struct GateDisk {
    disk: SimDisk,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closed: Option<Call>,
    waiting: usize,
}

impl GateDisk {
    pub(crate) fn new() -> Self {
        let (disk, gate) = (SimDisk::new(), Arc::default());
        Self { disk, gate }
    }

    /// Calls of this kind do not return until [`GateDisk::open_gate`].
    pub(crate) fn close_gate(&self, call: Call) {
        self.gate.state.lock().closed = Some(call);
    }

    pub(crate) fn open_gate(&self) {
        self.gate.state.lock().closed = None;
        self.gate.changed.notify_all();
    }

    /// Returns when a call is being held up.
    pub(crate) fn wait_for_call(&self) {
        let mut state = self.gate.state.lock();
        while state.waiting == 0 {
            self.gate.changed.wait(&mut state);
        }
    }
}

impl Gate {
    fn pass(&self, call: Call) {
        let mut state = self.state.lock();
        while state.closed == Some(call) {
            state.waiting += 1;
            self.changed.notify_all();
            self.changed.wait(&mut state);
            state.waiting -= 1;
        }
    }
}

impl Disk for GateDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let (file, gate) = (self.disk.open(path, mode)?, self.gate.clone());
        let dsync = mode.dsync;
        Ok(Arc::new(GateFile { file, dsync, gate }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        self.disk.space(path)
    }
}

struct GateFile {
    file: Arc<dyn DiskFile>,
    dsync: bool,
    gate: Arc<Gate>,
}

impl DiskFile for GateFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if self.dsync {
            self.gate.pass(Call::Sync);
        }
        self.file.write_all_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.gate.pass(Call::Sync);
        self.file.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.gate.pass(Call::Allocate);
        self.file.allocate(offset, len)
    }
}
