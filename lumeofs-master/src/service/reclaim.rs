//! Deletes chunks that no file has any more at the datanodes, then takes them off the queue: when their
//! tombstones are on disk, since nobody would ask for them again.

use super::eras::Eras;
use super::metadata::MetadataService;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::limits::REQUEST_TIMEOUT;
use lumeofs_base::{ChunkId, ClusterMap, Code, ERA_MARK, FsError, FsResult, GroupConfig, GroupId};
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

pub(super) type Connection = (FrameReader, FrameWriter);

/// What one group is asked to do.
struct Job {
    group: GroupId,
    /// The era that it must hear of first.
    era: Option<u32>,
    chunks: Vec<ChunkId>,
}

/// What came of it.
struct Outcome {
    job: Job,
    /// It has heard of the era.
    told: bool,
    deleted: Vec<ChunkId>,
}

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
    let mut eras = None;
    let mut led = None;
    loop {
        sleep(LOOK).await;
        let leadership = service.group.leadership();
        if leadership != led {
            (led, eras) = (leadership, None);
            lanes.clear();
        }
        if leadership.is_none() {
            continue;
        }
        let now = SystemClock.monotonic();
        let eras = eras.get_or_insert_with(|| Eras::new(now));
        let rests = |group| {
            lanes
                .get(&group)
                .is_some_and(|lane: &Lane| lane.not_before > now)
        };
        let store = service.group.store();
        let read = |after| store.read(|tables| namespace::freed_chunks_after(tables, after, PAGE));
        let due = gather(&mut at, rests, read);
        let is_empty = |tables: &_| namespace::freed_chunks_after(tables, ChunkId(0), 1).is_empty();
        if store.read(is_empty) {
            // Idle connections are not worth keeping.
            lanes.clear();
        }
        if store.read(namespace::is_held) {
            continue;
        }
        // After the queue: the era must not be older than what was freed in it.
        let era = store.read(namespace::era);
        // The leadership that read it still leads: an earlier one's late words are of an earlier era.
        if due.is_empty() || service.group.linearizable().await.ok() != leadership {
            continue;
        }
        if eras.is_due(now) {
            match service
                .propose_internal(Internal::BeginEra { after: era })
                .await
            {
                Ok(_) => eras.begun(now),
                Err(error) => super::log_failure("beginning an era", &error),
            }
            continue;
        }
        let map = Arc::new(service.controller.store().read(controller::cluster_map));
        let mut rounds = JoinSet::new();
        for (group, chunks) in due {
            let lane = lanes.remove(&group).unwrap_or_default();
            let job = Job {
                group,
                era: eras.to_tell(group, era),
                chunks,
            };
            rounds.spawn(delete(service.identity.clone(), map.clone(), lane, job));
        }
        let mut deleted = Vec::new();
        while let Some(Ok((lane, mut outcome))) = rounds.join_next().await {
            deleted.append(&mut outcome.deleted);
            lanes.insert(outcome.job.group, lane);
            if outcome.told {
                eras.told(outcome.job.group, era);
            }
        }
        if deleted.is_empty() {
            continue;
        }
        eras.deleted(deleted.len());
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

/// Deletes chunks of one group.
async fn delete(
    identity: Identity,
    map: Arc<ClusterMap>,
    mut lane: Lane,
    job: Job,
) -> (Lane, Outcome) {
    let mut outcome = Outcome {
        job,
        told: false,
        deleted: Vec::new(),
    };
    match try_delete(&identity, &map, &mut lane, &mut outcome).await {
        Ok(()) => lane.failures = 0,
        Err(error) => {
            lane.connection = None;
            lane.failures += 1;
            let backoff = Duration::from_millis(500) * (1 << lane.failures.min(6));
            lane.not_before = SystemClock.monotonic() + backoff.min(BACKOFF_MAX);
            tracing::debug!(group = %outcome.job.group, %error, "chunks could not be deleted yet");
        }
    }
    (lane, outcome)
}

async fn try_delete(
    identity: &Identity,
    map: &ClusterMap,
    lane: &mut Lane,
    outcome: &mut Outcome,
) -> FsResult<()> {
    let group = outcome.job.group;
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
    if let Some(era) = outcome.job.era {
        let request = ChunkRequest {
            chunk: ERA_MARK.get(),
            truncations: era,
            era,
            durable: true,
            ..of_group(config)
        };
        let replies = ask(connection, Op::Truncate, &[request]).await?;
        replies.into_iter().collect::<FsResult<Vec<_>>>()?;
        outcome.told = true;
    }
    let (mut gone, mut last, mut failure) = (Vec::new(), None, Ok(()));
    for chunks in outcome.job.chunks.chunks(IN_FLIGHT_MAX) {
        let requests = chunks.iter().map(|chunk| ChunkRequest {
            chunk: chunk.get(),
            ..of_group(config)
        });
        let requests: Vec<_> = requests.collect();
        let replies = ask(connection, Op::Delete, &requests).await?;
        for (chunk, reply) in chunks.iter().zip(replies) {
            match reply {
                Ok(reply) => {
                    gone.push(*chunk);
                    last = last.max(Some((reply.epoch, reply.sequence)));
                }
                Err(error) => failure = Err(error),
            }
        }
    }
    if let Some((after_epoch, after_sequence)) = last {
        let request = ChunkRequest {
            after_epoch,
            after_sequence,
            ..of_group(config)
        };
        let replies = ask(connection, Op::Sync, &[request]).await?;
        replies.into_iter().collect::<FsResult<Vec<_>>>()?;
        outcome.deleted = gone;
    }
    failure
}

pub(super) fn of_group(config: &GroupConfig) -> ChunkRequest {
    ChunkRequest {
        group: config.group.get(),
        epoch: config.epoch.get(),
        ..ChunkRequest::default()
    }
}

/// Sends requests at once; their replies, in the same order.
pub(super) async fn ask(
    connection: &mut Connection,
    op: Op,
    requests: &[ChunkRequest],
) -> FsResult<Vec<FsResult<ChunkReply>>> {
    let late = |_| Err(FsError::new(Code::Timeout, format!("{op:?} chunks")));
    timeout(REQUEST_TIMEOUT, exchange(connection, op, requests))
        .await
        .unwrap_or_else(late)
}

async fn exchange(
    (reader, writer): &mut Connection,
    op: Op,
    requests: &[ChunkRequest],
) -> FsResult<Vec<FsResult<ChunkReply>>> {
    let failed = |error: std::io::Error| FsError::from_net(&error, "delete chunks");
    for (number, request) in requests.iter().enumerate() {
        writer
            .request(op, number as u64, request, &[])
            .await
            .map_err(failed)?;
    }
    let mut replies: Vec<Option<FsResult<ChunkReply>>> = vec![None; requests.len()];
    for _ in requests {
        let frame = reader.receive().await.map_err(failed)?;
        let reply = replies
            .get_mut(frame.fixed.request as usize)
            .ok_or_else(|| FsError::new(Code::Refused, "reply to a request that was not made"))?;
        *reply = Some(frame.decode::<ChunkReply>());
    }
    let twice = || FsError::new(Code::Refused, "two replies to one request");
    let replies = replies.into_iter().map(|reply| reply.ok_or_else(twice));
    replies.collect()
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
