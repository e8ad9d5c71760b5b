//! Has lost replicas made again, drains datanodes and evens out load: carries out what `lumeofs_meta`'s planner says, while
//! this master leads.

use super::controller::{ALIVE, ControllerService};
use crate::raft::Leadership;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{ClusterMap, GroupId, NodeId, NodeState};
use lumeofs_meta::controller::repair::{Presence, View, plan};
use lumeofs_meta::controller::{self, ControllerCommand, ControllerReply};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Between two plans.
const LOOK: Duration = Duration::from_millis(500);

/// What the leader remembers of the datanodes, at one moment.
pub(super) struct Sight {
    /// When each was heard of last, and which groups it said that it has lost.
    pub(super) nodes: BTreeMap<NodeId, (Duration, BTreeSet<GroupId>)>,
    now: Duration,
    /// When this master began to lead: what was silent before it is not known.
    begun: Duration,
    patience: Duration,
}

impl View for Sight {
    fn presence(&self, node: NodeId) -> Presence {
        let heard = self.nodes.get(&node).map_or(Duration::ZERO, |(at, _)| *at);
        let silence = |since| self.now.saturating_sub(since);
        if silence(heard) <= ALIVE {
            Presence::Alive
        } else if silence(heard.max(self.begun)) > self.patience.max(ALIVE) {
            Presence::Gone
        } else {
            Presence::Silent
        }
    }

    fn has_lost(&self, node: NodeId, group: GroupId) -> bool {
        let lost = |(_, lost): &(Duration, BTreeSet<GroupId>)| lost.contains(&group);
        self.nodes.get(&node).is_some_and(lost)
    }
}

/// Runs for ever.
pub(crate) async fn repair(service: Arc<ControllerService>) {
    // A new leader waits for as long as one may be silent before it judges anybody.
    let mut led: Option<(Leadership, Duration)> = None;
    loop {
        sleep(LOOK).await;
        let Some(leadership) = service.group().leadership() else {
            led = None;
            continue;
        };
        let now = SystemClock.monotonic();
        let (of, begun) = *led.get_or_insert((leadership, now));
        if of != leadership {
            led = None;
            continue;
        }
        if now.saturating_sub(begun) <= ALIVE || service.group().linearizable().await.is_err() {
            continue;
        }
        let map = service.group().store().read(controller::cluster_map);
        let sight = Sight {
            nodes: service.heard_of(),
            now,
            begun,
            patience: Duration::from_millis(map.repair.after_ms),
        };
        for command in next_steps(&map, &sight) {
            if let Err(error) = carry_out(&service, command).await {
                super::log_failure("a step of repair", &error);
                break;
            }
        }
    }
}

/// What to do now, in order.
fn next_steps(map: &ClusterMap, sight: &Sight) -> Vec<ControllerCommand> {
    let holds = |node: NodeId| {
        map.groups
            .iter()
            .any(|config| config.members.contains(&node))
    };
    let goes = |state| matches!(state, NodeState::Draining { remove: true, .. });
    let empty = map
        .nodes
        .iter()
        .filter(|node| goes(node.state) && !holds(node.id));
    let removals = empty.map(|node| ControllerCommand::RemoveNode(node.id));
    let changes = plan(map, sight).into_iter().filter_map(|config| {
        let expected = map.group(config.group)?.epoch;
        Some(ControllerCommand::Reassign { expected, config })
    });
    removals.chain(changes).collect()
}

async fn carry_out(
    service: &ControllerService,
    command: ControllerCommand,
) -> lumeofs_base::FsResult<()> {
    match service.propose(command.clone()).await? {
        ControllerReply::Done | ControllerReply::Masters(_) => tracing::info!(?command, "done"),
        ControllerReply::Config(Ok(config)) => tracing::info!(
            group = %config.group, epoch = %config.epoch, members = ?config.members,
            in_sync = ?config.in_sync, leaving = ?config.leaving, "members of a group changed"
        ),
        // The group's members were faster: the next plan knows.
        ControllerReply::Config(Err((error, _))) | ControllerReply::Refused(error) => {
            tracing::debug!(%error, "a step of repair came too late");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(heard: Option<u64>, now: u64, begun: u64) -> Sight {
        let second = Duration::from_secs;
        let seen = |at| (NodeId(1), (second(at), BTreeSet::new()));
        Sight {
            nodes: heard.map(seen).into_iter().collect(),
            now: second(now),
            begun: second(begun),
            patience: second(300),
        }
    }

    #[test]
    fn silence_counts_from_the_election_at_the_earliest() {
        let presence = |sight: Sight| sight.presence(NodeId(1));
        assert_eq!(presence(sight(Some(1000), 1004, 0)), Presence::Alive);
        assert_eq!(presence(sight(Some(1000), 1200, 0)), Presence::Silent);
        assert_eq!(presence(sight(Some(1000), 1301, 0)), Presence::Gone);
        assert_eq!(presence(sight(Some(1000), 1301, 1200)), Presence::Silent);
        assert_eq!(presence(sight(None, 1301, 1200)), Presence::Silent);
        assert_eq!(presence(sight(None, 1501, 1200)), Presence::Gone);
    }
}
