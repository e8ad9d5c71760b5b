//! Which reads set access times. The kernel leaves that to the filesystem when it is one of FUSE, and shows the options of a
//! mount without doing what they say.

use crate::options::MountOptions;
use std::sync::atomic::{AtomicU8, Ordering};

/// When a read sets the access time of what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atime {
    /// Never.
    No,
    /// If that is not after the last change, or a day old.
    Relative,
    /// Always.
    Strict,
}

/// What is in effect on a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AtimeRule {
    atime: Atime,
    /// Also for directories.
    directories: bool,
}

impl AtimeRule {
    /// What was asked for.
    pub(crate) fn of(options: &MountOptions) -> Self {
        Self {
            atime: match options.read_only {
                true => Atime::No,
                false => options.atime,
            },
            directories: options.diratime,
        }
    }

    /// What the kernel shows of a mount, in the sixth field of `/proc/self/mountinfo` (proc(5)).
    pub(crate) fn shown(flags: &str) -> Self {
        let has = |flag| flags.split(',').any(|shown| shown == flag);
        Self {
            atime: match (has("ro") || has("noatime"), has("relatime")) {
                (true, _) => Atime::No,
                (false, true) => Atime::Relative,
                (false, false) => Atime::Strict,
            },
            directories: !has("nodiratime"),
        }
    }
}

/// The rule of a mount; a remount changes it.
#[derive(Debug)]
pub(crate) struct AtimeMode(AtomicU8);

/// Bit of a rule that leaves directories out.
const NO_DIRECTORIES: u8 = 1 << 7;
/// In the order of their numbers.
const ATIMES: [Atime; 3] = [Atime::No, Atime::Relative, Atime::Strict];

impl AtimeMode {
    pub(crate) fn new(rule: AtimeRule) -> Self {
        Self(AtomicU8::new(number(rule)))
    }

    pub(crate) fn set(&self, rule: AtimeRule) {
        self.0.store(number(rule), Ordering::Relaxed);
    }

    /// Whether a read counts, and if so whether it does in any case.
    pub(crate) fn counts(&self, is_directory: bool) -> Option<bool> {
        let number = self.0.load(Ordering::Relaxed);
        let is_left_out = is_directory && number & NO_DIRECTORIES != 0;
        match ATIMES[usize::from(number & !NO_DIRECTORIES)] {
            _ if is_left_out => None,
            Atime::No => None,
            Atime::Relative => Some(false),
            Atime::Strict => Some(true),
        }
    }
}

fn number(rule: AtimeRule) -> u8 {
    rule.atime as u8
        | match rule.directories {
            true => 0,
            false => NO_DIRECTORIES,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse_options;

    #[test]
    fn what_was_asked_for_and_what_is_shown_mean_the_same() {
        for (asked, shown, file, directory) in [
            ("", "rw,relatime", Some(false), Some(false)),
            ("noatime", "rw,nosuid,noatime", None, None),
            ("strictatime", "rw", Some(true), Some(true)),
            ("strictatime,nodiratime", "rw,nodiratime", Some(true), None),
            ("ro,strictatime", "ro", None, None),
        ] {
            let rule = AtimeRule::of(&parse_options(asked).unwrap());
            for rule in [rule, AtimeRule::shown(shown)] {
                let mode = AtimeMode::new(rule);
                assert_eq!(mode.counts(false), file, "{asked}");
                assert_eq!(mode.counts(true), directory, "{asked}");
            }
        }
    }
}
