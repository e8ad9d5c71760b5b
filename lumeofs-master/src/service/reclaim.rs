//! Deletes chunks that no file has any more at the datanodes, then takes them off the queue.

use super::metadata::MetadataService;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::limits::REQUEST_TIMEOUT;
use lumeofs_base::{ChunkId, ClusterMap, Code, FsError, FsResult, GroupConfig, GroupId};
use lumeofs_meta::op::Internal;
use lumeofs_meta::{controller, namespace};
use lumeofs_proto::auth::Identity;
use lumeofs_proto::data::{ChunkReply, ChunkRequest};
use lumeofs_proto::frame::Op;
use lumeofs_proto::nonblocking::{FrameReader, FrameWriter, connect};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How often the queue is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Chunks of the queue that are read at once.
const PAGE: usize = 4096;
/// Pages read in one go, to find chunks of groups that answer behind those of groups that do not.
const PAGES_MAX: usize = 8;
/// Chunks of one group asked for in one go.
const GROUP_MAX: usize = 256;
/// Requests under way on one connection.
const IN_FLIGHT_MAX: usize = 16;
/// Longest pause after a group did not delete.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

type Connection = (FrameReader, FrameWriter);

/// A group's deletions: its connection and how it did lately.
#[derive(Default)]
struct Lane {
    connection: Option<(String, Connection)>,
    failures: u32,
    not_before: Duration,
}

/// Runs for ever: deletes while this master leads.
pub(crate) async fn reclaim_chunks(service: Arc<MetadataService>) {
    let mut lanes: HashMap<GroupId, Lane> = HashMap::new();
    let mut at = ChunkId(0);
    loop {
        sleep(LOOK).await;
        if service.group.leadership().is_none() {
            lanes.clear();
            continue;
        }
        let now = SystemClock.monotonic();
        let rests = |group| {
            lanes
                .get(&group)
                .is_some_and(|lane: &Lane| lane.not_before > now)
        };
        let store = service.group.store();
        let read = |after| store.read(|tables| namespace::freed_chunks_after(tables, after, PAGE));
        let due = gather(&mut at, rests, read);
        if store
            .read(|tables| namespace::freed_chunks_after(tables, ChunkId(0), 1))
            .is_empty()
        {
            // Idle connections are not worth keeping.
            lanes.clear();
        }
        if due.is_empty() || service.group.linearizable().await.is_err() {
            continue;
        }
        let map = Arc::new(service.controller.store().read(controller::cluster_map));
        let mut rounds = JoinSet::new();
        for (group, chunks) in due {
            rounds.spawn(delete(
                service.identity.clone(),
                map.clone(),
                group,
                lanes.remove(&group).unwrap_or_default(),
                chunks,
            ));
        }
        let mut deleted = Vec::new();
        while let Some(Ok((group, lane, mut done))) = rounds.join_next().await {
            deleted.append(&mut done);
            lanes.insert(group, lane);
        }
        if deleted.is_empty() {
            continue;
        }
        let done = Internal::ChunksDeleted { chunks: deleted };
        if let Err(error) = service.propose_internal(done).await {
            super::log_failure("recording deleted chunks", &error);
        }
    }
}

/// Chunks to delete now, of groups that do not rest, from the queue after `at`, which moves on and begins again at
/// the end: so every group's turn comes, however many chunks of others there are.
fn gather(
    at: &mut ChunkId,
    rests: impl Fn(GroupId) -> bool,
    read: impl Fn(ChunkId) -> Vec<(ChunkId, GroupId)>,
) -> BTreeMap<GroupId, Vec<ChunkId>> {
    let mut due: BTreeMap<GroupId, Vec<ChunkId>> = BTreeMap::new();
    for _ in 0..PAGES_MAX {
        let page = read(*at);
        *at = match page.last() {
            Some((last, _)) if page.len() == PAGE => *last,
            _ => ChunkId(0),
        };
        for (chunk, group) in page.into_iter().filter(|(_, group)| !rests(*group)) {
            let chunks = due.entry(group).or_default();
            if chunks.len() < GROUP_MAX {
                chunks.push(chunk);
            }
        }
        let is_full = due.values().any(|chunks| chunks.len() == GROUP_MAX);
        if is_full || *at == ChunkId(0) {
            break;
        }
    }
    due
}

/// Deletes chunks of one group; returns those that are gone.
async fn delete(
    identity: Identity,
    map: Arc<ClusterMap>,
    group: GroupId,
    mut lane: Lane,
    chunks: Vec<ChunkId>,
) -> (GroupId, Lane, Vec<ChunkId>) {
    let mut deleted = Vec::new();
    match try_delete(&identity, &map, group, &mut lane, &chunks, &mut deleted).await {
        Ok(()) => lane.failures = 0,
        Err(error) => {
            lane.connection = None;
            lane.failures += 1;
            let backoff = Duration::from_millis(500) * (1 << lane.failures.min(6));
            lane.not_before = SystemClock.monotonic() + backoff.min(BACKOFF_MAX);
            tracing::debug!(%group, %error, "chunks could not be deleted yet");
        }
    }
    (group, lane, deleted)
}

async fn try_delete(
    identity: &Identity,
    map: &ClusterMap,
    group: GroupId,
    lane: &mut Lane,
    chunks: &[ChunkId],
    deleted: &mut Vec<ChunkId>,
) -> FsResult<()> {
    let config = map
        .group(group)
        .ok_or_else(|| FsError::new(Code::WrongGroup, format!("no group {group}")))?;
    let primary = map
        .node(config.primary)
        .ok_or_else(|| FsError::new(Code::WrongGroup, format!("no node {}", config.primary)))?;
    if lane
        .connection
        .as_ref()
        .is_none_or(|(address, _)| *address != primary.address)
    {
        let (reader, writer, _) = connect(&primary.address, identity).await?;
        lane.connection = Some((primary.address.clone(), (reader, writer)));
    }
    let (_, connection) = lane.connection.as_mut().expect("it was just made");
    for chunks in chunks.chunks(IN_FLIGHT_MAX) {
        timeout(
            REQUEST_TIMEOUT,
            delete_some(connection, config, chunks, deleted),
        )
        .await
        .unwrap_or_else(|_| Err(FsError::new(Code::Timeout, "delete chunks")))?;
    }
    Ok(())
}

async fn delete_some(
    (reader, writer): &mut Connection,
    config: &GroupConfig,
    chunks: &[ChunkId],
    deleted: &mut Vec<ChunkId>,
) -> FsResult<()> {
    let failed = |error: std::io::Error| FsError::from_net(&error, "delete chunks");
    for (number, chunk) in chunks.iter().enumerate() {
        let request = ChunkRequest {
            group: config.group.get(),
            epoch: config.epoch.get(),
            chunk: chunk.get(),
            ..ChunkRequest::default()
        };
        writer
            .request(Op::Delete, number as u64, &request, &[])
            .await
            .map_err(failed)?;
    }
    let mut result = Ok(());
    for _ in chunks {
        let frame = reader.receive().await.map_err(failed)?;
        let chunk = chunks
            .get(frame.fixed.request as usize)
            .ok_or_else(|| FsError::new(Code::Refused, "reply to a request that was not made"))?;
        match frame.decode::<ChunkReply>() {
            Ok(_) => deleted.push(*chunk),
            // It never got there: no write reached it before the file went.
            Err(error) if error.code == Code::NotFound => deleted.push(*chunk),
            Err(error) => result = Err(error),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The groups of chunks 1, 2, ... as a queue.
    fn queue(groups: &[GroupId]) -> impl Fn(ChunkId) -> Vec<(ChunkId, GroupId)> {
        let all: Vec<_> = (1..).map(ChunkId).zip(groups.iter().copied()).collect();
        move |after| {
            let later = all.iter().filter(|(chunk, _)| *chunk > after);
            later.take(PAGE).copied().collect()
        }
    }

    #[test]
    fn chunks_of_a_group_that_is_down_do_not_hide_others() {
        let (down, up) = (GroupId(1), GroupId(2));
        let mut groups = vec![down; PAGE * PAGES_MAX * 2 + 17];
        groups.push(up);
        let last = ChunkId(groups.len() as u64);
        let mut at = ChunkId(0);
        let mut found = Vec::new();
        for _ in 0..3 {
            let due = gather(&mut at, |group| group == down, queue(&groups));
            found.push(due.get(&up).cloned().unwrap_or_default());
        }
        assert_eq!(found, [vec![], vec![], vec![last]]);
        assert_eq!(at, ChunkId(0), "it begins again");
    }

    #[test]
    fn a_long_queue_of_one_group_is_taken_in_parts_and_others_come_between() {
        let (many, few) = (GroupId(1), GroupId(2));
        let mut groups = vec![many; PAGE * 2];
        groups.push(few);
        let mut at = ChunkId(0);
        let round = |at: &mut ChunkId| gather(at, |_| false, queue(&groups));
        for _ in 0..2 {
            let due = round(&mut at);
            assert_eq!((due.len(), due[&many].len()), (1, GROUP_MAX));
        }
        assert_eq!(round(&mut at)[&few].len(), 1);
        assert_eq!(round(&mut at)[&many].len(), GROUP_MAX);
    }
}
