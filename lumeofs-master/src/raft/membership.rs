//! Members of a Raft group: who they are, how far they are, and changes of them, one step at a time.

use super::Group;
use super::group::QUORUM_SILENCE_MAX;
use lumeofs_base::{Code, FsError, FsResult};
use openraft::error::{ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// Time for one step. A change that is not through by then goes on: it is in the log.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long those that are to vote may take to answer before they do.
const MAJORITY_PATIENCE: Duration = Duration::from_secs(2);
const MAJORITY_LOOK: Duration = Duration::from_millis(10);

/// The members of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Members {
    /// They vote. During a change: those of its goal.
    pub(crate) voters: BTreeSet<u64>,
    /// They only follow.
    pub(crate) learners: BTreeSet<u64>,
    /// Two sets vote: a change is half done.
    pub(crate) joint: bool,
    /// A change is not through: it is half done, or its last entry is not applied.
    pub(crate) changing: bool,
}

/// A step of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Lets a master follow.
    AddLearner(u64, String),
    /// Lets these vote, who follow or vote already, and nobody else; those that voted before leave.
    Voters(BTreeSet<u64>),
    /// Lets a follower go.
    DropLearner(u64),
}

impl Group {
    /// The members, as far as this one knows.
    pub(crate) fn members(&self) -> Members {
        let effective = self
            .raft()
            .server_metrics()
            .borrow()
            .membership_config
            .clone();
        let applied = self.store().position().membership;
        let membership = effective.membership();
        let sets = membership.get_joint_config();
        let every: BTreeSet<u64> = membership.voter_ids().collect();
        let ids = membership.nodes().map(|(id, _)| *id);
        Members {
            voters: sets.last().cloned().unwrap_or_default(),
            learners: ids.filter(|id| !every.contains(id)).collect(),
            joint: sets.len() > 1,
            changing: sets.len() > 1 || effective.log_id() != applied.log_id(),
        }
    }

    /// The members, confirmed by a quorum. Fails if this member does not lead.
    pub(crate) async fn certain_members(&self) -> FsResult<Members> {
        self.linearizable().await?;
        Ok(self.members())
    }

    /// Whether another member has answered this leader lately.
    pub(crate) fn answers(&self, node: u64) -> bool {
        let Some(leadership) = self.leadership() else {
            return false;
        };
        node == self.me()
            || self
                .silence_of(leadership.term, node)
                .is_some_and(|silence| silence < QUORUM_SILENCE_MAX)
    }

    /// Waits until more than half of these have answered what was sent from now on: one that died a moment ago does not
    /// count. Fails if they do not.
    pub(crate) async fn await_majority(&self, of: &BTreeSet<u64>) -> FsResult<()> {
        let begun = Instant::now();
        let has_answered = |term, node| {
            node == self.me()
                || self
                    .silence_of(term, node)
                    .is_some_and(|silence| silence < begun.elapsed())
        };
        while begun.elapsed() < MAJORITY_PATIENCE {
            let Some(leadership) = self.leadership() else {
                return Err(super::reads::not_leader(None));
            };
            let answered = of
                .iter()
                .filter(|node| has_answered(leadership.term, **node));
            if answered.count() > of.len() / 2 {
                return Ok(());
            }
            sleep(MAJORITY_LOOK).await;
        }
        let text = format!("{}: no majority of {of:?} answers", self.name);
        Err(FsError::new(Code::Unavailable, text))
    }

    /// Entries that another member lacks, on the leader. `None`: it has none at all so far.
    pub(crate) fn lag(&self, node: u64) -> Option<u64> {
        let metrics = self.raft().metrics().borrow().clone();
        let matched = metrics.replication?.get(&node).copied().flatten()?;
        Some(
            metrics
                .last_log_index
                .unwrap_or(0)
                .saturating_sub(matched.index),
        )
    }

    /// Takes a step. May be repeated.
    pub(crate) async fn take(&self, step: &Step) -> FsResult<()> {
        tracing::info!(group = self.name, ?step, "changing the members");
        let raft = self.raft();
        let taken = async {
            match step.clone() {
                Step::AddLearner(id, address) => {
                    raft.add_learner(id, BasicNode::new(address), false).await
                }
                Step::Voters(voters) => {
                    let change = ChangeMembers::ReplaceAllVoters(voters);
                    raft.change_membership(change, false).await
                }
                Step::DropLearner(id) => {
                    let change = ChangeMembers::RemoveNodes(BTreeSet::from([id]));
                    raft.change_membership(change, false).await
                }
            }
        };
        match timeout(STEP_TIMEOUT, taken).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(super::reads::not_leader(forward.leader_id))
            }
            Ok(Err(error)) => Err(FsError::new(Code::Unavailable, error.to_string())),
            Err(_) => Err(FsError::new(
                Code::Timeout,
                "the change is not committed yet",
            )),
        }
    }
}
