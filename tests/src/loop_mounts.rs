//! Disks in image files.

use crate::{eventually, run};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A small ext4 that is made at once.
pub const MKFS_EXT4: [&str; 6] = [
    "mkfs.ext4",
    "-q",
    "-m",
    "0",
    "-E",
    "lazy_itable_init=1,lazy_journal_init=1",
];

/// Image files that are mounted through loop devices. Unmounts them at its end: a struct that also holds their
/// directory names this first, so that it is dropped first.
#[derive(Debug, Default)]
pub struct LoopMounts(Vec<PathBuf>);

impl LoopMounts {
    /// Makes an image of so many bytes with a filesystem: `mkfs` is the command with its options.
    pub fn format(image: &Path, bytes: u64, mkfs: &[&str]) {
        let file = std::fs::File::create(image).expect("an image file");
        file.set_len(bytes).expect("a sparse file");
        run(mkfs[0], &[&mkfs[1..], &[text(image)]].concat());
    }

    /// Mounts an image, with `loop` among the options.
    pub fn mount(&mut self, image: &Path, point: &Path, options: &str) {
        std::fs::create_dir_all(point).expect("a mount point");
        run("mount", &["-o", options, text(image), text(point)]);
        self.0.push(point.to_owned());
    }

    /// Unmounts what lies at `point`, once nobody uses it.
    pub fn unmount(&mut self, point: &Path) {
        // A killed process's last reference goes a moment after the process.
        eventually("the disk is unused", Duration::from_secs(60), || {
            let done = Command::new("umount").arg(point).output();
            done.is_ok_and(|output| output.status.success())
        });
        self.0.retain(|mounted| mounted != point);
    }
}

impl Drop for LoopMounts {
    fn drop(&mut self) {
        for point in self.0.iter().rev() {
            let _ = Command::new("umount").arg("-l").arg(point).output();
        }
    }
}

/// From now on every access to the disk fails with EIO, as if it had been pulled out.
pub fn pull_out(disk: &Path) {
    // EXT4_IOC_SHUTDOWN, without flushing the journal.
    let script = "import fcntl,os,struct,sys\n\
                  disk = os.open(sys.argv[1], os.O_RDONLY)\n\
                  fcntl.ioctl(disk, 0x8004587D, struct.pack('I', 2))";
    run("python3", &["-c", script, text(disk)]);
}

/// Takes all free space of the disk; it comes back when the returned file is removed.
pub fn fill(disk: &Path) -> PathBuf {
    let hog = disk.join("hog");
    // In ever smaller steps until nothing is left: others use the disk too.
    for mib in [1024, 64, 4, 1] {
        loop {
            let end = std::fs::metadata(&hog).map_or(0, |meta| meta.len());
            let (offset, length) = (end.to_string(), format!("{mib}MiB"));
            let arguments = ["--offset", &offset, "--length", &length, text(&hog)];
            let done = Command::new("fallocate").args(arguments).output();
            if !done.is_ok_and(|output| output.status.success()) {
                break;
            }
        }
    }
    hog
}

fn text(path: &Path) -> &str {
    path.to_str().expect("an ASCII path")
}
