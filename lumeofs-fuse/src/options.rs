//! What `mount -o` and the fourth column of fstab may say.
//!
//! mount(8) hands most of them through to the helper as they are, also those that only it or systemd
//! cares about; these are accepted and ignored. Anything unknown is an error: a misspelt `nosuid` must not
//! mount with suid.

use crate::atime::Atime;
use lumeofs_client::{CACHE_BYTES_DEFAULT, CACHE_BYTES_MIN, OnOutage};
use std::path::PathBuf;
use std::time::Duration;

/// Options that are for mount(8) or systemd, or that ask for what is so anyway.
const IGNORED: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "nouser",
    "norelatime",
    "lazytime",
    "nolazytime",
    "silent",
    "loud",
    "default_permissions",
];
/// Options with any ending that are for mount(8) or systemd.
const IGNORED_PREFIXES: &[&str] = &["x-", "X-", "comment=", "user=", "uhelper="];
/// Options that do something here.
const KNOWN: &[&str] = &[
    "ro",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "relatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "sync",
    "async",
    "dirsync",
    "allow_other",
    "user",
    "users",
    "owner",
    "group",
    "secretfile=",
    "log=",
    "metrics=",
    "on-outage=",
    "cache=",
];

/// Largest cache: more is a misspelling.
const CACHE_BYTES_MAX: usize = 1 << 40;

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Nothing can be changed through this mount.
    pub read_only: bool,
    /// Set-user-id and set-group-id bits count.
    pub suid: bool,
    /// Device nodes can be opened.
    pub dev: bool,
    /// Programs can be run.
    pub exec: bool,
    /// When reads set access times.
    pub atime: Atime,
    /// They set those of directories too.
    pub diratime: bool,
    /// All writes are durable when they return.
    pub sync: bool,
    /// As for `sync`, for directories; they always are.
    pub dirsync: bool,
    /// Others than the user who mounts have access. Root mounts for everybody.
    pub allow_other: bool,
    /// The file with the cluster's secret.
    pub secret_file: Option<PathBuf>,
    /// Where a mount in the background logs.
    pub log: Option<PathBuf>,
    /// HOST:PORT of the metrics endpoint.
    pub metrics: Option<String>,
    /// What operations do when no quorum answers.
    pub on_outage: Option<OnOutage>,
    /// Memory for cached data, in bytes.
    pub cache_bytes: usize,
}

impl Default for MountOptions {
    /// As mount(8) has it for the user who mounts: what an unprivileged user brings must not gain
    /// privileges.
    fn default() -> Self {
        let root = rustix::process::geteuid().is_root();
        Self {
            read_only: false,
            suid: root,
            dev: root,
            exec: true,
            atime: Atime::Relative,
            diratime: true,
            sync: false,
            dirsync: false,
            allow_other: root,
            secret_file: None,
            log: None,
            metrics: None,
            on_outage: None,
            cache_bytes: CACHE_BYTES_DEFAULT,
        }
    }
}

/// Why options were not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No such option.
    #[error("unknown mount option {option:?}; did you mean {nearest:?}?")]
    Unknown {
        /// As it was given.
        option: String,
        /// The known one that is most like it.
        nearest: &'static str,
    },
    /// The option exists, but not with this value.
    #[error("mount option {option:?}: want {want}")]
    Value {
        /// As it was given.
        option: String,
        /// What it could be.
        want: &'static str,
    },
    /// What cannot be said of a mount that is made.
    #[error("remount is for a filesystem that is mounted: mount -o remount,… DIR")]
    Remount,
}

/// Reads a list of options, separated by commas. Later ones win.
pub fn parse_options(text: &str) -> Result<MountOptions, OptionError> {
    let mut options = MountOptions::default();
    for option in text
        .split(',')
        .map(str::trim)
        .filter(|option| !option.is_empty())
    {
        apply(&mut options, option)?;
    }
    Ok(options)
}

/// The list without what is unknown, as `mount -s` wants it.
pub fn without_unknown(text: &str) -> String {
    let known = |option: &&str| {
        let applied = apply(&mut MountOptions::default(), option.trim());
        !matches!(applied, Err(OptionError::Unknown { .. }))
    };
    text.split(',').filter(known).collect::<Vec<_>>().join(",")
}

/// Whether a list is about a filesystem that is mounted.
pub fn is_remount(text: &str) -> bool {
    text.split(',').any(|option| option.trim() == "remount")
}

/// The name of an option that a mount keeps until it ends; `None` for those that a remount changes and those that
/// mean nothing here.
pub(crate) fn kept(option: &str) -> Option<&'static str> {
    let is = |name: &&str| match name.strip_suffix('=') {
        Some(key) => option
            .split_once('=')
            .is_some_and(|(given, _)| given == key),
        None => *name == "allow_other" && option == *name,
    };
    KNOWN.iter().copied().find(is)
}

fn apply(options: &mut MountOptions, option: &str) -> Result<(), OptionError> {
    match option {
        "ro" => options.read_only = true,
        "rw" => options.read_only = false,
        "suid" => options.suid = true,
        "nosuid" => options.suid = false,
        "dev" => options.dev = true,
        "nodev" => options.dev = false,
        "exec" => options.exec = true,
        "noexec" => options.exec = false,
        "noatime" => options.atime = Atime::No,
        "strictatime" => options.atime = Atime::Strict,
        // As in Linux, where `relatime` says nothing that `noatime` does not overrule.
        "atime" if options.atime == Atime::No => options.atime = Atime::Relative,
        "relatime" | "nostrictatime" if options.atime == Atime::Strict => {
            options.atime = Atime::Relative;
        }
        "atime" | "relatime" | "nostrictatime" => {}
        "diratime" => options.diratime = true,
        "nodiratime" => options.diratime = false,
        "sync" => options.sync = true,
        "async" => options.sync = false,
        "dirsync" => options.dirsync = true,
        "allow_other" => options.allow_other = true,
        // mount(8): these imply what an ordinary user's mount must have, unless overridden after them.
        "user" | "users" => {
            (options.suid, options.dev, options.exec) = (false, false, false);
        }
        "owner" | "group" => (options.suid, options.dev) = (false, false),
        "remount" => return Err(OptionError::Remount),
        _ => match option.split_once('=') {
            Some(("secretfile", path)) if !path.is_empty() => {
                options.secret_file = Some(path.into());
            }
            Some(("secretfile", _)) => return Err(bad(option, "secretfile=PATH")),
            Some(("log", path)) if !path.is_empty() => options.log = Some(path.into()),
            Some(("log", _)) => return Err(bad(option, "log=FILE")),
            Some(("metrics", at)) if !at.is_empty() => options.metrics = Some(at.to_owned()),
            Some(("metrics", _)) => return Err(bad(option, "metrics=HOST:PORT")),
            Some(("on-outage", value)) => {
                let outage = on_outage(value).ok_or_else(|| {
                    bad(
                        option,
                        "on-outage=block, on-outage=block:SECONDS or on-outage=eio",
                    )
                })?;
                options.on_outage = Some(outage);
            }
            Some(("cache", value)) => {
                options.cache_bytes = cache_bytes(value)
                    .ok_or_else(|| bad(option, "cache=SIZE of 1M to 1T, as in cache=512M"))?;
            }
            _ if IGNORED.contains(&option) => {}
            _ if IGNORED_PREFIXES
                .iter()
                .any(|prefix| option.starts_with(prefix)) => {}
            _ => {
                return Err(OptionError::Unknown {
                    option: option.to_owned(),
                    nearest: nearest(option),
                });
            }
        },
    }
    Ok(())
}

fn bad(option: &str, want: &'static str) -> OptionError {
    OptionError::Value {
        option: option.to_owned(),
        want,
    }
}

fn on_outage(value: &str) -> Option<OnOutage> {
    match value {
        "eio" => Some(OnOutage::Eio),
        "block" => Some(OnOutage::Block(None)),
        _ => {
            let seconds = value.strip_prefix("block:")?.parse().ok()?;
            Some(OnOutage::Block(Some(Duration::from_secs(seconds))))
        }
    }
}

/// A size in bytes, or with K, M, G or T in units of 1024.
fn cache_bytes(value: &str) -> Option<usize> {
    let digits = value.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let unit: usize = match &value[digits.len()..] {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        "T" | "t" => 1 << 40,
        _ => return None,
    };
    let bytes = digits.parse::<usize>().ok()?.checked_mul(unit)?;
    (CACHE_BYTES_MIN..=CACHE_BYTES_MAX)
        .contains(&bytes)
        .then_some(bytes)
}

/// The known option that takes the fewest changes to reach.
fn nearest(option: &str) -> &'static str {
    let name_len = option.find('=').map_or(option.len(), |at| at + 1);
    let name = &option[..name_len];
    KNOWN
        .iter()
        .chain(IGNORED)
        .min_by_key(|known| distance(name, known))
        .expect("there are known options")
}

/// Insertions, deletions and replacements of characters between two words (Levenshtein 1966).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (at, have) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, &want) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(have != want);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_fstab_is_understood() {
        let text = "rw,noatime,_netdev,nofail,x-systemd.automount,x-systemd.mount-timeout=10,\
                    secretfile=/etc/lumeofs/secret,on-outage=block:30,nosuid,nodev,noexec";
        let options = parse_options(text).unwrap();
        assert!(!options.read_only && !options.suid && !options.dev && !options.exec);
        assert_eq!(options.atime, Atime::No);
        assert_eq!(options.secret_file, Some("/etc/lumeofs/secret".into()));
        assert_eq!(
            options.on_outage,
            Some(OnOutage::Block(Some(Duration::from_secs(30))))
        );
    }

    #[test]
    fn no_options_are_the_defaults() {
        assert_eq!(parse_options("").unwrap(), MountOptions::default());
        assert_eq!(parse_options("defaults").unwrap(), MountOptions::default());
    }

    #[test]
    fn the_last_word_counts() {
        assert!(!parse_options("ro,rw").unwrap().read_only);
        for (text, atime) in [
            ("strictatime,relatime", Atime::Relative),
            ("noatime,relatime", Atime::No),
            ("noatime,atime", Atime::Relative),
            ("noatime,strictatime", Atime::Strict),
        ] {
            assert_eq!(parse_options(text).unwrap().atime, atime, "{text}");
        }
        let user = parse_options("user,exec").unwrap();
        assert!(user.exec && !user.suid && !user.dev);
    }

    #[test]
    fn an_unknown_option_is_named_with_the_nearest_known_one() {
        for (given, near) in [
            ("nosiud", "nosuid"),
            ("secret-file=/x", "secretfile="),
            ("on_outage=eio", "on-outage="),
            ("no_atime", "noatime"),
        ] {
            let error = parse_options(&format!("rw,{given}")).unwrap_err();
            assert_eq!(
                error,
                OptionError::Unknown {
                    option: given.to_owned(),
                    nearest: near
                }
            );
        }
        let text = parse_options("nosiud").unwrap_err().to_string();
        assert!(text.contains("nosiud") && text.contains("nosuid"), "{text}");
    }

    #[test]
    fn a_bad_value_says_what_it_could_be() {
        assert_eq!(
            parse_options("on-outage=eio").unwrap().on_outage,
            Some(OnOutage::Eio)
        );
        assert_eq!(parse_options("cache=64M").unwrap().cache_bytes, 64 << 20);
        let bad = [
            "on-outage=maybe",
            "on-outage=block:x",
            "secretfile=",
            "cache=",
            "cache=1",
            "cache=12Q",
            "cache=99999999T",
        ];
        for given in bad {
            assert!(
                matches!(parse_options(given), Err(OptionError::Value { .. })),
                "{given}"
            );
        }
        assert_eq!(parse_options("remount,ro"), Err(OptionError::Remount));
        assert!(is_remount("remount,ro") && is_remount("ro, remount") && !is_remount("ro"));
    }

    #[test]
    fn what_is_unknown_can_be_left_out() {
        assert_eq!(without_unknown("ro,nosiud,bogus=1,nodev"), "ro,nodev");
        // A value that is wrong is no unknown option.
        assert_eq!(without_unknown("on-outage=x"), "on-outage=x");
    }

    #[test]
    fn what_a_mount_keeps_is_known() {
        assert_eq!(kept("secretfile=/x"), Some("secretfile="));
        assert_eq!(kept("cache=1G"), Some("cache="));
        assert_eq!(kept("allow_other"), Some("allow_other"));
        for changes in [
            "ro", "noexec", "user", "user=me", "noatime", "_netdev", "x-y=log=",
        ] {
            assert_eq!(kept(changes), None, "{changes}");
        }
    }
}
