//! Small disks: ext4 in a file, mounted.

use crate::attempt::text;
use lumeofs_tests::{eventually, run, temporary};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A directory with disks in it.
pub(crate) struct Disks {
    directory: tempfile::TempDir,
    mounted: Vec<PathBuf>,
}

impl Disks {
    pub(crate) fn new() -> Self {
        Self {
            directory: temporary(),
            mounted: Vec::new(),
        }
    }

    /// Where a cluster may be put, with disks below it.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("cluster")
    }

    /// Makes a disk of so many MiB and mounts it at `name` below [`Disks::path`].
    pub(crate) fn add(&mut self, name: &str, mib: u64) -> PathBuf {
        let image = self.image(name);
        std::fs::File::create(&image)
            .unwrap()
            .set_len(mib << 20)
            .unwrap();
        let lazy = "lazy_itable_init=1,lazy_journal_init=1";
        run("mkfs.ext4", &["-q", "-m", "0", "-E", lazy, &text(&image)]);
        self.mount(name, "loop")
    }

    /// Mounts the disk of `name` with options.
    pub(crate) fn mount(&mut self, name: &str, options: &str) -> PathBuf {
        let point = self.path().join(name);
        std::fs::create_dir_all(&point).unwrap();
        let image = text(&self.image(name));
        run("mount", &["-o", options, &image, &text(&point)]);
        self.mounted.push(point.clone());
        point
    }

    pub(crate) fn unmount(&mut self, name: &str) {
        let point = self.path().join(name);
        // A killed process's last reference goes a moment after the process.
        eventually("the disk is unused", Duration::from_secs(10), || {
            let done = Command::new("umount").arg(&point).output();
            done.is_ok_and(|output| output.status.success())
        });
        self.mounted.retain(|mounted| *mounted != point);
    }

    fn image(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.img"))
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for point in self.mounted.iter().rev() {
            let _ = Command::new("umount").arg("-l").arg(point).output();
        }
    }
}

/// From now on every access to the disk fails with EIO, as if it had been pulled out.
pub(crate) fn pull_out(disk: &Path) {
    // EXT4_IOC_SHUTDOWN, without flushing the journal.
    let script = "import fcntl,os,struct,sys\n\
                  disk = os.open(sys.argv[1], os.O_RDONLY)\n\
                  fcntl.ioctl(disk, 0x8004587D, struct.pack('I', 2))";
    run("python3", &["-c", script, &text(disk)]);
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
