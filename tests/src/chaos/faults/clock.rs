//! Wall clocks that jump: libfaketime stands in front of the clock of one process. The monotonic clock goes on, as when
//! an administrator or NTP sets the time.

use super::super::fault::Fault;
use crate::{Role, Site, eventually, pause};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time for a process to see that its clock was set, and for a cluster to be level after a restart.
const SEEN: Duration = Duration::from_secs(2);
const LEVEL: Duration = Duration::from_secs(60);
/// What two looks at the same clock may differ by, in seconds.
const NEAR: i64 = 600;

/// A step of so many seconds, and back.
pub(in super::super) struct Step {
    host: &'static str,
    seconds: i64,
}

impl Step {
    pub(in super::super) fn new(host: &'static str, seconds: i64) -> Self {
        Self { host, seconds }
    }

    /// Hosts whose processes must be able to see another time: of masters all, since the restart moves the leader.
    fn prepared(&self, site: &Site) -> Vec<&'static str> {
        let masters = site.hosts_of(Role::Master);
        if masters.contains(&self.host) {
            return masters;
        }
        vec![self.host]
    }

    fn clock(site: &Site, host: &str) -> String {
        site.file(&format!("clock-{host}"))
    }

    fn set(&self, site: &Site, seconds: i64) {
        let file = Self::clock(site, self.host);
        // Replaced as a whole: the process never reads half of it.
        let new = format!("{file}.new");
        std::fs::write(&new, format!("{seconds:+}\n")).expect("a clock file");
        std::fs::rename(new, file).expect("a clock file");
    }

    fn restart(site: &mut Site, host: &str, environment: Vec<(&'static str, String)>) {
        site.set_start(host, environment, Vec::new());
        site.terminate(host);
        site.start_node(host);
        eventually("it is level after the restart", LEVEL, || {
            site.masters_caught_up() && site.in_sync()
        });
    }
}

impl Fault for Step {
    fn target(&self) -> String {
        format!("{} {:+} s", self.host, self.seconds)
    }

    fn prepare(&mut self, site: &mut Site) {
        let library = library().display().to_string();
        for host in self.prepared(site) {
            let file = Self::clock(site, host);
            std::fs::write(&file, "+0\n").expect("a clock file");
            let environment = vec![
                ("LD_PRELOAD", library.clone()),
                ("FAKETIME_TIMESTAMP_FILE", file),
                ("FAKETIME_CACHE_DURATION", "1".into()),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
                ("FAKETIME_DISABLE_SHM", "1".into()),
                ("NO_FAKE_STAT", "1".into()),
            ];
            Self::restart(site, host, environment);
        }
        if site.hosts_of(Role::Master).contains(&self.host) {
            self.host = site.leader("metadata");
        }
    }

    fn inject(&mut self, site: &mut Site) {
        self.set(site, self.seconds);
    }

    fn last(&mut self, site: &mut Site, hold: Duration) {
        pause(hold.max(SEEN));
        // The leader stamps what it is asked to do. Its stamps never go back, so that only one direction shows.
        if self.seconds > 0 && site.leader("metadata") == self.host {
            let probe = site.mount_point("a").join("clock-probe");
            std::fs::write(&probe, "").expect("a file can be made");
            let changed = probe.metadata().and_then(|meta| meta.modified());
            std::fs::remove_file(&probe).expect("it can be removed");
            let ahead = unix(changed.expect("it has a time")) - unix(SystemTime::now());
            assert!(
                (ahead - self.seconds).abs() < NEAR,
                "the step was not seen: the leader's stamp is {ahead} s ahead"
            );
        }
    }

    fn heal(&mut self, site: &mut Site) {
        self.set(site, 0);
        pause(SEEN);
    }

    fn tidy(&mut self, site: &mut Site) {
        // What it logs when it stops has the time that it believes in.
        self.set(site, self.seconds);
        pause(SEEN);
        site.terminate(self.host);
        let log = std::fs::read_to_string(site.log(self.host)).expect("its log");
        let last = log
            .lines()
            .rev()
            .find_map(stamp)
            .expect("a line with a time");
        let ahead = last - unix(SystemTime::now());
        assert!(
            (ahead - self.seconds).abs() < NEAR,
            "the step was not seen: the log of {} is {ahead} s ahead",
            self.host
        );
        site.start_node(self.host);
        for host in self.prepared(site) {
            Self::restart(site, host, Vec::new());
        }
    }
}

/// Where Debian's package faketime has its library.
fn library() -> PathBuf {
    let places = std::fs::read_dir("/usr/lib")
        .expect("a directory")
        .flatten();
    let mut found = places.map(|entry| entry.path().join("faketime/libfaketime.so.1"));
    found
        .find(|path| path.exists())
        .expect("libfaketime: apt-get install faketime")
}

fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).expect("a time after 1970");
    since.as_secs().cast_signed()
}

/// Seconds since 1970 of a line that begins with a time like `2026-01-31T23:59:59`.
fn stamp(line: &str) -> Option<i64> {
    let number = |from: usize, to: usize| line.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    // Days since 1970 of the proleptic Gregorian calendar; years begin in March.
    let years = if month > 2 { year } else { year - 1 };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = years * 365 + years / 4 - years / 100 + years / 400 + day_of_year - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_has_a_time() {
        assert_eq!(stamp("1970-01-01T00:00:00.000000Z  INFO x"), Some(0));
        assert_eq!(stamp("2000-02-29T12:00:01Z x"), Some(951_825_601));
        assert_eq!(stamp("2026-11-27T17:18:38.1Z"), Some(1_795_799_918));
        assert_eq!(stamp("thread panicked"), None);
    }
}
