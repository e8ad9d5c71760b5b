//! Brings the members of both Raft groups to where the controller's records want them.
//!
//! Each group's leader takes the steps of its group, and the controller's leader notes when both are done. Nothing is
//! remembered between two steps: whoever leads looks at records and members and takes the next one, so a change goes
//! on wherever it was interrupted. Steps follow records that a quorum has confirmed only.

use crate::ask::{ask, certain_records};
use crate::masters::Masters;
use crate::raft::{Group, Members, Step};
use crate::service::ControllerService;
use lumeofs_base::{FsResult, NodeId};
use lumeofs_meta::controller::{self, MasterRecord, MasterState, MastersCommand};
use lumeofs_proto::auth::Identity;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// How often it is looked whether there is something to do.
const LOOK: Duration = Duration::from_millis(100);
/// Pause after a step that failed.
const FAILED_PAUSE: Duration = Duration::from_millis(500);
/// A learner may vote once it lacks no more entries than that: a quorum then waits for them only a moment.
const CAUGHT_UP_ENTRIES: u64 = 200;

/// What the task needs.
pub(crate) struct Keeper {
    pub(crate) identity: Identity,
    pub(crate) masters: Arc<Masters>,
    pub(crate) controller: Arc<Group>,
    pub(crate) metadata: Arc<Group>,
    pub(crate) service: Arc<ControllerService>,
}

impl Keeper {
    /// Runs for ever.
    pub(crate) async fn run(self) {
        loop {
            sleep(LOOK).await;
            let leads = [&self.controller, &self.metadata];
            let leads = leads.map(|group| group.leadership().is_some());
            let list = self.masters.list();
            if leads == [false, false] || !list.recorded {
                continue;
            }
            let groups = [&self.controller, &self.metadata];
            let led = groups.into_iter().zip(leads).filter(|(_, leads)| *leads);
            let is_due = |group: &Group| is_due(&list.records, &group.members());
            let due: Vec<_> = led
                .map(|(group, _)| group)
                .filter(|group| is_due(group))
                .collect();
            let open = leads[0] && list.records.iter().any(is_open);
            if due.is_empty() && !open {
                continue;
            }
            if let Err(error) = self.go_on(&due, open).await {
                tracing::debug!(%error, "changing the masters");
                sleep(FAILED_PAUSE).await;
            }
        }
    }

    async fn go_on(&self, due: &[&Arc<Group>], open: bool) -> FsResult<()> {
        let records = certain_records(&self.identity, &self.masters, &self.controller).await;
        let Some(records) = records else {
            return Ok(());
        };
        let joined = self.controller.store().read(controller::joined_masters);
        for group in due {
            let members = group.certain_members().await?;
            let ready = |id: u64| {
                joined.contains(&NodeId(id))
                    && group.answers(id)
                    && group.lag(id).is_some_and(|lag| lag <= CAUGHT_UP_ENTRIES)
            };
            if let Some(step) = next_step(&records, &members, ready) {
                if let Step::Voters(goal) = &step {
                    group.await_majority(goal).await?;
                }
                group.take(&step).await?;
            }
        }
        if open {
            self.settle(&records).await?;
        }
        Ok(())
    }

    /// Notes what has been reached.
    async fn settle(&self, records: &[MasterRecord]) -> FsResult<()> {
        let Some(metadata) = self.metadata_members().await else {
            return Ok(());
        };
        let groups = [self.controller.certain_members().await?, metadata];
        for record in records.iter().filter(|record| is_open(record)) {
            if groups
                .iter()
                .all(|members| is_reached(record, records, members))
            {
                tracing::info!(master = record.id.get(), state = ?record.state, "done");
                let settle = MastersCommand::Settle(record.id);
                self.service.change_masters(settle).await?;
            }
        }
        Ok(())
    }

    async fn metadata_members(&self) -> Option<Members> {
        if let Ok(members) = self.metadata.certain_members().await {
            return Some(members);
        }
        let address = self.masters.address(self.metadata.leader()?)?;
        let known = ask(&self.identity, &address).await.ok()?.metadata?;
        Some(Members {
            voters: known.voters.into_iter().collect(),
            learners: known.learners.into_iter().collect(),
            joint: known.changing,
            changing: known.changing,
        })
    }
}

/// Whether a record says that its master is on its way.
fn is_open(record: &MasterRecord) -> bool {
    matches!(record.state, MasterState::Joining | MasterState::Leaving)
}

/// Whether a group's members may not be what the records want.
fn is_due(records: &[MasterRecord], members: &Members) -> bool {
    let voters = records
        .iter()
        .filter(|record| record.state == MasterState::Voter);
    let voters: BTreeSet<u64> = voters.map(|record| record.id.get()).collect();
    records.iter().any(is_open)
        || members.joint
        || members.voters != voters
        || !members.learners.is_empty()
}

/// The next step towards what the records want. `ready` is whether a learner may vote.
pub(crate) fn next_step(
    records: &[MasterRecord],
    members: &Members,
    ready: impl Fn(u64) -> bool,
) -> Option<Step> {
    if members.joint {
        // Begun by somebody who did not get to its end.
        return Some(Step::Voters(members.voters.clone()));
    }
    if members.changing {
        return None;
    }
    let has = |id: u64| members.voters.contains(&id) || members.learners.contains(&id);
    let wanted =
        |record: &&MasterRecord| matches!(record.state, MasterState::Joining | MasterState::Voter);
    let missing = records
        .iter()
        .filter(wanted)
        .find(|record| !has(record.id.get()));
    if let Some(record) = missing {
        return Some(Step::AddLearner(record.id.get(), record.address.clone()));
    }
    let goes = |id: u64| {
        let record = records.iter().find(|record| record.id.get() == id);
        record.is_some_and(|record| {
            matches!(record.state, MasterState::Leaving | MasterState::Removed)
        })
    };
    if let Some(id) = members.learners.iter().copied().find(|id| goes(*id)) {
        return Some(Step::DropLearner(id));
    }
    let coming = records.iter().filter(wanted).map(|record| record.id.get());
    let coming: Vec<u64> = coming.filter(|id| members.learners.contains(id)).collect();
    // Together, so that an even number of voters is not passed through where that can be avoided.
    let come = coming.iter().all(|id| ready(*id));
    let mut goal = members.voters.clone();
    if come {
        goal.extend(&coming);
    }
    let has_place = |id: u64| {
        let successor = records.iter().find(|record| {
            record.state == MasterState::Joining && record.replaces == Some(NodeId(id))
        });
        successor.is_some_and(|successor| !goal.contains(&successor.id.get()))
    };
    let go: Vec<u64> = members
        .voters
        .iter()
        .copied()
        .filter(|id| goes(*id) && !has_place(*id))
        .collect();
    goal.retain(|id| !go.contains(id));
    (goal != members.voters && !goal.is_empty()).then_some(Step::Voters(goal))
}

/// Whether a group's members are what a record on its way wants.
fn is_reached(record: &MasterRecord, records: &[MasterRecord], members: &Members) -> bool {
    let has =
        |id: NodeId| members.voters.contains(&id.get()) || members.learners.contains(&id.get());
    if members.joint || members.changing {
        return false;
    }
    match record.state {
        MasterState::Joining => {
            members.voters.contains(&record.id.get()) && !record.replaces.is_some_and(has)
        }
        // One that is replaced is done with its successor.
        MasterState::Leaving => {
            !has(record.id)
                && records
                    .iter()
                    .all(|other| other.replaces != Some(record.id))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u64, state: MasterState, replaces: Option<u64>) -> MasterRecord {
        MasterRecord {
            id: NodeId(id),
            address: format!("host{id}:1"),
            state,
            replaces: replaces.map(NodeId),
        }
    }

    fn members(voters: &[u64], learners: &[u64]) -> Members {
        Members {
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
            ..Members::default()
        }
    }

    fn voters(ids: &[u64]) -> Option<Step> {
        Some(Step::Voters(ids.iter().copied().collect()))
    }

    use MasterState::{Candidate, Joining, Leaving, Removed, Voter};

    #[test]
    fn a_master_follows_before_it_votes_and_candidates_wait() {
        let records = [
            record(1, Voter, None),
            record(2, Joining, None),
            record(3, Candidate, None),
        ];
        let add = Step::AddLearner(2, "host2:1".into());
        assert_eq!(
            next_step(&records, &members(&[1], &[]), |_| true),
            Some(add)
        );
        let follows = members(&[1], &[2]);
        assert_eq!(next_step(&records, &follows, |_| false), None);
        assert_eq!(next_step(&records, &follows, |_| true), voters(&[1, 2]));
        assert_eq!(next_step(&records, &members(&[1, 2], &[]), |_| true), None);
    }

    #[test]
    fn two_that_join_vote_in_one_step_when_both_have_caught_up() {
        let records = [
            record(1, Voter, None),
            record(2, Joining, None),
            record(3, Joining, None),
        ];
        let follow = members(&[1], &[2, 3]);
        assert_eq!(next_step(&records, &follow, |id| id == 2), None);
        assert_eq!(next_step(&records, &follow, |_| true), voters(&[1, 2, 3]));
    }

    #[test]
    fn one_that_is_replaced_votes_until_its_successor_does() {
        let records = [
            record(1, Voter, None),
            record(2, Leaving, None),
            record(3, Voter, None),
            record(4, Joining, Some(2)),
        ];
        let follows = members(&[1, 2, 3], &[4]);
        assert_eq!(next_step(&records, &follows, |_| false), None);
        assert_eq!(next_step(&records, &follows, |_| true), voters(&[1, 3, 4]));
        let done = members(&[1, 3, 4], &[]);
        assert_eq!(next_step(&records, &done, |_| true), None);
        assert!(is_reached(&records[3], &records, &done));
        assert!(
            !is_reached(&records[1], &records, &done),
            "settled with its successor"
        );
        assert!(!is_reached(&records[3], &records, &follows));
    }

    #[test]
    fn a_change_that_was_begun_is_brought_to_its_end_first() {
        let records = [record(1, Voter, None), record(2, Leaving, None)];
        let mut half = members(&[1, 2], &[]);
        (half.joint, half.changing) = (true, true);
        assert_eq!(next_step(&records, &half, |_| true), voters(&[1, 2]));
        half.joint = false;
        assert_eq!(next_step(&records, &half, |_| true), None);
        assert!(!is_reached(&records[1], &records, &half));
    }

    #[test]
    fn leavers_go_whatever_they_are_and_the_last_voter_stays() {
        let leaving = [record(1, Voter, None), record(2, Leaving, None)];
        assert_eq!(
            next_step(&leaving, &members(&[1, 2], &[]), |_| false),
            voters(&[1])
        );
        let drop = Some(Step::DropLearner(2));
        assert_eq!(next_step(&leaving, &members(&[1], &[2]), |_| false), drop);
        assert!(is_reached(&leaving[1], &leaving, &members(&[1], &[])));
        let removed = [record(1, Voter, None), record(2, Removed, None)];
        assert_eq!(
            next_step(&removed, &members(&[1, 2], &[]), |_| false),
            voters(&[1])
        );
        let last = [record(1, Leaving, None)];
        assert_eq!(next_step(&last, &members(&[1], &[]), |_| true), None);
    }
}
