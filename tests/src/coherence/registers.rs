//! Things of a filesystem that have one value at a time and need no open file: for histories that
//! [`check_linear`](super::check_linear) explains.

use super::look;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::{Errno, Result};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// A value that nobody has written before; never 0.
pub fn unique_value() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Where the symbolic link of this name points: to a value, or 0 if there is no such name.
///
/// # Errors
///
/// Those of `readlink(2)` but ENOENT.
pub fn read_name(path: &Path) -> Result<u64> {
    match rustix::fs::readlink(path, Vec::new()) {
        Ok(target) => {
            let value = target.to_str().ok().and_then(|text| text.parse().ok());
            Ok(value.unwrap_or_else(|| panic!("{target:?} is no value")))
        }
        Err(Errno::NOENT) => Ok(0),
        Err(errno) => Err(errno),
    }
}

/// Lets the name be a symbolic link to a value, by a rename of one called `new`, which nobody else uses.
///
/// # Errors
///
/// Those of `symlink(2)` and `rename(2)`.
pub fn write_name(path: &Path, new: &Path, value: u64) -> Result<()> {
    rustix::fs::symlink(value.to_string(), new)?;
    rustix::fs::rename(new, path)
}

/// Modification time in whole seconds.
///
/// # Errors
///
/// Those of `statx(2)`.
pub fn read_time(path: &Path) -> Result<u64> {
    look::mtime(path).map(|(seconds, _)| seconds.cast_unsigned())
}

/// Sets the modification time, in seconds.
///
/// # Errors
///
/// Those of `utimensat(2)`.
pub fn write_time(path: &Path, seconds: u64) -> Result<()> {
    let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time(0, UTIME_OMIT),
        last_modification: time(seconds.cast_signed(), 0),
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}
