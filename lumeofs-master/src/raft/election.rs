//! The fast election (rule R2): a leader whose process is gone, or was restarted and so leads no more, is
//! replaced at once, not after openraft's time-outs for a silent one.
//!
//! openraft's voters refuse each other while they believe in the old leader, unless they have asked
//! for an election themselves. So every survivor asks, at its own pace, until a leader is known.

use super::network::RaftServer;
use super::presence::Presence;
use super::types::Raft;
use lumeofs_base::RaftGroupId;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::rng::SplitMix64;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How often the state is looked at.
const LOOK: Duration = Duration::from_millis(25);
/// Pause between two attempts to win the first election of a new group.
const FOUND_PACE: Duration = Duration::from_millis(200);
/// Attempts of a restarted leader.
const OWN_TRIES: u32 = 10;
/// How often the pause between attempts doubles.
const DOUBLINGS_MAX: u32 = 4;

/// Asks for votes in a new group until it has its first leader: the other masters may be starting
/// just now.
pub(super) async fn found(raft: Raft, server: Arc<RaftServer>) {
    while has_no_leader(&raft) {
        server.elect();
        sleep(FOUND_PACE).await;
    }
}

/// Asks for votes after a restart of the leader: nobody else knows yet that it leads no more. If that does
/// not help soon, a quorum is missing, and openraft's time-outs go on.
pub(super) async fn replace_own(raft: Raft, server: Arc<RaftServer>) {
    let mut tries = 0;
    while tries < OWN_TRIES && has_no_leader(&raft) {
        sleep(LOOK).await;
        if has_no_leader(&raft) && server.elect() {
            sleep(pause(FOUND_PACE, tries)).await;
            tries += 1;
        }
    }
}

/// Pause after an attempt, longer each time: on a slow disk the votes of an attempt may arrive only after a short one,
/// and each new attempt voids those of the one before. Up to half of it is chance: masters that began together would
/// meet again with every attempt.
fn pause(first: Duration, attempts_before: u32) -> Duration {
    let least = first * (1 << attempts_before.min(DOUBLINGS_MAX));
    let mut chance = SplitMix64::new(SystemClock.monotonic().as_nanos() as u64);
    least + Duration::from_millis(chance.below(1 + least.as_millis() as u64 / 2))
}

/// Whether the leader votes no more: it was removed, and leads only until the others know.
fn has_left(raft: &Raft, leader: u64) -> bool {
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow();
    let mut voters = metrics.membership_config.membership().voter_ids();
    voters.all(|voter| voter != leader)
}

fn has_no_leader(raft: &Raft) -> bool {
    raft.server_metrics().borrow().current_leader.is_none()
}

/// Runs for ever: asks for elections whenever the known leader is gone.
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
    let mut attempts = 0;
    loop {
        sleep(LOOK).await;
        let leader = metrics.borrow().current_leader;
        let next = match (leader, replacing) {
            (Some(leader), _)
                if leader == me
                    || !(presence.is_gone(leader)
                        || server.has_resigned(leader)
                        || has_left(&raft, leader)) =>
            {
                (replacing, attempts) = (None, 0);
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
            tracing::info!(%group, gone = next.0, "the leader is gone, asking for votes");
            replacing = Some((next.0, Instant::now() + pause(pace, attempts)));
            attempts += 1;
        }
    }
}
