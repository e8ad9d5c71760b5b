//! Small disks: ext4 in a file, mounted.

use lumeofs_tests::{LoopMounts, MKFS_EXT4, temporary};
use std::path::PathBuf;

/// A directory with disks in it.
pub(crate) struct Disks {
    mounts: LoopMounts,
    directory: tempfile::TempDir,
}

impl Disks {
    pub(crate) fn new() -> Self {
        Self {
            mounts: LoopMounts::default(),
            directory: temporary(),
        }
    }

    /// Where a cluster may be put, with disks below it.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("cluster")
    }

    /// Makes a disk of so many MiB and mounts it at `name` below [`Disks::path`].
    pub(crate) fn add(&mut self, name: &str, mib: u64) -> PathBuf {
        LoopMounts::format(&self.image(name), mib << 20, &MKFS_EXT4);
        self.mount(name, "loop")
    }

    /// Mounts the disk of `name` with options.
    pub(crate) fn mount(&mut self, name: &str, options: &str) -> PathBuf {
        let point = self.path().join(name);
        self.mounts.mount(&self.image(name), &point, options);
        point
    }

    pub(crate) fn unmount(&mut self, name: &str) {
        self.mounts.unmount(&self.path().join(name));
    }

    fn image(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.img"))
    }
}
