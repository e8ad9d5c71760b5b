//! Health of the data, for administrators: what datanodes attested, with the paths of files that are hurt.

use super::admin::AdminService;
use super::metadata::MetadataService;
use super::paths::{self, PAGE, now};
use lumeofs_base::{FsResult, GroupId, InodeId, NodeId};
use lumeofs_meta::controller::health::{self, GroupHealth, Health, Level, Observed, State};
use lumeofs_meta::{controller, namespace};
use lumeofs_proto::control as wire;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Groups, repairs, zones and other rows of each kind in one answer.
const ROWS_MAX: usize = 1000;
/// Files that are named at most.
const PATHS_MAX: usize = 1000;
/// How long files that are hurt are looked for, and their names: within the patience of who asks.
const LOOK_MAX: Duration = Duration::from_millis(1500);
/// Inodes that are counted at most.
const HURT_MAX: usize = 1 << 20;

/// Files with chunks in certain groups.
#[derive(Default)]
struct Hurt {
    files: Vec<wire::HurtFile>,
    count: u64,
    unfinished: bool,
}

/// What this master knows as the controller's leader.
pub(super) async fn report(
    admin: &AdminService,
    request: wire::HealthRequest,
) -> FsResult<wire::HealthReply> {
    let leadership = admin.controller_group.linearizable().await?;
    let map = admin.controller_group.store().read(controller::cluster_map);
    let reports = admin.controller.attests.reports();
    let health = health::health(Observed {
        map: &map,
        reports: &reports,
        leading: admin.controller.attests.leading(leadership),
    });
    let paths_max = (request.paths_max as usize).min(PATHS_MAX);
    let hurt = hurt_files(admin.metadata.clone(), &health, paths_max).await;
    let store = admin.metadata.group.store();
    let sessions = store.read(namespace::session_ids).len() as u64;
    let held = store.read(namespace::is_held);
    let sought = admin.controller_group.store().read(controller::sought);
    let sought = sought.map_or_else(Vec::new, |sought| sought.groups);
    // It may have ceased to lead while it looked: then others heard what it did not.
    admin.controller_group.check_leads()?;
    let known = to_wire(&health);
    let after_load = match (sought.is_empty(), held) {
        (false, _) => wire::health_reply::State::Critical,
        (true, true) => wire::health_reply::State::Degraded,
        (true, false) => wire::health_reply::State::Healthy,
    };
    Ok(wire::HealthReply {
        state: known.state.max(after_load.into()),
        sought: rows(&sought, |config| config.group.get()),
        held,
        answered_by: admin.controller_group.me(),
        sessions,
        datanodes: map.nodes.len() as u64,
        files: hurt.files,
        files_hurt: hurt.count,
        files_unfinished: hurt.unfinished,
        ..known
    })
}

async fn hurt_files(service: Arc<MetadataService>, health: &Health, paths_max: usize) -> Hurt {
    let hurts = |group: &&GroupHealth| matches!(group.level, Level::Lost | Level::LastCopy);
    let groups = health.groups.iter().filter(hurts);
    let groups: BTreeMap<GroupId, Level> = groups.map(|group| (group.group, group.level)).collect();
    if groups.is_empty() {
        return Hurt::default();
    }
    let look = move || look_for(&service, &groups, paths_max);
    let unfinished = || Hurt {
        unfinished: true,
        ..Hurt::default()
    };
    tokio::task::spawn_blocking(look)
        .await
        .unwrap_or_else(|_| unfinished())
}

fn look_for(
    service: &MetadataService,
    groups: &BTreeMap<GroupId, Level>,
    paths_max: usize,
) -> Hurt {
    let store = service.group.store();
    let deadline = now() + LOOK_MAX;
    let (mut at, mut last, mut count) = (None, InodeId(0), 0);
    let mut worst: BTreeMap<InodeId, (Level, GroupId)> = BTreeMap::new();
    let unfinished = loop {
        at = store.read(|tables| {
            namespace::chunks_after(tables, at, PAGE, |ino, _, group| {
                let Some(level) = groups.get(&group) else {
                    return;
                };
                // Rows come file by file.
                if ino != last {
                    (last, count) = (ino, count + 1);
                }
                let is_known = worst.contains_key(&ino);
                if is_known || worst.len() < paths_max {
                    let entry = worst.entry(ino).or_insert((*level, group));
                    *entry = (*entry).max((*level, group));
                }
            })
        });
        if at.is_none() {
            break false;
        }
        if now() >= deadline || count >= HURT_MAX {
            break true;
        }
    };
    let inodes: BTreeSet<InodeId> = worst.keys().copied().collect();
    let mut paths = paths::paths_of(store, &inodes, now() + LOOK_MAX / 2);
    let file = |(ino, (level, group)): (InodeId, (Level, GroupId))| wire::HurtFile {
        inode: ino.0,
        path: paths.remove(&ino).unwrap_or_default().into(),
        group: group.get(),
        level: name(level).to_owned(),
    };
    Hurt {
        files: worst.into_iter().map(file).collect(),
        count: count as u64,
        unfinished,
    }
}

fn name(level: Level) -> &'static str {
    match level {
        Level::Full => "full",
        Level::Reduced => "reduced",
        Level::Unattested => "unattested",
        Level::LastCopy => "last copy",
        Level::Lost => "lost",
    }
}

fn to_wire(health: &Health) -> wire::HealthReply {
    let count = |level| {
        let (groups, chunks) = health.at(level);
        Some(wire::LevelCount { groups, chunks })
    };
    let state = match health.state {
        State::Healthy => wire::health_reply::State::Healthy,
        State::Degraded => wire::health_reply::State::Degraded,
        State::Critical => wire::health_reply::State::Critical,
        State::Lost => wire::health_reply::State::Lost,
    };
    let not_full = health
        .groups
        .iter()
        .filter(|group| group.level != Level::Full);
    let mut not_full: Vec<_> = not_full.collect();
    not_full.sort_by_key(|group| (std::cmp::Reverse(group.level), group.group));
    let spare = |nodes: Option<u64>| nodes.map_or(-1, signed);
    wire::HealthReply {
        state: state.into(),
        partial: health.partial,
        full: count(Level::Full),
        reduced: count(Level::Reduced),
        last_copy: count(Level::LastCopy),
        lost: count(Level::Lost),
        unattested: count(Level::Unattested),
        groups: rows(&not_full, |group| of_group(group)),
        repairs: rows(&health.repairs, of_repair),
        survives_for_data: spare(health.survival.nodes_for_data),
        survives_for_writes: spare(health.survival.nodes_for_writes),
        zones: rows(&health.survival.zones, |zone| wire::ZoneLoss {
            zone: zone.zone.clone(),
            nodes: zone.nodes,
            groups_lost: zone.groups_lost,
            groups_unwritable: zone.groups_unwritable,
        }),
        filling: rows(&health.filling, |filling| wire::FillingNode {
            node: filling.node.get(),
            used_percent: filling.used_percent,
            free_bytes: filling.free_bytes,
        }),
        silent: rows(&health.silent, |node| node.get()),
        troubles: rows(&health.troubles, |(node, trouble)| wire::DiskTrouble {
            node: node.get(),
            trouble: trouble.clone(),
        }),
        ..wire::HealthReply::default()
    }
}

fn rows<T, R>(all: &[T], row: impl Fn(&T) -> R) -> Vec<R> {
    all.iter().take(ROWS_MAX).map(row).collect()
}

fn of_group(group: &GroupHealth) -> wire::GroupHealth {
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.get()).collect();
    wire::GroupHealth {
        group: group.group.get(),
        level: name(group.level).to_owned(),
        attested: ids(&group.attested),
        possible: ids(&group.possible),
        missing: ids(&group.missing),
        wanted: u32::try_from(group.wanted).unwrap_or(u32::MAX),
        write_quorum: u32::try_from(group.quorum).unwrap_or(u32::MAX),
        chunks: group.chunks,
        bytes: group.bytes,
        damaged_blocks: group.damaged_blocks,
    }
}

fn of_repair(repair: &health::Repair) -> wire::Repair {
    let known = |rate: Option<u64>| rate.map_or(-1, signed);
    wire::Repair {
        group: repair.group.get(),
        progress: Some(wire::CatchUpReport {
            node: repair.progress.node.get(),
            chunks_done: repair.progress.chunks_done,
            chunks: repair.progress.chunks,
            bytes_copied: repair.progress.bytes_copied,
        }),
        chunks_per_s: known(repair.chunks_per_s),
        bytes_per_s: known(repair.bytes_per_s),
        seconds_left: known(repair.left.map(|left| left.as_secs())),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
