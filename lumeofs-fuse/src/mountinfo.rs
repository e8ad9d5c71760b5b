//! What is mounted where, as the kernel lists it in `/proc/self/mountinfo` (proc(5)). Reading it asks no filesystem,
//! so it never hangs.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// The type that our mounts are shown with.
const TYPE: &str = "fuse.lumeofs";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// `MAJOR:MINOR` of its filesystem.
    pub(crate) device: String,
    kind: String,
    source: OsString,
    /// Options of the filesystem, as the kernel keeps them.
    options: String,
}

impl Entry {
    /// The topmost mount exactly at `path`.
    pub(crate) fn top_at(path: &Path) -> io::Result<Option<Self>> {
        Ok(Self::find(&fs::read("/proc/self/mountinfo")?, path))
    }

    fn find(mounts: &[u8], path: &Path) -> Option<Self> {
        let lines = mounts.split(|&byte| byte == b'\n');
        lines.rev().find_map(|line| Self::at(line, path))
    }

    /// What a line says, if it is about `path`.
    fn at(line: &[u8], path: &Path) -> Option<Self> {
        let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
        let mut fields = line.split(|&byte| byte == b' ');
        let device = text(fields.nth(2)?);
        if unescape(fields.nth(1)?) != path.as_os_str() {
            return None;
        }
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        Some(Self {
            device,
            kind: text(fields.next()?),
            source: unescape(fields.next()?),
            options: text(fields.next()?),
        })
    }

    /// Whether it is a mount of this program.
    pub(crate) fn is_ours(&self) -> bool {
        self.kind == TYPE
    }

    /// Whether its filesystem has an option.
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|has| has == option)
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", self.kind, self.source.display())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        29 22 0:39 / /mnt/with\\040space rw - tmpfs none rw\n\
        30 22 0:40 / /mnt/with\\040space rw,nosuid - fuse.lumeofs 10.0.0.1:7000:/x rw,user_id=0,allow_other\n\
        31 22 0:41 / /mnt/a rw master:3 shared:9 - tmpfs none rw\n";

    #[test]
    fn the_topmost_mount_is_found_by_its_exact_path() {
        let at = |path: &str| Entry::find(MOUNTS, Path::new(path));
        let ours = at("/mnt/with space").unwrap();
        assert_eq!(ours.to_string(), "fuse.lumeofs from 10.0.0.1:7000:/x");
        assert_eq!(ours.device, "0:40");
        assert!(ours.is_ours() && ours.has("allow_other") && !ours.has("allow"));
        let other = at("/mnt/a").unwrap();
        assert_eq!(other.to_string(), "tmpfs from none");
        assert!(!other.is_ours());
        assert_eq!(at("/mnt"), None);
        assert_eq!(at("/mnt/a/b"), None);
    }

    #[test]
    fn what_is_no_escape_stays() {
        assert_eq!(unescape(br"a\040b\"), OsString::from(r"a b\"));
        assert_eq!(unescape(br"\9zz"), OsString::from(r"\9zz"));
    }
}
