//! Masters that come and go: what the controller's leader does for those who ask.

use super::controller::ControllerService;
use crate::raft::Group;
use lumeofs_base::{Code, FsError, FsResult, NodeId};
use lumeofs_meta::controller::{
    self, ControllerCommand, ControllerReply, MasterRecord, MasterState, MastersCommand,
};
use lumeofs_proto::control::change_masters_request::Change;
use lumeofs_proto::control::{
    AddMaster, AllocateReply, AllocateRequest, AnnounceRequest, ChangeMastersRequest, Master,
};

impl ControllerService {
    /// Proposes a change of the records.
    pub(crate) async fn change_masters(&self, command: MastersCommand) -> FsResult<NodeId> {
        match self.propose(ControllerCommand::Masters(command)).await? {
            ControllerReply::Masters(outcome) => outcome,
            other => {
                let text = format!("unexpected reply of the controller: {other:?}");
                Err(FsError::new(Code::Io, text))
            }
        }
    }

    /// The command that records who founded the cluster, if nobody is recorded.
    pub(super) fn founding(&self) -> Option<ControllerCommand> {
        let list = self.masters.list();
        let records = self.group.store().read(controller::masters);
        if list.recorded || !records.is_empty() {
            return None;
        }
        let founders = list.records.iter();
        let founders = founders.map(|master| (master.id, master.address.clone()));
        let found = MastersCommand::Found(founders.collect());
        Some(ControllerCommand::Masters(found))
    }

    /// Gives a new node its id.
    pub(super) async fn allocate(&self, request: AllocateRequest) -> FsResult<AllocateReply> {
        let nonce: [u8; 16] = request.nonce[..]
            .try_into()
            .map_err(|_| FsError::new(Code::Invalid, "nonce: want 16 bytes"))?;
        self.leading().await?;
        let nonce = u128::from_be_bytes(nonce);
        let id = self.change_masters(MastersCommand::Allocate(nonce)).await;
        let id = id.map_err(|error| self.elsewhere(error))?.get();
        Ok(AllocateReply { id })
    }

    /// Notes where a master is.
    pub(crate) async fn announce(&self, request: AnnounceRequest) -> FsResult<()> {
        self.leading().await?;
        let announced = self.change_masters(MastersCommand::Announce {
            id: NodeId(request.id),
            address: request.address,
            join: request.join,
        });
        announced
            .await
            .map(drop)
            .map_err(|error| self.elsewhere(error))
    }

    /// Fails unless this master leads the controller and the founders are recorded.
    async fn leading(&self) -> FsResult<()> {
        let led = self.group.linearizable().await;
        led.map_err(|error| self.elsewhere(error))?;
        match self.founding() {
            None => Ok(()),
            Some(_) => Err(FsError::new(
                Code::Unavailable,
                "the cluster is being set up",
            )),
        }
    }

    /// Begins a change.
    pub(super) async fn begin_change(&self, request: ChangeMastersRequest) -> FsResult<()> {
        self.leading().await?;
        let command = match request.change {
            Some(Change::Add(AddMaster {
                id,
                address,
                replaces,
            })) => MastersCommand::Admit {
                id: NodeId(id),
                address: (!address.is_empty()).then_some(address),
                replaces: (replaces != 0).then_some(NodeId(replaces)),
            },
            Some(Change::Remove(id)) => {
                self.check_quorum_without(id)?;
                MastersCommand::Remove(NodeId(id))
            }
            None => return Err(FsError::new(Code::Invalid, "no change is named")),
        };
        let begun = self.change_masters(command).await;
        begun.map(drop).map_err(|error| self.elsewhere(error))
    }

    /// Those that stay must be able to go on: more than half of them must be there.
    fn check_quorum_without(&self, id: u64) -> FsResult<()> {
        let records = self.group.store().read(controller::masters);
        let stay = records
            .iter()
            .filter(|master| master.state == MasterState::Voter && master.id.get() != id);
        let (there, silent): (Vec<u64>, Vec<u64>) = stay
            .map(|master| master.id.get())
            .partition(|id| self.group.answers(*id));
        if there.len() > silent.len() || (there.is_empty() && silent.is_empty()) {
            return Ok(());
        }
        let text = format!(
            "without master {id} there is no majority: of those that stay {silent:?} do not answer; start them, or replace \
             one of them first"
        );
        Err(FsError::new(Code::Unavailable, text))
    }

    /// The masters, for people.
    pub(super) async fn list_masters(&self, metadata: &Group) -> FsResult<Vec<Master>> {
        self.leading().await?;
        let records = self.group.store().read(controller::masters);
        let joined = self.group.store().read(controller::joined_masters);
        let groups = [&*self.group, metadata];
        let shown = records.into_iter().map(|record| {
            let id = record.id.get();
            Master {
                id,
                state: state_name(record.state).to_owned(),
                replaces: record.replaces.map_or(0, NodeId::get),
                progress: progress(&record, groups, joined.contains(&record.id)),
                answers: self.group.answers(id),
                leads: groups
                    .iter()
                    .filter(|group| group.leader() == Some(id))
                    .map(|group| group.name.to_owned())
                    .collect(),
                address: record.address,
            }
        });
        Ok(shown.collect())
    }
}

/// What a record's state is called.
fn state_name(state: MasterState) -> &'static str {
    match state {
        MasterState::Candidate => "candidate",
        MasterState::Joining => "joining",
        MasterState::Voter => "voter",
        MasterState::Leaving => "leaving",
        MasterState::Removed => "removed",
    }
}

/// How far a change is, as the controller's leader knows.
fn progress(record: &MasterRecord, groups: [&Group; 2], joined: bool) -> String {
    let id = record.id.get();
    let part = |group: &Group| {
        let members = group.members();
        let what = if members.voters.contains(&id) {
            "votes".to_owned()
        } else if members.learners.contains(&id) {
            match group.lag(id) {
                Some(lag) => format!("follows, {lag} entries behind"),
                None if group.leadership().is_some() => "has no entries yet".to_owned(),
                None => "follows".to_owned(),
            }
        } else {
            "is no member".to_owned()
        };
        format!("{} {what}", group.name)
    };
    match record.state {
        MasterState::Candidate => format!("waits for `lumeofs admin master add {id}`"),
        MasterState::Joining if !joined && !groups[0].answers(id) => {
            "does not answer: start it".to_owned()
        }
        MasterState::Joining | MasterState::Leaving => groups.map(part).join(", "),
        MasterState::Voter | MasterState::Removed => String::new(),
    }
}
