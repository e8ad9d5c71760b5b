//! What `/proc` tells of the thread behind a request, which waits in the kernel meanwhile. For what FUSE does not say.

use std::fs::File;
use std::io::Read;

/// Enough for all of `/proc/TID/status`, also with the 65 536 groups that the kernel allows.
const STATUS_BYTES_MAX: u64 = 1 << 20;

/// A file of `/proc/TID`.
pub(crate) fn read(tid: u32, name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(2048);
    let file = File::open(format!("/proc/{tid}/{name}")).ok()?;
    file.take(STATUS_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    // The name of a program need not be UTF-8.
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The supplementary groups of a thread; none if it is out of sight.
pub(crate) fn groups(tid: u32) -> Vec<u32> {
    let status = read(tid, "status").unwrap_or_default();
    groups_in(&status)
}

/// Those in the text of `/proc/TID/status` (proc(5)).
fn groups_in(status: &str) -> Vec<u32> {
    let mut lines = status.lines();
    let groups = lines.find_map(|line| line.strip_prefix("Groups:"));
    let groups = groups.unwrap_or_default().split_ascii_whitespace();
    groups.filter_map(|group| group.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supplementary_groups_are_read_from_the_status() {
        let status = "Name:\ta\nGid:\t7\t7\t7\t7\nGroups:\t4 24 4294967294 \nNStgid:\t5\n";
        assert_eq!(groups_in(status), [4, 24, u32::MAX - 1]);
        assert_eq!(groups_in("Name:\ta\nGroups:\t \n"), []);
        assert_eq!(groups(0), []);
        let own = rustix::process::getgroups().unwrap();
        let own: Vec<u32> = own.into_iter().map(rustix::fs::Gid::as_raw).collect();
        assert_eq!(groups(std::process::id()), own);
    }
}
