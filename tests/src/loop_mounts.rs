//! Disks in image files.

use crate::{eventually, run};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

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

fn text(path: &Path) -> &str {
    path.to_str().expect("an ASCII path")
}
