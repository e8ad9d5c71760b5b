//! The place to mount at: what must hold before, what to set after, how to take the mount away.
//!
//! Every error says what is wrong and what to do about it, since whoever mounts at boot reads it in a log.

use crate::mountinfo::Entry;
use anyhow::{Context, Result, bail};
use std::ffi::CString;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

/// The device of FUSE.
const DEVICE: &str = "/dev/fuse";
/// What the kernel reads ahead of a page fault. FUSE starts with 128 KiB.
const READ_AHEAD_KB: u32 = 1024;
/// How long a mount that may be dead is waited for. One that is dead answers as soon as its process has ended, which
/// takes a moment after a kill.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// Mounts upon each other that are taken away.
const STACKED_MOST: u32 = 16;

/// Checks `mountpoint` and gives its real path.
pub(crate) fn check(mountpoint: &Path) -> Result<PathBuf> {
    let shown = mountpoint.display();
    let path = std::path::absolute(mountpoint)
        .with_context(|| format!("mount point {shown}: not a usable path"))?;
    let explain = |error: io::Error| match error.kind() {
        ErrorKind::NotFound => {
            anyhow::anyhow!("mount point {shown} does not exist: create it with `mkdir -p {shown}`")
        }
        _ if error.raw_os_error() == Some(libc::ENOTCONN) => anyhow::anyhow!(
            "mount point {shown} is in a FUSE mount whose process is gone: take that away with `umount -l`"
        ),
        _ => anyhow::anyhow!("mount point {shown}: {error}"),
    };
    // Before anything touches it: a mount whose server hangs would hang us. To find where symlinks lead asks nothing of
    // what is mounted there.
    check_free(&path)?;
    let path = fs::canonicalize(&path).map_err(explain)?;
    check_free(&path)?;
    if !fs::metadata(&path).map_err(explain)?.is_dir() {
        bail!("mount point {shown} is not a directory: give a directory to mount at");
    }
    Ok(path)
}

/// Checks that there is a FUSE to mount with.
pub(crate) fn check_device() -> Result<()> {
    match fs::File::options().read(true).write(true).open(DEVICE) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "{DEVICE} does not exist: load FUSE with `modprobe fuse`; in a container, start it with \
             `--device {DEVICE} --cap-add SYS_ADMIN`"
        ),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => bail!(
            "{DEVICE}: {error}: run as root, or let everybody mount with `chmod 666 {DEVICE}`, as most systems have it"
        ),
        Err(error) => bail!("{DEVICE}: {error}"),
    }
}

/// Fails if something is mounted exactly at `path`. A mount of ours whose process is gone is taken away: nobody can
/// use it, and whoever mounts again wants it back.
fn check_free(path: &Path) -> Result<()> {
    let shown = path.display();
    // Mounts may be stacked, and more may be made meanwhile.
    for _ in 0..STACKED_MOST {
        let Some(busy) = Entry::top_at(path).context("/proc/self/mountinfo")? else {
            return Ok(());
        };
        if !(busy.is_ours() && is_dead(path)) {
            bail!(
                "mount point {shown} is busy: {busy} is mounted there; unmount it with `umount {shown}` \
                 or choose another directory"
            );
        }
        tracing::info!("{busy} at {shown} has lost its process: taking it away");
        take_away_dead(path)
            .with_context(|| format!("{busy} at {shown} has lost its process: unmount it"))?;
    }
    bail!("more than {STACKED_MOST} dead mounts at {shown}: unmount them with `umount -l {shown}`")
}

/// Whether a FUSE mount has no process any more. One that does not answer may have one: it is not dead.
pub(crate) fn is_dead(path: &Path) -> bool {
    let (answer, answered) = channel();
    let path = path.to_owned();
    // A thread, since a stopped process would keep it waiting.
    let asking = std::thread::Builder::new().spawn(move || {
        // Fails only if nobody waits any more.
        let _ = answer.send(fs::metadata(path));
    });
    if asking.is_err() {
        return false;
    }
    match answered.recv_timeout(ANSWER_PATIENCE) {
        Ok(Err(error)) => matches!(
            error.raw_os_error(),
            // The second: it ended while it was asked.
            Some(libc::ENOTCONN | libc::ECONNABORTED)
        ),
        _ => false,
    }
}

/// Takes a mount without a process out of the tree.
fn take_away_dead(path: &Path) -> Result<()> {
    match unmount(path, true) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        result => return Ok(result?),
    }
    // An ordinary user's own mounts.
    let output = Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(path)
        .output()
        .context("fusermount3")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Lets the kernel read more ahead of page faults (mmap, exec). Best effort: only root may, and it is only
/// about speed.
pub(crate) fn raise_read_ahead(mountpoint: &Path) {
    let written = fs::metadata(mountpoint).and_then(|meta| {
        let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
        fs::write(
            format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"),
            READ_AHEAD_KB.to_string(),
        )
    });
    if let Err(error) = written {
        tracing::debug!(%error, "read-ahead stays at the kernel's default");
    }
}

/// Unmounts; `detach` also works while the mount is in use and lets its last user end it. Something
/// that is not mounted any more is unmounted.
pub(crate) fn unmount(mountpoint: &Path, detach: bool) -> io::Result<()> {
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    let flags = libc::UMOUNT_NOFOLLOW | if detach { libc::MNT_DETACH } else { 0 };
    // SAFETY: `path` is a valid C string that outlives the call.
    #[allow(
        unsafe_code,
        reason = "rustix has no umount without a feature that nothing else needs"
    )]
    let result = unsafe { libc::umount2(path.as_ptr(), flags) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL) => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_mount_point_is_named_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let text = |path: &Path| format!("{:#}", check(path).unwrap_err());
        let missing = dir.path().join("missing");
        assert!(text(&missing).contains("mkdir -p"), "{}", text(&missing));
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(text(&file).contains("not a directory"), "{}", text(&file));
        let busy = text(Path::new("/proc"));
        assert!(
            busy.contains("busy") && busy.contains("umount /proc"),
            "{busy}"
        );
        assert!(check(dir.path()).is_ok());
    }
}
