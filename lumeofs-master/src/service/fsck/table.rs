//! The table of chunks, read a page at a time on threads that may block.

use super::report::Reporter;
use crate::service::metadata::MetadataService;
use crate::service::paths::{self, PAGE};
use lumeofs_base::{ChunkId, Code, FsError, FsResult, GroupId, InodeId};
use lumeofs_meta::namespace;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long the paths of files are looked for.
const PATHS_WAIT: Duration = Duration::from_secs(20);

/// Where a chunk is named: its file, and the group that the file says.
pub(super) type Named = BTreeMap<u64, (InodeId, GroupId)>;

/// Chunks of each group that files name.
pub(super) async fn counts(
    service: &Arc<MetadataService>,
    reporter: &mut Reporter,
) -> FsResult<BTreeMap<GroupId, u64>> {
    let counts = read_all(service, BTreeMap::new(), |counts, _, _, group| {
        *counts.entry(group).or_default() += 1;
    });
    let counts = counts.await?;
    let all = counts.values().sum();
    reporter.begin_chunks(all).await?;
    Ok(counts)
}

/// Their ids, in order, of certain groups.
pub(super) async fn chunks_of(
    service: &Arc<MetadataService>,
    groups: BTreeSet<GroupId>,
) -> FsResult<BTreeMap<GroupId, Vec<u64>>> {
    let lists: BTreeMap<GroupId, Vec<u64>> = groups
        .into_iter()
        .map(|group| (group, Vec::new()))
        .collect();
    let lists = read_all(service, lists, |lists, _, chunk, group| {
        if let Some(list) = lists.get_mut(&group) {
            list.push(chunk.get());
        }
    });
    let mut lists = lists.await?;
    lists.values_mut().for_each(|list| list.sort_unstable());
    Ok(lists)
}

/// Where these chunks are named, now.
pub(super) async fn find(service: &Arc<MetadataService>, wanted: BTreeSet<u64>) -> FsResult<Named> {
    let found = read_all(
        service,
        (wanted, Named::new()),
        |(wanted, found), ino, chunk, group| {
            if wanted.contains(&chunk.get()) {
                found.insert(chunk.get(), (ino, group));
            }
        },
    );
    Ok(found.await?.1)
}

/// Paths of files, as far as they are found in time.
pub(super) async fn paths(
    service: &Arc<MetadataService>,
    wanted: BTreeSet<InodeId>,
) -> BTreeMap<InodeId, Vec<u8>> {
    if wanted.is_empty() {
        return BTreeMap::new();
    }
    let service = service.clone();
    let look = move || paths::paths_of(service.group.store(), &wanted, paths::now() + PATHS_WAIT);
    // Without them the inodes say which files.
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

async fn read_all<T: Send + 'static>(
    service: &Arc<MetadataService>,
    mut state: T,
    mut visit: impl FnMut(&mut T, InodeId, ChunkId, GroupId) + Send + 'static,
) -> FsResult<T> {
    // What is read must be all that anybody was told of.
    service.group.linearizable().await?;
    let service = service.clone();
    let read = move || {
        let mut at = None;
        loop {
            at = service.group.store().read(|tables| {
                namespace::chunks_after(tables, at, PAGE, |ino, chunk, group| {
                    visit(&mut state, ino, chunk, group);
                })
            });
            if at.is_none() {
                return state;
            }
        }
    };
    let failed = |error: tokio::task::JoinError| FsError::new(Code::Io, error.to_string());
    tokio::task::spawn_blocking(read).await.map_err(failed)
}
