//! How a mount ends, also when nobody answers; and what a remount has changed that the kernel does not do itself.
//!
//! A mount is over when the kernel has ended the FUSE connection: its last user has gone after an unmount, or
//! somebody cut it off (`umount -f`). Operations that wait for servers do not notice, and the threads that run them
//! would keep the process for as long as the outage lasts.
//!
//! A mount that was only taken out of the tree goes on for those who use it. But nobody finds it any more who
//! could end it, and its users may be waiting for servers. So it waits out no long outage, and ends under its users
//! when there was no cluster for [`LEAVE_PATIENCE`].
//!
//! Looking costs two system calls twice a second. Waiting in `poll(2)` on `/dev/fuse` would wake the waiter with
//! every request.

use crate::atime::{AtimeMode, AtimeRule};
use crate::backend::Backend;
use lumeofs_base::limits::LEAVE_PATIENCE;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// Where the kernel shows what is mounted.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Looks whether a mount is over or ought to be.
pub(crate) struct Watch {
    /// The connection. It must not outlive the session by much: as long as it is open, the kernel waits for answers.
    connection: OwnedFd,
    /// Reports changes of what is mounted, once they happened. `None` where they cannot be seen.
    mounts: Option<File>,
    /// The device of the mount as it is shown there; `None` before it was seen.
    device: Option<String>,
    detached: bool,
    /// What a remount changes.
    atime: Arc<AtimeMode>,
    /// The flags of the mount when they were looked at last.
    flags: Option<String>,
}

/// What is to be done about a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    GoOn,
    /// Its operations must end: nobody waits for them.
    Over,
    /// It must end although somebody uses it.
    GiveUp,
}

impl Watch {
    /// Watches the mount whose connection this is.
    pub(crate) fn new(connection: OwnedFd, atime: Arc<AtimeMode>) -> Self {
        Self {
            connection,
            mounts: File::open(MOUNTS).ok(),
            device: None,
            detached: false,
            atime,
            flags: None,
        }
    }

    /// The mount answers, so that its device can be asked for.
    pub(crate) fn mounted_at(&mut self, mountpoint: &Path) {
        let device = fs::metadata(mountpoint).map(|meta| meta.dev()).ok();
        self.device =
            device.map(|device| format!("{}:{}", libc::major(device), libc::minor(device)));
        self.flags = self.flags_now();
    }

    /// `MAJOR:MINOR` of the mount, once it was seen.
    pub(crate) fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// Looks once.
    pub(crate) fn look(&mut self, backend: &dyn Backend) -> Verdict {
        if has_event(&self.connection) {
            return Verdict::Over;
        }
        if self.mounts.as_ref().is_some_and(has_event) {
            let was_detached = self.detached;
            self.detached = self.is_detached();
            let flags = self.flags_now();
            if let Some(flags) = flags.filter(|flags| self.flags.as_ref() != Some(flags)) {
                self.atime.set(AtimeRule::shown(&flags));
                self.flags = Some(flags);
            }
            if self.detached && !was_detached {
                tracing::info!("the mount was taken out of the tree; it ends with its last user");
                backend.leave();
            }
        }
        if self.detached && backend.silence() >= LEAVE_PATIENCE {
            return Verdict::GiveUp;
        }
        Verdict::GoOn
    }

    /// The flags of the mount as they are shown, of the first one if there are several of its device.
    fn flags_now(&self) -> Option<String> {
        let mounts = fs::read(MOUNTS).ok()?;
        let lines = mounts.split(|&byte| byte == b'\n');
        let mut fields = lines.map(|line| line.split(|&byte| byte == b' ').skip(2));
        let device = self.device.as_ref()?.as_bytes();
        let mut fields =
            fields.find_map(|mut fields| (fields.next()? == device).then_some(fields))?;
        fields
            .nth(2)
            .map(|flags| String::from_utf8_lossy(flags).into_owned())
    }

    /// Whether this process sees the mount nowhere. What other mount namespaces hold counts as a user.
    fn is_detached(&self) -> bool {
        let mounts = fs::read(MOUNTS).unwrap_or_default();
        let Some(device) = self.device.as_ref().filter(|_| !mounts.is_empty()) else {
            return false;
        };
        !is_shown(&mounts, device)
    }
}

/// Whether a device is among the mounts in the text of `/proc/self/mountinfo` (proc(5)).
fn is_shown(mounts: &[u8], device: &str) -> bool {
    let lines = mounts.split(|&byte| byte == b'\n');
    let mut devices = lines.filter_map(|line| line.split(|&byte| byte == b' ').nth(2));
    devices.any(|shown| shown == device.as_bytes())
}

/// Whether the kernel reports an error or, for the list of mounts, a change. Does not wait.
fn has_event(file: &impl AsRawFd) -> bool {
    let mut poll = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLPRI,
        revents: 0,
    };
    // SAFETY: it is one valid structure, and the descriptor is open as long as `file` is borrowed.
    #[allow(
        unsafe_code,
        reason = "rustix has no poll without a feature that nothing else needs"
    )]
    let count = unsafe { libc::poll(&raw mut poll, 1, 0) };
    if count < 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "poll");
    }
    count > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_device() {
        let mounts =
            b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:40 / /mnt rw - fuse.lumeofs a rw\n";
        assert!(is_shown(mounts, "0:40") && is_shown(mounts, "8:1"));
        assert!(!is_shown(mounts, "0:4") && !is_shown(mounts, "22"));
    }
}
