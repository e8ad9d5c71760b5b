//! Where a mount in the background logs.

use anyhow::{Context as _, bail};
use rustix::fs::OFlags;
use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

const FOR_ROOT: &str = "/var/log/lumeofs-mount.log";

/// Opens the log that was named, or the default one.
pub(super) fn open(named: Option<&PathBuf>) -> anyhow::Result<(PathBuf, File)> {
    let user = rustix::process::geteuid();
    let path = match named {
        Some(named) => named.clone(),
        None if user.is_root() => FOR_ROOT.into(),
        // mount(8) passes no environment on, so that nothing better is known.
        None => format!("/tmp/lumeofs-mount-{}.log", user.as_raw()).into(),
    };
    let mut options = File::options();
    options.create(true).append(true);
    let shared = named.is_none() && !user.is_root();
    if shared {
        // Anybody may have put something there: a link to follow, or a FIFO to wait at.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        options.mode(0o600).custom_flags(flags.bits().cast_signed());
    }
    let log = options
        .open(&path)
        .with_context(|| format!("open log {}", path.display()))?;
    let found = log.metadata()?;
    if shared && (found.uid() != user.as_raw() || !found.is_file()) {
        bail!(
            "{} is no file of this user: name another log with --log FILE or -o log=FILE",
            path.display()
        );
    }
    Ok((path, log))
}
