//! What `/proc` tells of the thread behind a request, which waits in the kernel meanwhile. For what FUSE does not say.

use std::fs::File;
use std::io::Read;

/// Enough for all of `/proc/TID/status` up to the signal masks, also with many groups.
const STATUS_BYTES_MAX: u64 = 16 << 10;

/// A file of `/proc/TID`.
pub(crate) fn read(tid: u32, name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(2048);
    let file = File::open(format!("/proc/{tid}/{name}")).ok()?;
    file.take(STATUS_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    // The name of a program need not be UTF-8.
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Whether a group is among the supplementary ones of a thread. One that is out of sight is in none.
pub(crate) fn has_group(tid: u32, gid: u32) -> bool {
    tid != 0 && read(tid, "status").is_some_and(|status| lists(&status, gid))
}

/// Whether the text of `/proc/TID/status` (proc(5)) has the group among the supplementary ones.
fn lists(status: &str, gid: u32) -> bool {
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    let mut groups = groups.unwrap_or_default().split_ascii_whitespace();
    groups.any(|group| group.parse() == Ok(gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supplementary_groups_are_read_from_the_status() {
        let status = "Name:\ta\nGid:\t7\t7\t7\t7\nGroups:\t4 24 1000 \nNStgid:\t5\n";
        assert!(lists(status, 24) && lists(status, 1000));
        assert!(!lists(status, 7) && !lists(status, 2));
        assert!(!lists("Name:\ta\nGroups:\t \n", 0));
        assert!(!has_group(0, 0));
    }
}
