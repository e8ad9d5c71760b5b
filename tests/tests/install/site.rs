//! What the tests share: the helper for their time, a cluster, a place to mount at.

use lumeofs_tests::{Cluster, binary, is_mounted, run};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where mount(8) looks.
pub(crate) const HELPER: &str = "/sbin/mount.fuse.lumeofs";
/// How long something may take that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// There is one place for the helper, for one test at a time.
static TURN: Mutex<()> = Mutex::new(());

pub(crate) fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The helper for the time of a test. One that is installed on this machine is moved aside meanwhile.
pub(crate) struct Helper {
    aside: Option<PathBuf>,
    _turn: MutexGuard<'static, ()>,
}

impl Helper {
    pub(crate) fn install() -> Self {
        let turn = turn();
        let aside = fs::symlink_metadata(HELPER).is_ok().then(|| {
            let aside = PathBuf::from(format!("{HELPER}.aside"));
            fs::rename(HELPER, &aside).unwrap();
            aside
        });
        let helper = Self { aside, _turn: turn };
        symlink(binary(), HELPER).unwrap();
        helper
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = fs::remove_file(HELPER);
        if let Some(aside) = &self.aside {
            let _ = fs::rename(aside, HELPER);
        }
    }
}

/// A cluster, the helper, and a place to mount at, which is free again at the end.
pub(crate) struct Site {
    // First, so that it is unmounted first.
    point: Point,
    pub(crate) cluster: Cluster,
    _helper: Helper,
}

pub(crate) struct Point(pub(crate) PathBuf);

impl Drop for Point {
    fn drop(&mut self) {
        while is_mounted(&self.0) {
            if !Command::new("umount")
                .arg("-l")
                .arg(&self.0)
                .status()
                .is_ok_and(|s| s.success())
            {
                break;
            }
        }
    }
}

impl Site {
    pub(crate) fn start() -> Self {
        let cluster = Cluster::start_with(&["--no-mount", "--masters", "1", "--datanodes", "1"]);
        let point = cluster.scratch().join("mnt");
        fs::create_dir(&point).unwrap();
        Self {
            point: Point(point),
            cluster,
            _helper: Helper::install(),
        }
    }

    pub(crate) fn point(&self) -> &Path {
        &self.point.0
    }

    pub(crate) fn secret(&self) -> String {
        self.cluster.dir().join("secret").display().to_string()
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.cluster.scratch().join("mount.log")
    }

    /// Options that every mount of this test has.
    pub(crate) fn options(&self, more: &str) -> String {
        format!(
            "secretfile={},log={},{more}",
            self.secret(),
            self.log().display()
        )
    }

    /// `mount -t fuse.lumeofs SOURCE DIR -o …`.
    pub(crate) fn mount(&self, source: &str, more: &str) -> Output {
        let mut command = Command::new("mount");
        command
            .args(["-t", "fuse.lumeofs", source])
            .arg(self.point());
        command.args(["-o", &self.options(more)]).output().unwrap()
    }

    pub(crate) fn umount(&self) {
        run("umount", &[self.point().to_str().unwrap()]);
    }

    /// What findmnt(8) says of the mount.
    pub(crate) fn shown(&self, column: &str) -> String {
        let point = self.point().to_str().unwrap();
        run("findmnt", &["-n", "-o", column, "--mountpoint", point])
            .trim()
            .to_owned()
    }

    pub(crate) fn has(&self, option: &str) -> bool {
        self.shown("VFS-OPTIONS")
            .split(',')
            .any(|shown| shown == option)
    }

    /// Process of the mount, from the note that it keeps for remounts.
    pub(crate) fn process(&self) -> String {
        let note = format!("/run/lumeofs/mount-{}", self.shown("MAJ:MIN"));
        let text = fs::read_to_string(note).unwrap();
        text.lines().next().unwrap().to_owned()
    }
}

pub(crate) fn succeeded(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

/// The code that it failed with, and what it said.
pub(crate) fn failed(output: &Output) -> (Option<i32>, String) {
    assert!(!output.status.success(), "{output:?}");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}
