//! What a run left that was killed before it could clean up.

use crate::test_dir;
use std::path::Path;
use std::process::Command;

/// Names of namespaces and directories of these runs begin so, then comes the process's number.
pub const PREFIX: &str = "lumechaos";

/// Ends processes, mounts, namespaces and directories of runs whose process is gone. Says what it removed.
pub fn remove_leftovers() -> Vec<String> {
    let mut removed = Vec::new();
    let namespaces = orphans(Path::new("/run/netns"), PREFIX, '-');
    for namespace in &namespaces {
        for pid in said("ip", &["netns", "pids", namespace]).split_whitespace() {
            said("kill", &["-9", pid]);
        }
    }
    let directories = orphans(&test_dir(), &format!("{PREFIX}."), '.');
    for name in &directories {
        let directory = test_dir().join(name);
        unmount_below(&directory);
        if let Err(error) = std::fs::remove_dir_all(&directory) {
            eprintln!("{}: {error}", directory.display());
        }
    }
    for namespace in &namespaces {
        said("ip", &["netns", "del", namespace]);
    }
    removed.extend(namespaces);
    removed.extend(directories);
    removed
}

/// Names in a directory of the form PREFIX NUMBER END … whose process is gone.
fn orphans(directory: &Path, prefix: &str, end: char) -> Vec<String> {
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| owner(name, prefix, end).is_some_and(|pid| !is_alive(pid)))
        .collect()
}

fn owner(name: &str, prefix: &str, end: char) -> Option<u32> {
    let (pid, _) = name.strip_prefix(prefix)?.split_once(end)?;
    pid.parse().ok()
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// The innermost first.
fn unmount_below(directory: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let below: Vec<_> = points
        .filter(|point| Path::new(point).starts_with(directory))
        .collect();
    for point in below.iter().rev() {
        said("umount", &["-l", point]);
    }
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(
        |error| {
            eprintln!("{program}: {error}");
            String::new()
        },
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_our_form_are_leftovers() {
        assert_eq!(owner("lumechaos12-0-m1", PREFIX, '-'), Some(12));
        for other in ["lumechaosx-0", "lumechaos12", "lmfs12-0-m1", "m1"] {
            assert_eq!(owner(other, PREFIX, '-'), None, "{other}");
        }
        assert!(is_alive(std::process::id()));
    }
}
