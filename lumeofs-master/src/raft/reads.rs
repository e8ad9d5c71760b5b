//! Linearizable reads (rule R3): under the leader's lease at once, else with a quorum round that all
//! waiting reads share.

use super::types::Raft;
use lumeofs_base::{Code, FsError, FsResult, NodeId};
use openraft::error::{CheckIsLeaderError, RaftError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Reads that may wait for a round.
const WAITING_MAX: usize = 4096;
/// How long a round may take, applying included.
const ROUND_TIMEOUT: Duration = Duration::from_secs(3);

/// Confirms leadership for reads.
pub(super) struct Rounds(mpsc::Sender<oneshot::Sender<FsResult<()>>>);

impl Rounds {
    /// Starts the task that runs the rounds. It ends with the group.
    pub(super) fn start(raft: Raft) -> Self {
        let (sender, mut queue) = mpsc::channel::<oneshot::Sender<FsResult<()>>>(WAITING_MAX);
        tokio::spawn(async move {
            while let Some(first) = queue.recv().await {
                // A round counts only for reads that were there before it began.
                let mut waiting = vec![first];
                while let Ok(next) = queue.try_recv() {
                    waiting.push(next);
                }
                let done = round(&raft).await;
                for reader in waiting {
                    // The reader may have given up.
                    let _ = reader.send(done.clone());
                }
            }
        });
        Self(sender)
    }

    /// Waits for a round that begins after this call.
    pub(super) async fn join(&self) -> FsResult<()> {
        let (sender, receiver) = oneshot::channel();
        self.0
            .try_send(sender)
            .map_err(|_| FsError::new(Code::Again, "too many reads wait for a quorum"))?;
        receiver
            .await
            .unwrap_or_else(|_| Err(FsError::new(Code::Unavailable, "stopping")))
    }
}

async fn round(raft: &Raft) -> FsResult<()> {
    match timeout(ROUND_TIMEOUT, raft.ensure_linearizable()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)))) => {
            Err(not_leader(forward.leader_id))
        }
        Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(error)))) => {
            Err(FsError::new(Code::NotLeader(None), error.to_string()))
        }
        Ok(Err(RaftError::Fatal(error))) => Err(FsError::new(Code::Unavailable, error.to_string())),
        Err(_) => Err(FsError::new(
            Code::NotLeader(None),
            "no quorum confirms this leader",
        )),
    }
}

/// The answer of a master that does not lead.
pub(super) fn not_leader(leader: Option<u64>) -> FsError {
    FsError::new(
        Code::NotLeader(leader.map(NodeId)),
        "this master is not the leader",
    )
}
