//! The place to mount at: what must hold before, what to set after, how to take the mount away.
//!
//! Every error says what is wrong and what to do about it, since whoever mounts at boot reads it in a log.

use anyhow::{Context, Result, bail};
use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The device of FUSE.
const DEVICE: &str = "/dev/fuse";
/// What the kernel reads ahead of a page fault. FUSE starts with 128 KiB.
const READ_AHEAD_KB: u32 = 1024;

/// Checks `mountpoint` and gives its real path.
pub(crate) fn check(mountpoint: &Path) -> Result<PathBuf> {
    let shown = mountpoint.display();
    let path = std::path::absolute(mountpoint)
        .with_context(|| format!("mount point {shown}: not a usable path"))?;
    // Before anything touches it: a mount whose server hangs would hang us.
    check_free(&path)?;
    let meta = fs::metadata(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            anyhow::anyhow!("mount point {shown} does not exist: create it with `mkdir -p {shown}`")
        }
        _ if error.raw_os_error() == Some(libc::ENOTCONN) => anyhow::anyhow!(
            "mount point {shown} holds a FUSE mount whose process is gone: take it away with \
             `umount -l {shown}`"
        ),
        _ => anyhow::anyhow!("mount point {shown}: {error}"),
    })?;
    if !meta.is_dir() {
        bail!("mount point {shown} is not a directory: give a directory to mount at");
    }
    let path = fs::canonicalize(&path).with_context(|| format!("mount point {shown}"))?;
    check_free(&path)?;
    Ok(path)
}

/// Checks that there is a FUSE to mount with.
pub(crate) fn check_device() -> Result<()> {
    match fs::metadata(DEVICE) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "{DEVICE} does not exist: load FUSE with `modprobe fuse`; in a container, start it with \
             `--device {DEVICE} --cap-add SYS_ADMIN`"
        ),
        Err(error) => bail!("{DEVICE}: {error}"),
    }
}

/// Fails if something is mounted exactly at `path`.
fn check_free(path: &Path) -> Result<()> {
    let mounts = fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    if let Some(busy) = mounts_at(&mounts, path) {
        let shown = path.display();
        bail!(
            "mount point {shown} is busy: {busy} is mounted there; unmount it with `umount {shown}` \
             or choose another directory"
        );
    }
    Ok(())
}

/// What is mounted at `path`: the type and source of the topmost mount, from the text of
/// `/proc/self/mountinfo` (proc(5)).
fn mounts_at(mounts: &[u8], path: &Path) -> Option<String> {
    let lines = mounts.split(|&byte| byte == b'\n');
    lines.rev().find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let at = unescape(fields.nth(4)?);
        if at != path.as_os_str() {
            return None;
        }
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let kind = String::from_utf8_lossy(fields.next()?).into_owned();
        let source = unescape(fields.next()?);
        Some(format!("{kind} from {}", source.display()))
    })
}

/// Undoes the kernel's `\040` for a space and the like.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
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

    const MOUNTS: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        30 22 0:40 / /mnt/with\\040space rw,nosuid - fuse.lumeofs 10.0.0.1:7000 rw,user_id=0\n\
        31 22 0:41 / /mnt/a rw master:3 shared:9 - tmpfs none rw\n";

    #[test]
    fn a_mount_is_found_by_its_exact_path() {
        let at = |path: &str| mounts_at(MOUNTS, Path::new(path));
        assert_eq!(
            at("/mnt/with space").as_deref(),
            Some("fuse.lumeofs from 10.0.0.1:7000")
        );
        assert_eq!(at("/mnt/a").as_deref(), Some("tmpfs from none"));
        assert_eq!(at("/mnt"), None);
        assert_eq!(at("/mnt/a/b"), None);
    }

    #[test]
    fn what_is_no_escape_stays() {
        assert_eq!(unescape(br"a\040b\"), OsString::from(r"a b\"));
        assert_eq!(unescape(br"\9zz"), OsString::from(r"\9zz"));
    }

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
