//! Small disks: ext4 in a file, mounted.

use crate::attempt::text;
use lumeofs_tests::{LoopMounts, temporary};
use std::path::{Path, PathBuf};
use std::process::Command;

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
        let lazy = "lazy_itable_init=1,lazy_journal_init=1";
        let mkfs = ["mkfs.ext4", "-q", "-m", "0", "-E", lazy];
        LoopMounts::format(&self.image(name), mib << 20, &mkfs);
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

/// Takes all free space of the disk; it comes back when the returned file is removed.
pub(crate) fn fill(disk: &Path) -> PathBuf {
    let hog = disk.join("hog");
    // In ever smaller steps until nothing is left: others use the disk too.
    for mib in [1024, 64, 4, 1] {
        loop {
            let end = std::fs::metadata(&hog).map_or(0, |meta| meta.len());
            let (offset, length) = (end.to_string(), format!("{mib}MiB"));
            let path = text(&hog);
            let arguments = ["--offset", &offset, "--length", &length, &path];
            let done = Command::new("fallocate").args(arguments).output().unwrap();
            if !done.status.success() {
                break;
            }
        }
    }
    hog
}
