//! The way into a Raft group: drains what is queued into one entry (rule R5).
//!
//! openraft 0.9 syncs each entry on its own, so the batching happens here: while one or two entries
//! are under way, the next one fills.

use super::group::{Group, Leadership};
use super::reads::not_leader;
use super::types::{Machine, Payload};
use lumeofs_base::limits::{RAFT_BATCH_BYTES_MAX, RAFT_BATCH_COMMANDS_MAX};
use lumeofs_base::{Code, FsError, FsResult};
use openraft::error::ClientWriteError;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

/// Commands that may wait for their entry.
const QUEUE_MAX: usize = 4096;
/// Entries under way at once.
const IN_FLIGHT_MAX: usize = 2;
/// After this an entry's fate is unknown and its proposers are told so.
const ENTRY_TIMEOUT: Duration = Duration::from_secs(10);

struct Proposal<M: Machine> {
    command: M::Command,
    bytes: usize,
    /// That of its time: what was right under one leadership need not be so under a later one.
    leadership: Option<Leadership>,
    reply: oneshot::Sender<FsResult<Proposed<M::Reply>>>,
}

/// An applied command's reply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proposed<R> {
    /// Index of its entry.
    pub(crate) index: u64,
    /// What the state machine answered.
    pub(crate) reply: R,
}

/// Proposes commands to one group.
pub(crate) struct Proposer<M: Machine> {
    group: Arc<Group>,
    queue: mpsc::Sender<Proposal<M>>,
}

impl<M: Machine> Clone for Proposer<M> {
    fn clone(&self) -> Self {
        Self {
            group: self.group.clone(),
            queue: self.queue.clone(),
        }
    }
}

impl<M: Machine> Proposer<M> {
    /// Starts the task that proposes. It ends when the last handle is dropped.
    pub(crate) fn start(group: Arc<Group>, machine: Arc<M>) -> Self {
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(run(group.clone(), machine, queue));
        Self {
            group,
            queue: sender,
        }
    }

    /// Commands that wait for their entry.
    pub(crate) fn queued(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }

    /// Proposes a command and waits until it is applied here. `bytes` is its length in the log,
    /// roughly.
    ///
    /// # Errors
    /// `NotLeader` and `Again`: it was not proposed. `Timeout` and `Unavailable`: unknown.
    pub(crate) async fn propose(
        &self,
        command: M::Command,
        bytes: usize,
    ) -> FsResult<Proposed<M::Reply>> {
        let (reply, receiver) = oneshot::channel();
        let leadership = self.group.leadership();
        self.queue
            .try_send(Proposal {
                command,
                bytes,
                leadership,
                reply,
            })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => {
                    FsError::new(Code::Again, "too many commands wait for the log")
                }
                mpsc::error::TrySendError::Closed(_) => FsError::new(Code::Unavailable, "stopping"),
            })?;
        receiver
            .await
            .unwrap_or_else(|_| Err(FsError::new(Code::Unavailable, "stopping")))
    }
}

async fn run<M: Machine>(
    group: Arc<Group>,
    machine: Arc<M>,
    mut queue: mpsc::Receiver<Proposal<M>>,
) {
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    while let Some(first) = queue.recv().await {
        // Taken before the batch is filled: what arrives during the wait goes along.
        let Ok(permit) = in_flight.clone().acquire_owned().await else {
            return;
        };
        let leadership = group.leadership();
        let (mut bytes, mut commands, mut replies) = (0, Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(proposal) = next {
            if proposal.leadership != leadership {
                // The proposer may have given up.
                let _ = proposal.reply.send(Err(not_leader(None)));
            } else if !proposal.reply.is_closed() {
                bytes += proposal.bytes;
                commands.push(proposal.command);
                replies.push(proposal.reply);
            }
            let has_room = commands.len() < RAFT_BATCH_COMMANDS_MAX && bytes < RAFT_BATCH_BYTES_MAX;
            next = has_room.then(|| queue.try_recv().ok()).flatten();
        }
        if commands.is_empty() {
            continue;
        }
        let payload = Payload(machine.seal(commands).into());
        // Queued here and not in the task below, so that entries keep the order of their commands.
        let written = match group.raft().client_write_ff(payload).await {
            Ok(written) => written,
            Err(error) => {
                answer_all(replies, &FsError::new(Code::Unavailable, error.to_string()));
                continue;
            }
        };
        let machine = machine.clone();
        tokio::spawn(async move {
            let done = timeout(ENTRY_TIMEOUT, written).await;
            drop(permit);
            let error = match done {
                Ok(Ok(Ok(response))) => {
                    let index = response.log_id.index;
                    for (waiting, reply) in replies.into_iter().zip(machine.replies(response.data))
                    {
                        // The proposer may have given up.
                        let _ = waiting.send(Ok(Proposed { index, reply }));
                    }
                    return;
                }
                Ok(Ok(Err(ClientWriteError::ForwardToLeader(forward)))) => {
                    not_leader(forward.leader_id)
                }
                Ok(Ok(Err(error))) => FsError::new(Code::Unavailable, error.to_string()),
                Ok(Err(_)) => FsError::new(Code::Unavailable, "stopping"),
                Err(_) => FsError::new(Code::Timeout, "no quorum took the command"),
            };
            answer_all(replies, &error);
        });
    }
}

fn answer_all<R>(replies: Vec<oneshot::Sender<FsResult<R>>>, error: &FsError) {
    for reply in replies {
        // The proposer may have given up.
        let _ = reply.send(Err(error.clone()));
    }
}
