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
/// Chunks looked at in one go.
const PAGE: usize = 4096;
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
    loop {
        sleep(LOOK).await;
        if service.group.leadership().is_none() {
            lanes.clear();
            continue;
        }
        let queue = service
            .group
            .store()
            .read(|tables| namespace::freed_chunks(tables, PAGE));
        if queue.is_empty() {
            // Idle connections are not worth keeping.
            lanes.clear();
            continue;
        }
        if service.group.linearizable().await.is_err() {
            continue;
        }
        let now = SystemClock.monotonic();
        let map = Arc::new(service.controller.store().read(controller::cluster_map));
        let mut rounds = JoinSet::new();
        for (group, chunks) in by_group(queue) {
            let lane = lanes.remove(&group).unwrap_or_default();
            if lane.not_before > now {
                lanes.insert(group, lane);
                continue;
            }
            rounds.spawn(delete(
                service.identity.clone(),
                map.clone(),
                group,
                lane,
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

fn by_group(queue: Vec<(ChunkId, GroupId)>) -> BTreeMap<GroupId, Vec<ChunkId>> {
    let mut groups: BTreeMap<GroupId, Vec<ChunkId>> = BTreeMap::new();
    for (chunk, group) in queue {
        let chunks = groups.entry(group).or_default();
        if chunks.len() < GROUP_MAX {
            chunks.push(chunk);
        }
    }
    groups
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
