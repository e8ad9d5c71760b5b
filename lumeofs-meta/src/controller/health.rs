//! How the data does, from what datanodes attest: a pure function of the cluster map and their reports.
//!
//! A copy counts only if its datanode was heard of lately, is in sync by the map, and says itself that it has
//! everything. Who was not heard of counts for nothing: as lost, or as not known yet while the leader is too new to
//! have heard of everybody.

mod spread;
#[cfg(test)]
mod tests;

pub use spread::{Survival, ZoneLoss};

use lumeofs_base::{ClusterMap, Epoch, GroupConfig, GroupId, NodeId};
use std::collections::BTreeMap;
use std::time::Duration;

/// Silence after which a datanode's word counts no longer: several heartbeats, one of which may ask every master
/// in vain.
pub const FRESH: Duration = Duration::from_secs(4);
/// For how long a new leader may not have heard of everybody.
pub const YOUNG: Duration = Duration::from_secs(5);
/// Use of a datanode's space, in percent, from which it is full soon.
pub const FILLING_PERCENT: u64 = 85;
/// Use from which it is nearly full, and the cluster not healthy.
pub const FULL_PERCENT: u64 = 95;

/// What a member says of itself and of its group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attest {
    /// Its epoch.
    pub epoch: Epoch,
    /// primary, reconciling, secondary, joining, out-of-sync.
    pub role: String,
    /// Has all that an in-sync member must have.
    pub complete: bool,
    /// Has a state that the group had: after a restart of the whole group it may lead.
    pub eligible: bool,
    /// Chunks that it stores.
    pub chunks: u64,
    /// Bytes of them, to the end of each one's data.
    pub bytes: u64,
    /// Of a primary: members that are being caught up.
    pub catching_up: Vec<Progress>,
    /// Blocks of 4 KiB that are damaged on its disk and not repaired yet.
    pub damaged_blocks: u64,
}

/// How far a member has been caught up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The member.
    pub node: NodeId,
    /// Chunks compared, and copied where they differed.
    pub chunks_done: u64,
    /// Chunks of the group.
    pub chunks: u64,
    /// Bytes that were copied.
    pub bytes_copied: u64,
}

/// A datanode's last report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How old it is.
    pub age: Duration,
    /// Bytes of its disks.
    pub capacity_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
    /// What is wrong with its disks.
    pub trouble: String,
    /// Its groups.
    pub groups: BTreeMap<GroupId, Attest>,
    /// An earlier report: how much older it is, and what it said. For rates.
    pub earlier: Option<(Duration, BTreeMap<GroupId, Attest>)>,
}

/// What health is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Nodes and groups.
    pub map: &'a ClusterMap,
    /// Last reports.
    pub reports: &'a BTreeMap<NodeId, Report>,
    /// For how long the leader that was reported to has been one.
    pub leading: Duration,
}

/// How many copies of a group's chunks there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As many as wanted.
    Full,
    /// Fewer than wanted, more than one; or as many as wanted, of which one has damaged blocks.
    Reduced,
    /// Not known yet: datanodes that may have more of them have not reported, or their group restarts.
    Unattested,
    /// One, and more are wanted.
    LastCopy,
    /// None that is in sync and lives.
    Lost,
}

/// The whole in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Everything is as it should be.
    Healthy,
    /// Everything is served, with less in reserve than wanted, or not everything is known yet.
    Degraded,
    /// Something is not served, or has its last copy.
    Critical,
    /// Something has no live copy.
    Lost,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupHealth {
    /// The group.
    pub group: GroupId,
    /// Its copies.
    pub level: Level,
    /// Members whose copy is attested.
    pub attested: Vec<NodeId>,
    /// Members that may have a copy and were not heard of, or are still restarting.
    pub possible: Vec<NodeId>,
    /// Members without an attested copy.
    pub missing: Vec<NodeId>,
    /// Copies that are wanted.
    pub wanted: usize,
    /// Copies without which nothing is written.
    pub quorum: usize,
    /// Chunks, as the attested members count them, else as members last did.
    pub chunks: u64,
    /// Bytes of one copy.
    pub bytes: u64,
    /// Damaged blocks of all attested copies.
    pub damaged_blocks: u64,
}

/// A copy that is being made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The group.
    pub group: GroupId,
    /// How far it is.
    pub progress: Progress,
    /// Chunks per second between the last reports.
    pub chunks_per_s: Option<u64>,
    /// Bytes per second between the last reports.
    pub bytes_per_s: Option<u64>,
    /// Time that is left at that rate.
    pub left: Option<Duration>,
}

/// A datanode with little space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filling {
    /// The datanode.
    pub node: NodeId,
    /// Part that is used.
    pub used_percent: u64,
    /// Bytes free.
    pub free_bytes: u64,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The whole in one word.
    pub state: State,
    /// Some datanodes have not reported to this leader yet: figures are lower bounds.
    pub partial: bool,
    /// Datanodes that were not heard of lately.
    pub silent: Vec<NodeId>,
    /// Datanodes that say that something is wrong, and what.
    pub troubles: Vec<(NodeId, String)>,
    /// All groups.
    pub groups: Vec<GroupHealth>,
    /// What is being copied.
    pub repairs: Vec<Repair>,
    /// What more may fail.
    pub survival: Survival,
    /// Datanodes that are full soon.
    pub filling: Vec<Filling>,
}

impl Health {
    /// Number of groups and chunks at a level.
    pub fn at(&self, level: Level) -> (u64, u64) {
        let groups = self.groups.iter().filter(|group| group.level == level);
        groups.fold((0, 0), |(count, chunks), group| {
            (count + 1, chunks + group.chunks)
        })
    }
}

/// Copies of a group that are wanted.
fn wanted(config: &GroupConfig) -> usize {
    config.replicas as usize
}

/// Computes it.
pub fn health(observed: Observed<'_>) -> Health {
    let map = observed.map;
    let groups: Vec<_> = map
        .groups
        .iter()
        .map(|config| observed.group(config))
        .collect();
    let silent: Vec<_> = map
        .nodes
        .iter()
        .map(|info| info.id)
        .filter(|node| !observed.is_fresh(*node))
        .collect();
    let troubles = observed
        .fresh()
        .filter(|(_, report)| !report.trouble.is_empty())
        .map(|(node, report)| (node, report.trouble.clone()))
        .collect();
    let mut health = Health {
        state: State::Healthy,
        partial: observed.is_young() && !silent.is_empty(),
        survival: spread::survival(map, &groups),
        repairs: observed.repairs(),
        filling: observed.filling(),
        silent,
        troubles,
        groups,
    };
    health.state = state(&health);
    health
}

fn state(health: &Health) -> State {
    let of_group = |group: &GroupHealth| match group.level {
        Level::Lost => State::Lost,
        Level::LastCopy => State::Critical,
        Level::Unattested => State::Degraded,
        // Enough copies to lose one, too few to write.
        Level::Full | Level::Reduced if group.attested.len() < group.quorum => State::Critical,
        Level::Reduced => State::Degraded,
        Level::Full => State::Healthy,
    };
    let worst = health.groups.iter().map(of_group).max();
    let nearly_full = |filling: &Filling| filling.used_percent >= FULL_PERCENT;
    let blemished = !health.silent.is_empty()
        || !health.troubles.is_empty()
        || health.groups.is_empty()
        || health.filling.iter().any(nearly_full);
    let least = match blemished {
        true => State::Degraded,
        false => State::Healthy,
    };
    worst.unwrap_or(State::Healthy).max(least)
}

impl Observed<'_> {
    fn is_young(&self) -> bool {
        self.leading < YOUNG
    }

    fn fresh(&self) -> impl Iterator<Item = (NodeId, &Report)> {
        let reports = self.reports.iter();
        reports
            .filter(|(node, report)| report.age <= FRESH && self.map.node(**node).is_some())
            .map(|(node, report)| (*node, report))
    }

    fn is_fresh(&self, node: NodeId) -> bool {
        let report = self.reports.get(&node);
        report.is_some_and(|report| report.age <= FRESH)
    }

    fn attest(&self, node: NodeId, group: GroupId) -> Option<&Attest> {
        let report = self.reports.get(&node)?;
        (report.age <= FRESH).then(|| report.groups.get(&group))?
    }

    fn group(&self, config: &GroupConfig) -> GroupHealth {
        let has_copy = |node: NodeId| {
            let attest = self.attest(node, config.group);
            config.is_in_sync(node) && attest.is_some_and(|attest| attest.complete)
        };
        let may_have_copy = |node: NodeId| {
            config.is_in_sync(node)
                && match self.attest(node, config.group) {
                    Some(attest) => !attest.complete && attest.eligible,
                    // A heartbeat before it learned of the group says nothing either.
                    None => self.is_young() || self.is_fresh(node),
                }
        };
        let members = || config.members.iter().copied();
        let attested: Vec<_> = members().filter(|node| has_copy(*node)).collect();
        let possible: Vec<_> = members().filter(|node| may_have_copy(*node)).collect();
        let wanted = wanted(config);
        let damaged = attested
            .iter()
            .filter_map(|node| self.attest(*node, config.group));
        let damaged_blocks = damaged.map(|attest| attest.damaged_blocks).sum();
        let level = match attested.len() {
            copies if copies >= wanted && damaged_blocks > 0 => Level::Reduced,
            copies if copies >= wanted => Level::Full,
            _ if !possible.is_empty() && attested.len() < 2 => Level::Unattested,
            0 => Level::Lost,
            1 => Level::LastCopy,
            _ => Level::Reduced,
        };
        let (chunks, bytes) = self.amount(config, &attested);
        GroupHealth {
            group: config.group,
            level,
            missing: members().filter(|node| !attested.contains(node)).collect(),
            attested,
            possible,
            wanted,
            quorum: config.write_quorum(),
            chunks,
            bytes,
            damaged_blocks,
        }
    }

    /// Chunks and bytes of a group: what members with a copy say, else the last word of any.
    fn amount(&self, config: &GroupConfig, attested: &[NodeId]) -> (u64, u64) {
        let members = match attested {
            [] => &config.members[..],
            attested => attested,
        };
        let said = members
            .iter()
            .filter_map(|node| self.reports.get(node)?.groups.get(&config.group));
        said.fold((0, 0), |(chunks, bytes), attest| {
            (chunks.max(attest.chunks), bytes.max(attest.bytes))
        })
    }

    fn repairs(&self) -> Vec<Repair> {
        let mut repairs = Vec::new();
        for config in &self.map.groups {
            let Some(attest) = self.attest(config.primary, config.group) else {
                continue;
            };
            for progress in &attest.catching_up {
                let earlier = self.earlier(config, progress.node);
                repairs.push(repair(config.group, *progress, earlier));
            }
        }
        repairs
    }

    /// What the primary said of a member before, and how long before.
    fn earlier(&self, config: &GroupConfig, member: NodeId) -> Option<(Duration, Progress)> {
        let (before, groups) = self.reports.get(&config.primary)?.earlier.as_ref()?;
        let progresses = groups.get(&config.group)?.catching_up.iter();
        let mut of_member = progresses.filter(|progress| progress.node == member);
        Some((*before, *of_member.next()?))
    }

    fn filling(&self) -> Vec<Filling> {
        let used = |(node, report): (NodeId, &Report)| {
            let used = report.capacity_bytes.saturating_sub(report.free_bytes);
            let percent = (u128::from(used) * 100).checked_div(report.capacity_bytes.into())?;
            Some(Filling {
                node,
                used_percent: u64::try_from(percent).unwrap_or(100),
                free_bytes: report.free_bytes,
            })
        };
        let mut filling: Vec<_> = self
            .fresh()
            .filter_map(used)
            .filter(|filling| filling.used_percent >= FILLING_PERCENT)
            .collect();
        filling.sort_by_key(|filling| std::cmp::Reverse(filling.used_percent));
        filling
    }
}

fn repair(group: GroupId, progress: Progress, earlier: Option<(Duration, Progress)>) -> Repair {
    // A catch-up that began anew has no rate yet.
    let earlier = earlier.filter(|(_, before)| {
        before.chunks_done <= progress.chunks_done && before.bytes_copied <= progress.bytes_copied
    });
    let rate = |now: u64, then: u64, apart: Duration| {
        let millis = u64::try_from(apart.as_millis()).unwrap_or(u64::MAX).max(1);
        (now - then).saturating_mul(1000) / millis
    };
    let chunks_per_s =
        earlier.map(|(apart, before)| rate(progress.chunks_done, before.chunks_done, apart));
    let bytes_per_s =
        earlier.map(|(apart, before)| rate(progress.bytes_copied, before.bytes_copied, apart));
    let chunks_left = progress.chunks.saturating_sub(progress.chunks_done);
    let left = match earlier {
        Some((apart, before)) if progress.chunks_done > before.chunks_done => {
            let done = progress.chunks_done - before.chunks_done;
            Some(apart.mul_f64(chunks_left as f64 / done as f64))
        }
        _ => None,
    };
    Repair {
        group,
        progress,
        chunks_per_s,
        bytes_per_s,
        left,
    }
}
