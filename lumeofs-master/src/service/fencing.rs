//! Shuts sessions that have ended out at the replica groups, then closes them when their leases are over too (rule S3).
//!
//! A group has the fence when it is on the disks of its in-sync members: from then on each of its primaries has it.
//! A group that does not answer keeps the sessions waiting for as long as the cluster map has it: no time that passes
//! makes what its members may still take from their clients harmless.

use super::metadata::MetadataService;
use super::reclaim::{Connection, ask, of_group};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{ClusterMap, Code, Fence, FsError, FsResult, GroupId, SessionId};
use lumeofs_meta::op::Internal;
use lumeofs_meta::{controller, namespace};
use lumeofs_proto::auth::Identity;
use lumeofs_proto::data::ChunkRequest;
use lumeofs_proto::frame::Op;
use lumeofs_proto::nonblocking::connect;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How often sessions that have ended are looked for.
const LOOK: Duration = Duration::from_millis(100);
/// Pause before a group that did not take a fence is asked again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often a wait that goes on is mentioned in the log.
const MENTION_EVERY: Duration = Duration::from_secs(30);
/// Groups that are told at once.
const TELL_MAX: usize = 64;

/// Which fence each group has, as a leadership was told by the group itself.
#[derive(Default)]
struct Told {
    fences: HashMap<GroupId, u64>,
    not_before: HashMap<GroupId, Duration>,
    mentioned: Duration,
}

impl Told {
    /// Groups that lack a fence and may be asked now.
    fn due(&self, groups: &[GroupId], number: u64, now: Duration) -> Vec<GroupId> {
        let rests = |group: &GroupId| self.not_before.get(group).is_some_and(|at| *at > now);
        let lacking = self.lacking(groups, number).into_iter();
        lacking
            .filter(|group| !rests(group))
            .take(TELL_MAX)
            .collect()
    }

    fn lacking(&self, groups: &[GroupId], number: u64) -> Vec<GroupId> {
        let has = |group: &GroupId| self.fences.get(group).is_some_and(|told| *told >= number);
        let groups = groups.iter().copied();
        groups.filter(|group| !has(group)).collect()
    }

    /// The newest fence that all groups have.
    fn everywhere(&self, groups: &[GroupId]) -> u64 {
        let told = |group| self.fences.get(group).copied().unwrap_or(0);
        groups.iter().map(told).min().unwrap_or(u64::MAX)
    }

    fn answered(&mut self, group: GroupId, number: u64, result: &FsResult<()>, now: Duration) {
        match result {
            Ok(()) => {
                self.fences.insert(group, number);
                self.not_before.remove(&group);
            }
            Err(error) => {
                tracing::debug!(%group, %error, "a group did not take a fence yet");
                self.not_before.insert(group, now + RETRY_AFTER);
            }
        }
    }

    fn mention(&mut self, groups: &[GroupId], ending: &[(SessionId, u64)], now: Duration) {
        let Some((_, number)) = ending.iter().min_by_key(|(_, number)| *number) else {
            self.mentioned = now;
            return;
        };
        if now.saturating_sub(self.mentioned) < MENTION_EVERY {
            return;
        }
        self.mentioned = now;
        tracing::warn!(
            sessions = ending.len(),
            groups = ?self.lacking(groups, *number),
            "sessions that have ended are not shut out at groups that do not answer"
        );
    }
}

/// Runs for ever: fences while this master leads.
pub(crate) async fn fence_ended_sessions(service: Arc<MetadataService>) {
    let mut told = Told::default();
    let mut led = None;
    loop {
        sleep(LOOK).await;
        let leadership = service.group.leadership();
        if leadership != led {
            led = leadership;
            told = Told::default();
            told.mentioned = SystemClock.monotonic();
        }
        let Some(term) = leadership.map(|leadership| leadership.term) else {
            continue;
        };
        let store = service.group.store();
        let (ending, fence, has_allocated) = store.read(|tables| {
            let ending = namespace::ending_sessions(tables);
            let fence = (!ending.is_empty()).then(|| namespace::fence(tables));
            let has_allocated = namespace::has_allocated(tables);
            (ending, fence.unwrap_or_default(), has_allocated)
        });
        let map = Arc::new(service.controller.store().read(controller::cluster_map));
        let groups: Vec<_> = map.groups.iter().map(|config| config.group).collect();
        told.mention(&groups, &ending, SystemClock.monotonic());
        if ending.is_empty() || service.group.linearizable().await.ok() != leadership {
            continue;
        }
        // A map that this master does not have yet must not count as one without groups.
        let may_have_groups = groups.is_empty() && has_allocated;
        if may_have_groups && service.controller.linearizable().await.is_err() {
            continue;
        }
        tell(&service.identity, &map, &groups, &fence, &mut told).await;
        let everywhere = told.everywhere(&groups);
        for (session, number) in ending {
            let is_over = number <= everywhere && service.leases.may_be_closed(term, session);
            if is_over && !close(&service, session).await {
                break;
            }
        }
    }
}

/// Tells all groups that can be asked now of a fence.
async fn tell(
    identity: &Identity,
    map: &Arc<ClusterMap>,
    groups: &[GroupId],
    fence: &Fence,
    told: &mut Told,
) {
    let mut asked = JoinSet::new();
    for group in told.due(groups, fence.number, SystemClock.monotonic()) {
        let (identity, map, fence) = (identity.clone(), map.clone(), fence.clone());
        asked.spawn(async move { (group, tell_group(&identity, &map, group, &fence).await) });
    }
    while let Some(Ok((group, result))) = asked.join_next().await {
        told.answered(group, fence.number, &result, SystemClock.monotonic());
    }
}

/// Has a group take a fence; it is on disk at all in-sync members when this returns.
async fn tell_group(
    identity: &Identity,
    map: &ClusterMap,
    group: GroupId,
    fence: &Fence,
) -> FsResult<()> {
    let config = map
        .group(group)
        .ok_or_else(|| FsError::new(Code::WrongGroup, format!("no group {group}")))?;
    let primary = map
        .node(config.primary)
        .ok_or_else(|| FsError::new(Code::WrongGroup, format!("no node {}", config.primary)))?;
    let (reader, writer, _) = connect(&primary.address, identity).await?;
    let mut connection: Connection = (reader, writer);
    let request = ChunkRequest {
        durable: true,
        fence: Some(lumeofs_proto::data::Fence {
            number: fence.number,
            below: fence.below,
            live: fence.live.iter().map(|id| id.get()).collect(),
        }),
        ..of_group(config)
    };
    let replies = ask(&mut connection, Op::Fence, &[request]).await?;
    replies.into_iter().try_for_each(|reply| reply.map(drop))
}

async fn close(service: &MetadataService, session: SessionId) -> bool {
    let done = service
        .propose_internal(Internal::CloseEnded { session })
        .await;
    match done.and_then(|done| done.reply) {
        Ok(_) => {
            tracing::info!(%session, "an ended session is shut out everywhere and closed");
            true
        }
        Err(error) => {
            super::log_failure("closing an ended session", &error);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: GroupId = GroupId(1);
    const TWO: GroupId = GroupId(2);

    #[test]
    fn a_fence_is_up_when_the_last_group_has_it_and_older_answers_do_not_count_for_it() {
        let (mut told, now) = (Told::default(), Duration::from_secs(100));
        let groups = [ONE, TWO];
        assert_eq!(
            (told.everywhere(&groups), told.everywhere(&[])),
            (0, u64::MAX)
        );
        told.answered(ONE, 2, &Ok(()), now);
        assert_eq!(told.everywhere(&groups), 0);
        told.answered(TWO, 1, &Ok(()), now);
        assert_eq!(told.everywhere(&groups), 1);
        assert_eq!(told.due(&groups, 2, now), [TWO]);
        // A group that the map has no more is not waited for.
        assert_eq!(told.everywhere(&[ONE]), 2);
    }

    #[test]
    fn a_group_that_does_not_answer_is_asked_again_after_a_pause() {
        let (mut told, now) = (Told::default(), Duration::from_secs(100));
        told.answered(ONE, 1, &Err(Code::Timeout.into()), now);
        assert_eq!(told.due(&[ONE, TWO], 1, now), [TWO]);
        assert_eq!(told.due(&[ONE], 1, now + RETRY_AFTER), [ONE]);
        assert_eq!(told.everywhere(&[ONE]), 0);
    }
}
