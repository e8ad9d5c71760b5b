//! What datanodes attested last, as the controller's leader has it: in memory, with its age.

use crate::raft::Leadership;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{Epoch, GroupId, NodeId};
use lumeofs_meta::controller::health::{Attest, Progress, Report};
use lumeofs_proto::control::{GroupReport, HeartbeatRequest};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;

/// Groups of a datanode that are remembered.
const GROUPS_MAX: usize = 4096;
/// Age from which an earlier report gives a rate that says something.
const APART_MIN: Duration = Duration::from_secs(2);
/// Silence after which a datanode that is not in the map any more is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// After a pause of this length between two looks this process stood still and heard nobody.
const LOOK_GAP_MAX: Duration = Duration::from_secs(2);

/// Reports of all datanodes, and since when they come here.
#[derive(Default)]
pub(crate) struct Attests {
    nodes: Mutex<BTreeMap<NodeId, Kept>>,
    office: Mutex<Office>,
}

#[derive(Default)]
struct Office {
    leadership: Option<Leadership>,
    since: Duration,
    looked: Duration,
}

#[derive(Default)]
struct Kept {
    at: Duration,
    capacity_bytes: u64,
    free_bytes: u64,
    trouble: String,
    groups: BTreeMap<GroupId, Attest>,
    earlier: Option<(Duration, BTreeMap<GroupId, Attest>)>,
}

impl Attests {
    /// A heartbeat was taken.
    pub(crate) fn take(&self, request: &HeartbeatRequest) {
        self.take_at(request, SystemClock.monotonic());
    }

    fn take_at(&self, request: &HeartbeatRequest, now: Duration) {
        let Some(node) = &request.node else { return };
        let mut nodes = self.nodes.lock();
        nodes.retain(|_, kept| now.saturating_sub(kept.at) < FORGET_AFTER);
        let kept = nodes.entry(NodeId(node.id)).or_default();
        let groups = request.groups.iter().take(GROUPS_MAX).map(attest);
        let before = std::mem::replace(&mut kept.groups, groups.collect());
        let is_stale = |(at, _): &(Duration, _)| now.saturating_sub(*at) >= APART_MIN * 2;
        if kept.earlier.as_ref().is_none_or(is_stale) && !before.is_empty() {
            kept.earlier = Some((kept.at, before));
        }
        kept.at = now;
        kept.capacity_bytes = node.capacity_bytes;
        kept.free_bytes = node.free_bytes;
        kept.trouble.clone_from(&request.trouble);
    }

    /// What is known now.
    pub(crate) fn reports(&self) -> BTreeMap<NodeId, Report> {
        self.reports_at(SystemClock.monotonic())
    }

    fn reports_at(&self, now: Duration) -> BTreeMap<NodeId, Report> {
        let nodes = self.nodes.lock();
        let report = |kept: &Kept| Report {
            age: now.saturating_sub(kept.at),
            capacity_bytes: kept.capacity_bytes,
            free_bytes: kept.free_bytes,
            trouble: kept.trouble.clone(),
            groups: kept.groups.clone(),
            earlier: kept
                .earlier
                .as_ref()
                .map(|(at, groups)| (kept.at.saturating_sub(*at), groups.clone())),
        };
        nodes
            .iter()
            .map(|(node, kept)| (*node, report(kept)))
            .collect()
    }

    /// Looked at several times a second: whether this master leads.
    pub(crate) fn look(&self, leadership: Option<Leadership>) {
        self.look_at(leadership, SystemClock.monotonic());
    }

    fn look_at(&self, leadership: Option<Leadership>, now: Duration) {
        let mut office = self.office.lock();
        let gap = now.saturating_sub(office.looked);
        if office.leadership != leadership || gap > LOOK_GAP_MAX {
            (office.leadership, office.since) = (leadership, now);
        }
        office.looked = now;
    }

    /// For how long this master has had this leadership, and heard of datanodes.
    pub(crate) fn leading(&self, leadership: Leadership) -> Duration {
        let office = self.office.lock();
        match office.leadership == Some(leadership) {
            true => SystemClock.monotonic().saturating_sub(office.since),
            false => Duration::ZERO,
        }
    }
}

fn attest(report: &GroupReport) -> (GroupId, Attest) {
    let progress = |progress: &lumeofs_proto::control::CatchUpReport| Progress {
        node: NodeId(progress.node),
        chunks_done: progress.chunks_done,
        chunks: progress.chunks,
        bytes_copied: progress.bytes_copied,
    };
    let attest = Attest {
        epoch: Epoch(report.epoch),
        role: report.role.clone(),
        complete: report.complete,
        eligible: report.eligible,
        chunks: report.chunks,
        bytes: report.bytes,
        catching_up: report.catching_up.iter().map(progress).collect(),
        damaged_blocks: report.damaged_blocks,
    };
    (GroupId(report.group), attest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_proto::control::Node;

    fn heartbeat(chunks: u64) -> HeartbeatRequest {
        HeartbeatRequest {
            node: Some(Node {
                id: 7,
                ..Node::default()
            }),
            groups: vec![GroupReport {
                group: 1,
                chunks,
                ..GroupReport::default()
            }],
            ..HeartbeatRequest::default()
        }
    }

    #[test]
    fn a_report_ages_and_keeps_an_earlier_one_that_is_seconds_older() {
        let attests = Attests::default();
        let second = Duration::from_secs(1);
        for at in 1..=10 {
            attests.take_at(&heartbeat(at.into()), second * at);
        }
        let report = attests.reports_at(second * 13).remove(&NodeId(7)).unwrap();
        assert_eq!(report.age, second * 3);
        assert_eq!(report.groups[&GroupId(1)].chunks, 10);
        let (apart, groups) = report.earlier.unwrap();
        assert_eq!(apart, second * (10 - groups[&GroupId(1)].chunks as u32));
        assert!((second..=APART_MIN * 2).contains(&apart), "{apart:?}");
    }

    #[test]
    fn a_datanode_that_is_gone_for_good_is_forgotten() {
        let attests = Attests::default();
        attests.take_at(&heartbeat(1), Duration::ZERO);
        let other = HeartbeatRequest {
            node: Some(Node {
                id: 8,
                ..Node::default()
            }),
            ..HeartbeatRequest::default()
        };
        attests.take_at(&other, FORGET_AFTER);
        let nodes: Vec<_> = attests.reports_at(FORGET_AFTER).into_keys().collect();
        assert_eq!(nodes, [NodeId(8)]);
    }
}
