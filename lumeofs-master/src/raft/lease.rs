//! The read lease of a leader (rule R3).
//!
//! A leader may answer from applied state while a quorum has acknowledged an append that was *sent*
//! less than [`RAFT_READ_LEASE`] ago. Nobody is elected in that time: a voter grants its vote only
//! after openraft's own lease, or after it called for an election itself, and the fast path does not
//! do that before [`RAFT_ELECT_AFTER`] after the last append it *received* (rule R2).
//!
//! Sending times are taken here, in front of the network, rather than from openraft's metrics, whose
//! samples have an unknown age.
//!
//! [`RAFT_ELECT_AFTER`]: lumeofs_base::limits::RAFT_ELECT_AFTER

use super::types::{Membership, Term};
use lumeofs_base::limits::RAFT_READ_LEASE;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// When each follower's last acknowledged append was sent. Times are of the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct Lease(Mutex<Acknowledged>);

#[derive(Debug, Default)]
struct Acknowledged {
    term: Term,
    sent: BTreeMap<u64, Duration>,
}

impl Lease {
    /// `node` acknowledged an append of this leadership that was sent at `sent`.
    pub(super) fn acknowledge(&self, term: Term, node: u64, sent: Duration) {
        let mut acknowledged = self.0.lock();
        if acknowledged.term < term {
            *acknowledged = Acknowledged {
                term,
                sent: BTreeMap::new(),
            };
        }
        if acknowledged.term == term {
            let newest = acknowledged.sent.entry(node).or_default();
            *newest = sent.max(*newest);
        }
    }

    /// When the append was sent that a quorum of every voter set has acknowledged; the leader's own
    /// vote counts as given `now`. `None` if there is no such append.
    fn quorum_sent(&self, term: Term, membership: &Membership, now: Duration) -> Option<Duration> {
        let acknowledged = self.0.lock();
        let sent_to = |node: &u64| {
            if *node == term.node {
                Some(now)
            } else if acknowledged.term == term {
                acknowledged.sent.get(node).copied()
            } else {
                None
            }
        };
        let quorum = |voters: &BTreeSet<u64>| {
            let mut times: Vec<_> = voters.iter().map(sent_to).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            times.get(voters.len() / 2).copied().flatten()
        };
        let sets = membership.membership().get_joint_config();
        sets.iter().map(quorum).min().flatten()
    }

    /// How long ago the append was sent that a member acknowledged last.
    pub(super) fn silence_of(&self, term: Term, node: u64, now: Duration) -> Option<Duration> {
        let acknowledged = self.0.lock();
        let sent = acknowledged.sent.get(&node)?;
        (acknowledged.term == term).then(|| now.saturating_sub(*sent))
    }

    /// Whether a leader may answer reads now.
    pub(super) fn holds(&self, term: Term, membership: &Membership, now: Duration) -> bool {
        self.silence(term, membership, now)
            .is_some_and(|silence| silence < RAFT_READ_LEASE)
    }

    /// How long ago the append was sent that a quorum has acknowledged.
    pub(super) fn silence(
        &self,
        term: Term,
        membership: &Membership,
        now: Duration,
    ) -> Option<Duration> {
        self.quorum_sent(term, membership, now)
            .map(|sent| now.saturating_sub(sent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Term = Term { number: 4, node: 1 };

    fn voters(sets: &[&[u64]]) -> Membership {
        let sets: Vec<BTreeSet<u64>> = sets
            .iter()
            .map(|set| set.iter().copied().collect())
            .collect();
        Membership::new(None, openraft::Membership::new(sets, None))
    }

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_lease_counts_from_the_send_time_of_a_quorum() {
        let lease = Lease::default();
        let three = voters(&[&[1, 2, 3]]);
        assert!(!lease.holds(TERM, &three, at(1000)));
        lease.acknowledge(TERM, 3, at(1000));
        assert!(lease.holds(TERM, &three, at(1499)));
        assert!(!lease.holds(TERM, &three, at(1500)));
        lease.acknowledge(TERM, 2, at(1400));
        assert!(lease.holds(TERM, &three, at(1899)));
        assert!(!lease.holds(Term { number: 5, node: 1 }, &three, at(1401)));
    }

    #[test]
    fn one_master_needs_nobody_and_five_need_two_more() {
        let lease = Lease::default();
        assert!(lease.holds(TERM, &voters(&[&[1]]), at(9)));
        let five = voters(&[&[1, 2, 3, 4, 5]]);
        lease.acknowledge(TERM, 2, at(1000));
        assert!(!lease.holds(TERM, &five, at(1001)));
        lease.acknowledge(TERM, 5, at(1000));
        assert!(lease.holds(TERM, &five, at(1001)));
    }

    #[test]
    fn every_set_of_a_joint_membership_must_agree_and_old_terms_count_for_nothing() {
        let lease = Lease::default();
        let joint = voters(&[&[1, 2, 3], &[1, 4, 5]]);
        lease.acknowledge(TERM, 2, at(1000));
        assert!(!lease.holds(TERM, &joint, at(1001)));
        lease.acknowledge(TERM, 4, at(1000));
        assert!(lease.holds(TERM, &joint, at(1001)));
        lease.acknowledge(Term { number: 5, node: 2 }, 1, at(1002));
        assert!(!lease.holds(TERM, &joint, at(1003)));
        lease.acknowledge(TERM, 4, at(1003));
        assert!(!lease.holds(TERM, &joint, at(1003)));
    }
}
