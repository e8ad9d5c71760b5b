//! What this master is to the others: it says where it is, and ends when it was removed.

use crate::ask::certain_records;
use crate::config::MasterConfig;
use crate::masters::Masters;
use crate::raft::Group;
use crate::service::ControllerService;
use lumeofs_base::{Code, FsError, FsResult};
use lumeofs_meta::controller::{MasterRecord, MasterState};
use lumeofs_proto::control::AnnounceRequest;
use lumeofs_proto::control::controller_client::ControllerClient;
use lumeofs_proto::grpc::{Connector, endpoint, error_of};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// How long another master may take to note where this one is.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(3);

/// What the task needs.
pub(crate) struct Standing {
    pub(crate) config: MasterConfig,
    pub(crate) masters: Arc<Masters>,
    pub(crate) controller: Arc<Group>,
    pub(crate) metadata: Arc<Group>,
    pub(crate) service: Arc<ControllerService>,
}

impl Standing {
    /// Returns why this master must end, if ever.
    pub(crate) async fn lost(self) -> FsError {
        let mut told = None;
        // A quorum has said that it is recorded where it is.
        let mut confirmed = false;
        loop {
            if !(confirmed && self.takes_part()) {
                match self.look(&mut told).await {
                    Ok(is_recorded) => confirmed = is_recorded,
                    Err(error) if error.code == Code::Refused => return error,
                    Err(error) => tracing::warn!(%error, "saying where this master is"),
                }
            }
            sleep(LOOK).await;
        }
    }

    fn me(&self) -> u64 {
        self.config.id()
    }

    /// Whether it is a voter as far as it knows, and knows who leads. One that was removed meanwhile will miss its
    /// leader soon.
    fn takes_part(&self) -> bool {
        let list = self.masters.list();
        let recorded = list.get(self.me());
        recorded.is_some_and(|master| master.state == MasterState::Voter)
            && [&self.controller, &self.metadata].iter().all(|group| {
                group.leader().is_some() && group.members().voters.contains(&self.me())
            })
    }

    /// Returns whether this master is recorded where it is.
    async fn look(&self, told: &mut Option<MasterState>) -> FsResult<bool> {
        let identity = &self.config.identity;
        let records = certain_records(identity, &self.masters, &self.controller).await;
        let Some(records) = records.filter(|records| !records.is_empty()) else {
            return Ok(false);
        };
        let mine = records.iter().find(|record| record.id.get() == self.me());
        if let Some(record) = mine {
            if record.state == MasterState::Removed {
                return Err(removed(&self.config));
            }
            self.tell(record, told);
        }
        let waits =
            mine.is_none_or(|record| self.config.join && record.state == MasterState::Candidate);
        if waits || mine.is_some_and(|record| record.address != self.config.advertise) {
            self.announce().await?;
            return Ok(false);
        }
        Ok(true)
    }

    fn tell(&self, record: &MasterRecord, told: &mut Option<MasterState>) {
        if *told == Some(record.state) {
            return;
        }
        *told = Some(record.state);
        let id = self.me();
        match record.state {
            MasterState::Candidate => tracing::info!(
                id,
                "this master is a candidate: it takes part after `lumeofs admin master add {id}`"
            ),
            MasterState::Joining => tracing::info!(id, "this master is joining"),
            MasterState::Voter => tracing::info!(id, "this master votes"),
            MasterState::Leaving => tracing::info!(id, "this master is leaving"),
            MasterState::Removed => {}
        }
    }

    /// Says where this master is, to whoever leads the controller.
    async fn announce(&self) -> FsResult<()> {
        let request = AnnounceRequest {
            id: self.me(),
            address: self.config.advertise.clone(),
            join: self.config.join,
        };
        if self.controller.leadership().is_some() {
            return self.service.announce(request).await;
        }
        let mut last = FsError::new(Code::Unavailable, "no other master is known");
        for address in self.masters.others() {
            let told = timeout(
                ANNOUNCE_TIMEOUT,
                self.announce_to(&address, request.clone()),
            );
            match told.await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if error.code == Code::Refused => return Err(error),
                Ok(Err(error)) => last = error.during(format_args!("master {address}")),
                Err(_) => last = FsError::new(Code::Timeout, format!("master {address}")),
            }
        }
        Err(last)
    }

    async fn announce_to(&self, address: &str, request: AnnounceRequest) -> FsResult<()> {
        let credentials = &self.config.identity.credentials;
        let endpoint = endpoint(address)?;
        let channel = endpoint
            .connect_with_connector(Connector::new(credentials))
            .await
            .map_err(|error| lumeofs_proto::grpc::cause_of(&error))?;
        let mut request = tonic::Request::new(request);
        let token = credentials.grpc_token().parse();
        let token = token.map_err(|_| FsError::new(Code::Invalid, "token of the secret"))?;
        request.metadata_mut().insert("authorization", token);
        let done = ControllerClient::new(channel).announce(request).await;
        done.map(drop).map_err(|status| error_of(&status))
    }
}

/// Why a removed master ends.
pub(crate) fn removed(config: &MasterConfig) -> FsError {
    let text = format!(
        "master {id} was removed from this cluster, and ids are never used again: its data directory {dir} is of no \
         use any more; to let this machine take part again, join anew with an empty one \
         (`lumeofs cluster token`, `lumeofs master --join`)",
        id = config.id(),
        dir = config.data_dir.display()
    );
    FsError::new(Code::Refused, text)
}
