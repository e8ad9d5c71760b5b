//! fio as a load that verifies itself.

use std::path::Path;
use std::process::{Command, Stdio};

/// Random writes that are synced now and then, of `size` each by so many jobs, then a verification of all. What it
/// writes is the same in every run, so that a later one can verify it with `--verify_only`.
pub fn fio_job(directory: &Path, size: &str, jobs: u32) -> Command {
    let mut command = Command::new("fio");
    command
        .args(["--name=random", "--rw=randwrite", "--bs=4k-64k"])
        .args(["--fsync=32", "--direct=1"])
        .args([format!("--size={size}"), format!("--numjobs={jobs}")])
        .args(["--verify=crc32c", "--verify_fatal=1"])
        .args(["--verify_state_save=0", "--group_reporting"])
        .arg(format!("--directory={}", directory.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}
