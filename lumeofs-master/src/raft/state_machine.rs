//! openraft's view of a state machine: entries go into the overlay, snapshots replace the store.

use super::log_store::LogStore;
use super::snapshot::{self, Builder, SnapshotData};
use super::store::{Position, Store, Wait};
use super::types::{
    Applied, Entry, EntryOrigin, LogId, Machine, Membership, Snapshot, SnapshotMeta, StorageError,
    StorageIOError, TypeConfig, any,
};
use lumeofs_base::{Code, FsError, FsResult};
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Pause before a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// Applies entries to a store.
pub(super) struct StateMachine<M> {
    store: Arc<Store>,
    log: LogStore,
    machine: Arc<M>,
}

impl<M: Machine> StateMachine<M> {
    pub(super) fn new(store: Arc<Store>, log: LogStore, machine: Arc<M>) -> Self {
        Self {
            store,
            log,
            machine,
        }
    }

    /// Rule R6: with both maps full the next entry waits for the disk, and with it the proposer.
    async fn wait_for_room(&self) -> FsResult<()> {
        loop {
            let checkpointed = self.store.checkpointed.notified();
            tokio::pin!(checkpointed);
            checkpointed.as_mut().enable();
            match self.store.must_wait() {
                Wait::No => return Ok(()),
                Wait::ForCheckpoint => checkpointed.await,
                Wait::NeedsCheckpoint => {
                    let store = self.store.clone();
                    if !blocking(move || store.checkpoint_if_room()).await? {
                        sleep(FULL_RETRY).await;
                    }
                }
            }
        }
    }

    async fn apply_durable(&self, entry: &Entry) -> FsResult<Applied> {
        // A majority has it, but a leader may be part of that majority in memory only so far.
        self.log.wait_durable(entry.log_id.index).await?;
        self.wait_for_room().await?;
        self.apply_entry(entry)
    }

    fn apply_entry(&self, entry: &Entry) -> FsResult<Applied> {
        let id = entry.log_id;
        self.store.apply(|current| {
            let applied = match &entry.payload {
                EntryPayload::Blank => Applied::Nothing,
                EntryPayload::Membership(membership) => {
                    current.position.membership = Membership::new(Some(id), membership.clone());
                    Applied::Nothing
                }
                EntryPayload::Normal(payload) => {
                    let origin = EntryOrigin {
                        index: id.index,
                        term: id.leader_id.into(),
                    };
                    self.machine
                        .apply(&mut current.overlay, origin, &payload.0)?
                }
            };
            current.position.applied = Some(id);
            Ok(applied)
        })
    }
}

impl<M: Machine> RaftStateMachine<TypeConfig> for StateMachine<M> {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, Membership), StorageError> {
        let position = self.store.position();
        Ok((position.applied, position.membership))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = Vec::new();
        for entry in entries {
            let failed = |error: FsError| StorageIOError::apply(entry.log_id, any(&error));
            let done = self.apply_durable(&entry).await;
            applied.push(
                done.inspect_err(|error| self.store.fail(error))
                    .map_err(failed)?,
            );
        }
        Ok(applied)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.store.clone())
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, StorageError> {
        let incoming = self
            .store
            .receive()
            .map_err(|error| StorageIOError::write_snapshot(None, any(&error)))?;
        Ok(Box::new(SnapshotData::Incoming(incoming)))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: Box<SnapshotData>,
    ) -> Result<(), StorageError> {
        let position = Position {
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
        };
        let (store, machine) = (self.store.clone(), self.machine.clone());
        blocking(move || {
            let incoming = match *data {
                SnapshotData::Incoming(incoming) => incoming,
                SnapshotData::Outgoing(base) => {
                    let mut incoming = store.receive()?;
                    snapshot::copy(base, &mut incoming)?;
                    incoming
                }
            };
            store.install(incoming, &position)?;
            machine.replaced();
            Ok(())
        })
        .await
        // The log waits for it before it forgets what the snapshot replaces.
        .inspect_err(|error| self.store.fail(error))
        .map_err(|error| StorageIOError::write_snapshot(Some(meta.signature()), any(&error)).into())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        Ok(snapshot::current(&self.store))
    }
}

/// Runs disk work off the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> FsResult<T> + Send + 'static,
) -> FsResult<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(FsError::new(Code::Io, format!("disk work: {error}"))))
}
