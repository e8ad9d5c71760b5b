//! What the Raft groups of a master tell Prometheus.

use super::group::{Group, Report};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::metrics::{Kind, Page};

type Figure = (&'static str, &'static str, fn(&Group, &Report) -> u64);

const GAUGES: [Figure; 12] = [
    (
        "leads",
        "1 if this master believes to lead the group, else 0",
        |group, _| u64::from(group.leadership().is_some()),
    ),
    (
        "has_leader",
        "1 if this master knows a leader, else 0",
        |_, report| u64::from(report.leader.is_some()),
    ),
    (
        "has_quorum",
        "1 if it leads and a quorum answered it in the last two seconds, else 0",
        |group, _| u64::from(group.check_leads().is_ok()),
    ),
    (
        "lease_held",
        "1 if it leads and may answer reads by itself, else 0",
        |group, _| u64::from(group.may_read()),
    ),
    ("term", "Term", |_, report| report.term),
    ("last_index", "Last entry of the log", |_, report| {
        report.last_log
    }),
    (
        "committed_index",
        "Last entry that is known to be committed",
        |_, report| report.committed,
    ),
    (
        "applied_index",
        "Last entry that is applied",
        |_, report| report.applied,
    ),
    (
        "checkpoint_index",
        "Last entry that a checkpoint has",
        |_, report| report.snapshot,
    ),
    ("store_bytes", "Size of the store's file", |group, _| {
        std::fs::metadata(group.store().path()).map_or(0, |meta| meta.len())
    }),
    (
        "unsaved_records",
        "Rows that no checkpoint has yet",
        |group, _| group.store().unsaved().0 as u64,
    ),
    ("unsaved_bytes", "Bytes of these rows", |group, _| {
        group.store().unsaved().1 as u64
    }),
];

impl Group {
    /// Writes what the groups know to `page`.
    pub(crate) fn collect(page: &mut Page, groups: &[&Group]) {
        let reports: Vec<_> = groups
            .iter()
            .map(|group| (*group, group.report()))
            .collect();
        for (what, help, value) in GAUGES {
            let name = format!("lumeofs_master_raft_{what}");
            page.family(Kind::Gauge, &name, help);
            for (group, report) in &reports {
                page.sample(&name, &[("group", group.name)], value(group, report));
            }
        }
        of_followers(page, &reports);
        let logs: Vec<_> = groups
            .iter()
            .map(|group| (group.name, group.log().wal()))
            .collect();
        lumeofs_wal::collect(page, "lumeofs_master", "group", &logs);
    }

    /// Whether it leads within its read lease.
    fn may_read(&self) -> bool {
        let Some(leadership) = self.leadership() else {
            return false;
        };
        let metrics = self.raft().server_metrics();
        let membership = metrics.borrow().membership_config.clone();
        self.lease()
            .holds(leadership.term, &membership, SystemClock.monotonic())
    }
}

/// On a leader: how far each other member is, and since when it has not answered.
fn of_followers(page: &mut Page, reports: &[(&Group, Report)]) {
    let followers: Vec<_> = reports
        .iter()
        .flat_map(|(group, report)| {
            let one = |(node, matched): &(u64, u64)| {
                let lag = report.last_log.saturating_sub(*matched);
                let term = group.leadership().map(|leadership| leadership.term);
                let silence = term.and_then(|term| group.silence_of(term, *node));
                (group.name, node.to_string(), lag, silence)
            };
            report.followers.iter().map(one).collect::<Vec<_>>()
        })
        .collect();
    let name = "lumeofs_master_raft_follower_lag_entries";
    page.family(
        Kind::Gauge,
        name,
        "On the leader: entries that a member lacks",
    );
    for (group, node, lag, _) in &followers {
        page.sample(name, &[("group", group), ("master", node)], lag);
    }
    let name = "lumeofs_master_raft_follower_silence_seconds";
    let help = "On the leader: time since the append was sent that a member acknowledged last in this leadership; \
                +Inf if none";
    page.family(Kind::Gauge, name, help);
    for (group, node, _, silence) in &followers {
        let seconds = silence.map_or("+Inf".to_owned(), |time| time.as_secs_f64().to_string());
        page.sample(name, &[("group", group), ("master", node)], seconds);
    }
}
