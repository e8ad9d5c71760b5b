//! Supplementary groups of a caller, which FUSE does not hand on.

/// Those of the thread `tid`; none if it is out of sight.
pub(crate) fn of(tid: u32) -> Vec<u32> {
    // The kernel allows 65536 groups, so this has an end. The name of a program need not be UTF-8.
    let status = std::fs::read(format!("/proc/{tid}/status")).unwrap_or_default();
    parse(&String::from_utf8_lossy(&status))
}

fn parse(status: &str) -> Vec<u32> {
    let mut lines = status.lines();
    let groups = lines.find_map(|line| line.strip_prefix("Groups:"));
    let groups = groups.unwrap_or_default().split_ascii_whitespace();
    groups.filter_map(|group| group.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_a_status() {
        assert_eq!(
            parse("Name:\tx\nGroups:\t4 24 4294967294 \nPid:\t1\n"),
            [4, 24, u32::MAX - 1]
        );
        assert_eq!(parse("Name:\tx\nGroups:\t \n"), []);
        assert_eq!(of(0), []);
        let own = rustix::process::getgroups().unwrap();
        let own: Vec<u32> = own.into_iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(of(std::process::id()), own);
    }
}
