//! The fast election (rule R2): a leader whose process is gone is replaced at once, not after
//! openraft's time-outs for a silent one.
//!
//! openraft's voters refuse each other while they believe in the old leader, unless they have asked
//! for an election themselves. So every survivor asks, at its own pace, until a leader is known.

use super::network::RaftServer;
use super::presence::Presence;
use super::types::Raft;
use lumeofs_base::RaftGroupId;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often the state is looked at.
const LOOK: Duration = Duration::from_millis(25);
/// Pause between two attempts to win the first election of a new group.
const FOUND_PACE: Duration = Duration::from_millis(200);

/// Asks for votes in a new group until it has its first leader: the other masters may be starting
/// just now.
pub(super) async fn found(raft: Raft, server: Arc<RaftServer>) {
    let metrics = raft.server_metrics();
    while metrics.borrow().current_leader.is_none() {
        server.elect();
        sleep(FOUND_PACE).await;
    }
}

/// Runs for ever: asks for elections whenever the known leader's process is gone.
pub(super) async fn run(
    group: RaftGroupId,
    raft: Raft,
    server: Arc<RaftServer>,
    presence: Arc<Presence>,
    me: u64,
    rank: usize,
) {
    let pace = Duration::from_millis(100 + 100 * rank as u64);
    let metrics = raft.server_metrics();
    // The leader that we are replacing, and when to ask again.
    let mut replacing: Option<(u64, Instant)> = None;
    loop {
        sleep(LOOK).await;
        let leader = metrics.borrow().current_leader;
        let next = match (leader, replacing) {
            (Some(leader), _) if leader == me || !presence.is_gone(leader) => {
                replacing = None;
                continue;
            }
            (Some(leader), None) => (leader, Instant::now()),
            (Some(leader), Some((_, next))) => (leader, next),
            (None, Some(waiting)) => waiting,
            // Nobody was leader before: openraft's own time-outs do it.
            (None, None) => continue,
        };
        if Instant::now() < next.1 {
            continue;
        }
        if server.elect() {
            tracing::info!(%group, gone = next.0, "leader's process is gone, asking for votes");
            replacing = Some((next.0, Instant::now() + pace));
        }
    }
}
