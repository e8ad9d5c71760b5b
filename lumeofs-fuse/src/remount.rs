//! `mount -o remount`: changes what the kernel keeps of a mount, without its process.
//!
//! The kernel decides about `ro`, `nosuid`, `nodev`, `noexec` and `sync`. What it keeps of access times the process reads from it. The rest is kept by the process
//! since it began; asking for a change of that is an error that names it, for what is not in effect must not seem so.

use crate::atime::Atime;
use crate::mountinfo::Entry;
use crate::mountpoint;
use crate::options::{MountOptions, kept, parse_options};
use crate::record::Record;
use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount_remount};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What mount(8) reads from `/proc/mounts` and hands on: FUSE's own.
const KERNELS: &[&str] = &["user_id=", "group_id=", "max_read=", "blksize="];

/// Changes the mount at `mountpoint` to what `text` says, a whole list as mount(8) makes it.
///
/// # Errors
/// No mount of LumeoFS there, an unknown option (an [`OptionError`](crate::OptionError)), one that only a new mount
/// can change, or files open for writing where `ro` is asked for.
pub fn remount(mountpoint: &Path, text: &str) -> Result<()> {
    let (path, entry) = find(mountpoint)?;
    let shown = path.display();
    let asked: Vec<&str> = text
        .split(',')
        .map(str::trim)
        .filter(|option| *option != "remount" && !is_kernels(option))
        .collect();
    let options = parse_options(&asked.join(","))?;
    check_kept(&asked, &entry)?;
    if mountpoint::is_dead(&path) {
        bail!("the mount at {shown} has lost its process: mount again, which takes it away");
    }
    mount_remount(&path, flags(&options), c"").map_err(|error| match error {
        Errno::BUSY => anyhow::anyhow!(
            "{shown} cannot be made read-only: files in it are open for writing; `fuser -vm {shown}` shows by whom"
        ),
        Errno::PERM => anyhow::anyhow!("only root can remount {shown}"),
        _ => anyhow::Error::new(error).context(format!("remount {shown}")),
    })
}

/// The mount that is meant, and where it is.
fn find(mountpoint: &Path) -> Result<(PathBuf, Entry)> {
    let shown = mountpoint.display();
    let path = std::path::absolute(mountpoint)
        .with_context(|| format!("mount point {shown}: not a usable path"))?;
    let mut found = Entry::top_at(&path)
        .context("/proc/self/mountinfo")?
        .map(|entry| (path, entry));
    if found.is_none() {
        // Through symlinks; only now, since a mount that hangs would hang this.
        let path =
            std::fs::canonicalize(mountpoint).with_context(|| format!("mount point {shown}"))?;
        found = Entry::top_at(&path)
            .context("/proc/self/mountinfo")?
            .map(|entry| (path, entry));
    }
    match found {
        Some((path, entry)) if entry.is_ours() => Ok((path, entry)),
        Some((_, entry)) => bail!("{shown} is not a mount of LumeoFS but {entry}"),
        None => bail!("nothing is mounted at {shown}: mount it without `remount`"),
    }
}

fn is_kernels(option: &str) -> bool {
    KERNELS.iter().any(|key| option.starts_with(key))
}

/// Fails if an option that the mount keeps is not as it has it. What is not mentioned stays.
fn check_kept(asked: &[&str], entry: &Entry) -> Result<()> {
    let record = Record::read(&entry.device);
    let has = record.as_deref().map(|text| last_of_each(text.split(',')));
    for (name, option) in last_of_each(asked.iter().copied()) {
        if name == "allow_other" {
            if !entry.has(name) {
                bail!("{option} cannot be changed by a remount: unmount and mount again");
            }
            continue;
        }
        match has.as_ref().map(|has| has.get(name)) {
            Some(Some(kept)) if *kept == option => {}
            Some(kept) => bail!(
                "{option} cannot be changed by a remount (the mount has {}): unmount and mount again",
                kept.copied().unwrap_or("none")
            ),
            None => bail!(
                "{option}: what this mount began with is not known, so it cannot be told whether that is a change; \
                 leave it out, or unmount and mount again"
            ),
        }
    }
    Ok(())
}

/// The last of each option that a mount keeps, by name.
fn last_of_each<'a>(options: impl Iterator<Item = &'a str>) -> BTreeMap<&'static str, &'a str> {
    options
        .filter_map(|option| Some((kept(option)?, option)))
        .collect()
}

/// What mount(2) is told of options.
pub(crate) fn flags(options: &MountOptions) -> MountFlags {
    let wanted = [
        (options.read_only, MountFlags::RDONLY),
        (!options.suid, MountFlags::NOSUID),
        (!options.dev, MountFlags::NODEV),
        (!options.exec, MountFlags::NOEXEC),
        (options.sync, MountFlags::SYNCHRONOUS),
        // Without any of these the kernel would keep what it has.
        (options.atime == Atime::No, MountFlags::NOATIME),
        (options.atime == Atime::Relative, MountFlags::RELATIME),
        (options.atime == Atime::Strict, MountFlags::STRICTATIME),
        (!options.diratime, MountFlags::NODIRATIME),
    ];
    let wanted = wanted.iter().filter(|(wanted, _)| *wanted);
    wanted.fold(MountFlags::empty(), |flags, (_, flag)| flags | *flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_ours_are_changed() {
        let text =
            |path: &str| format!("{:#}", remount(Path::new(path), "remount,ro").unwrap_err());
        assert!(
            text("/proc").contains("not a mount of LumeoFS"),
            "{}",
            text("/proc")
        );
        assert!(
            text("/proc/self").contains("nothing is mounted"),
            "{}",
            text("/proc/self")
        );
    }

    #[test]
    fn flags_say_what_options_say() {
        let of = |text: &str| flags(&parse_options(text).unwrap());
        assert_eq!(
            of("ro,nosuid,nodev,noexec,noatime,sync"),
            MountFlags::RDONLY
                | MountFlags::NOSUID
                | MountFlags::NODEV
                | MountFlags::NOEXEC
                | MountFlags::NOATIME
                | MountFlags::SYNCHRONOUS
        );
        assert_eq!(of("suid,dev"), MountFlags::RELATIME);
        assert_eq!(
            of("suid,dev,strictatime,nodiratime"),
            MountFlags::STRICTATIME | MountFlags::NODIRATIME
        );
    }

    #[test]
    fn the_last_of_options_that_a_mount_keeps_counts() {
        let last = last_of_each("ro,secretfile=/a,on-outage=eio,secretfile=/b,x-y".split(','));
        let want = [
            ("on-outage=", "on-outage=eio"),
            ("secretfile=", "secretfile=/b"),
        ];
        assert_eq!(last, BTreeMap::from(want));
    }
}
