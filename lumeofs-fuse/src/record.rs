//! What a mount was asked for, kept where a remount finds it.
//!
//! mount(8) hands all of fstab's options to a remount, not only those that change. The kernel knows some of them; the
//! mount keeps the others until it ends, and only with this note can a remount tell those that would change.
//!
//! It is a file in `/run` named after the device of the mount: the process's number, then the options.

use std::fs;
use std::path::PathBuf;

/// Where the notes are.
const DIRECTORY: &str = "/run/lumeofs";

/// The note of a mount of this process.
pub(crate) struct Record(PathBuf);

impl Record {
    /// Writes it. `None` if that is not possible, as for ordinary users: then a remount cannot compare.
    pub(crate) fn write(device: &str, options: &str) -> Option<Self> {
        let file = path(device);
        let text = format!("{}\n{options}\n", std::process::id());
        let written = fs::create_dir_all(DIRECTORY).and_then(|()| fs::write(&file, text));
        match written {
            Ok(()) => Some(Self(file)),
            Err(error) => {
                tracing::debug!(%error, "no note of the options in {DIRECTORY}");
                None
            }
        }
    }

    /// The options of a mount. A note of a process that is gone is about an earlier mount.
    pub(crate) fn read(device: &str) -> Option<String> {
        let text = fs::read_to_string(path(device)).ok()?;
        let (pid, options) = text.split_once('\n')?;
        let alive = fs::exists(format!("/proc/{pid}")).unwrap_or(false);
        alive.then(|| options.trim_end().to_owned())
    }

    /// Takes it away, unless a later mount with the same device has its own there.
    pub(crate) fn remove(self) {
        let own = format!("{}\n", std::process::id());
        if fs::read_to_string(&self.0).is_ok_and(|text| text.starts_with(&own)) {
            // One that stays is not believed once this process has ended.
            let _ = fs::remove_file(&self.0);
        }
    }
}

fn path(device: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(format!("mount-{device}"))
}
