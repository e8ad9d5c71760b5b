//! Links that lose packets without a word.

use super::super::fault::Fault;
use crate::Site;

/// Hosts with a mount.
const MOUNTS: [&str; 2] = ["a", "b"];

/// A node between which and others packets vanish.
pub(in super::super) struct Cut {
    host: &'static str,
    /// Whom it loses; all others, clients too, if this is empty.
    others: &'static [&'static str],
    /// What it sends vanishes.
    out: bool,
    /// What is sent to it vanishes.
    to: bool,
}

impl Cut {
    pub(in super::super) fn full(host: &'static str) -> Self {
        Self::new(host, &[], (true, true))
    }

    pub(in super::super) fn mute(host: &'static str) -> Self {
        Self::new(host, &[], (true, false))
    }

    pub(in super::super) fn deaf(host: &'static str) -> Self {
        Self::new(host, &[], (false, true))
    }

    /// Only one mount loses it; the servers see each other.
    pub(in super::super) fn from_a_client(host: &'static str) -> Self {
        Self::new(host, &["a"], (true, true))
    }

    fn new(host: &'static str, others: &'static [&'static str], (out, to): (bool, bool)) -> Self {
        Self {
            host,
            others,
            out,
            to,
        }
    }

    fn each(&self, site: &Site, link: impl Fn(&str, &str)) {
        let lost = |other: &&str| {
            *other != self.host && (self.others.is_empty() || self.others.contains(other))
        };
        let mut others: Vec<_> = site.hosts().names().filter(lost).collect();
        // Hosts with a mount last: a program that is started here first closes what the load has open, and that waits for
        // a mount whose servers are still to be cut from each other.
        others.sort_by_key(|other| (MOUNTS.contains(other), *other));
        for other in others {
            if self.out {
                link(self.host, other);
            }
            if self.to {
                link(other, self.host);
            }
        }
    }
}

impl Fault for Cut {
    fn target(&self) -> String {
        self.host.into()
    }

    fn inject(&mut self, site: &mut Site) {
        self.each(site, |from, to| site.hosts().cut(from, to));
        // A fault that is none would pass every check.
        let connect = format!(
            "exec 3<>/dev/tcp/{}",
            site.address(self.host).replace(':', "/")
        );
        let connect = site
            .hosts()
            .command("a", "timeout")
            .args(["1", "bash", "-c", &connect])
            .output();
        assert!(
            connect.is_ok_and(|output| !output.status.success()),
            "{} is still reached",
            self.host
        );
    }

    fn heal(&mut self, site: &mut Site) {
        self.each(site, |from, to| site.hosts().mend(from, to));
    }
}
