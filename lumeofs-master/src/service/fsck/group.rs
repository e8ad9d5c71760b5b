//! One group: its lists compared, and what looked wrong looked at again.

use super::compare::{self, Fault, Held, Sight};
use super::lists::List;
use super::report::Reporter;
use super::{SUSPECTS_MAX, table};
use crate::service::metadata::MetadataService;
use lumeofs_base::{ChunkId, ClusterMap, FsResult, GroupConfig, GroupId, NodeId};
use lumeofs_meta::op::Internal;
use lumeofs_meta::{controller, namespace};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Orphans that one command queues.
const COMMAND_CHUNKS: usize = 256;

/// A chunk that looked wrong.
pub(super) struct Suspect {
    group: GroupId,
    first: Sight,
}

/// What is compared.
pub(super) struct Scope<'a> {
    pub(super) map: &'a ClusterMap,
    pub(super) config: &'a GroupConfig,
    /// Chunks of the group that files name, in order.
    pub(super) named: &'a [u64],
    /// Ids from here on belong to files that are being made.
    pub(super) next_chunk: u64,
}

/// Compares the lists of one group and adds what looks wrong. What cannot be reached is reported, not an error.
pub(super) async fn compare_group(
    service: &Arc<MetadataService>,
    reporter: &mut Reporter,
    scope: &Scope<'_>,
    suspects: &mut Vec<Suspect>,
) -> FsResult<()> {
    let (config, mut rest) = (scope.config, scope.named);
    let mut lists = open(service, scope.map, config, Some(reporter)).await?;
    if lists.is_empty() {
        return Ok(());
    }
    loop {
        for list in &mut lists {
            if let Err(error) = list.fill().await {
                let text = format!("its list broke off: {error}");
                reporter
                    .unchecked(config.group, Some(list.node), &text)
                    .await?;
                return Ok(());
            }
        }
        let upto = lists.iter().map(List::upto).min().unwrap_or(u64::MAX);
        let (part, later) = rest.split_at(rest.partition_point(|chunk| *chunk <= upto));
        rest = later;
        let pages: Vec<(NodeId, Vec<Held>)> = lists
            .iter_mut()
            .map(|list| (list.node, list.take(upto)))
            .collect();
        let pages: Vec<_> = pages
            .iter()
            .map(|(node, page)| (*node, &page[..]))
            .collect();
        let (mut found, holes) = compare::compare(part, &pages);
        reporter.holes(holes);
        drop_expected(service, &mut found, scope.next_chunk);
        for first in found {
            if suspects.len() == SUSPECTS_MAX {
                reporter.untold();
                continue;
            }
            let group = config.group;
            suspects.push(Suspect { group, first });
        }
        if lists.iter().all(List::is_done) && rest.is_empty() {
            return Ok(());
        }
    }
}

/// Drops chunks without a file that are queued to be deleted, or belong to files that are being made.
fn drop_expected(service: &MetadataService, found: &mut Vec<Sight>, next_chunk: u64) {
    service.group.store().read(|tables| {
        found.retain(|sight| {
            let is_freed = || namespace::freed_group(tables, ChunkId(sight.chunk)).is_some();
            sight.named || (sight.chunk < next_chunk && !is_freed())
        });
    });
}

/// Lists of the in-sync members that answer and are in sync by their own word too.
async fn open(
    service: &Arc<MetadataService>,
    map: &ClusterMap,
    config: &GroupConfig,
    mut reporter: Option<&mut Reporter>,
) -> FsResult<Vec<List>> {
    let mut lists = Vec::new();
    for node in &config.in_sync {
        match List::open(&service.identity, map, config.group, *node).await {
            Ok(list) => lists.push(list),
            Err(error) => {
                if let Some(reporter) = &mut reporter {
                    let text = error.to_string();
                    reporter.unchecked(config.group, Some(*node), &text).await?;
                }
            }
        }
    }
    Ok(lists)
}

/// Looks at suspects again, reports what is wrong for sure, and queues orphans for deletion if told to.
pub(super) async fn look_again(
    service: &Arc<MetadataService>,
    reporter: &mut Reporter,
    suspects: &[Suspect],
    repair: bool,
) -> FsResult<()> {
    let wanted: BTreeSet<u64> = suspects.iter().map(|suspect| suspect.first.chunk).collect();
    // Members first: a file that names the chunk after that is one that has named it all the time.
    let seconds = second_sights(service, reporter, suspects).await?;
    let named = table::find(service, wanted).await?;
    let inodes = named.values().map(|(ino, _)| *ino).collect();
    let paths = table::paths(service, inodes).await;
    let mut orphans = Vec::new();
    for (suspect, second) in suspects.iter().zip(seconds) {
        let Some(mut second) = second else { continue };
        let home = named.get(&suspect.first.chunk);
        if let Some((ino, group)) = home.filter(|(_, group)| *group != suspect.group) {
            if second
                .held
                .iter()
                .any(|(_, held)| held.is_some_and(|held| !held.deleted))
            {
                reporter
                    .misplaced(suspect.group, second.chunk, *ino, *group)
                    .await?;
            }
            continue;
        }
        second.named = home.is_some();
        let chunk = ChunkId(second.chunk);
        let freed = |tables: &_| namespace::freed_group(tables, chunk).is_some();
        if !second.named && service.group.store().read(freed) {
            continue;
        }
        for fault in compare::confirmed(&suspect.first, &second) {
            if fault == Fault::Orphan {
                orphans.push((chunk, suspect.group));
                continue;
            }
            let ino = home.map(|(ino, _)| *ino).unwrap_or_default();
            let path = paths.get(&ino).cloned().unwrap_or_default();
            reporter
                .fault(suspect.group, chunk, fault, ino, path)
                .await?;
        }
    }
    for part in orphans.chunks(COMMAND_CHUNKS) {
        let mut repaired = false;
        if repair {
            let chunks = part.to_vec();
            let queued = service.propose_internal(Internal::FreeChunks { chunks });
            queued.await?.reply?;
            repaired = true;
        }
        for (chunk, group) in part {
            reporter.orphan(*group, *chunk, repaired).await?;
        }
    }
    Ok(())
}

/// What the members of their groups have of the suspects now; `None` if they cannot be asked. `named` is not known
/// yet.
async fn second_sights(
    service: &Arc<MetadataService>,
    reporter: &mut Reporter,
    suspects: &[Suspect],
) -> FsResult<Vec<Option<Sight>>> {
    let map = service.controller.store().read(controller::cluster_map);
    let mut groups: BTreeMap<GroupId, Vec<List>> = BTreeMap::new();
    let mut seconds = Vec::with_capacity(suspects.len());
    for (done, suspect) in suspects.iter().enumerate() {
        if done.is_multiple_of(100) {
            let (done, all) = (done as u64, suspects.len() as u64);
            reporter.progress("looking again", done, all).await?;
        }
        if !groups.contains_key(&suspect.group)
            && let Some(config) = map.group(suspect.group)
        {
            // Who cannot be asked was reported at the first look, or is no longer in sync.
            let lists = open(service, &map, config, None).await?;
            groups.insert(suspect.group, lists);
        }
        let lists = groups.entry(suspect.group).or_default();
        let mut held = Vec::new();
        for list in lists.iter_mut() {
            match list.one(suspect.first.chunk).await {
                Ok(found) => held.push((list.node, found)),
                Err(error) => {
                    let (node, text) = (Some(list.node), error.to_string());
                    reporter.unchecked(suspect.group, node, &text).await?;
                    held.clear();
                    break;
                }
            }
        }
        let sight = Sight {
            chunk: suspect.first.chunk,
            named: false,
            held,
        };
        seconds.push(Some(sight).filter(|sight| !sight.held.is_empty()));
    }
    Ok(seconds)
}
