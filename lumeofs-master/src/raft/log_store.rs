//! The Raft log: one WAL that holds votes, entries, truncations and purges in the order in which they
//! were decided.

use super::log_index::LogIndex;
use super::log_record::{self, Record, State};
use super::state_machine::blocking;
use super::types::{Entry, LogId, StorageError, StorageIOError, Term, TypeConfig, Vote, any};
use lumeofs_base::disk::os::OsDisk;
use lumeofs_base::{FsError, FsResult};
use lumeofs_wal::{Lsn, Wal, WalConfig};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Bytes of entries in one append to a follower, at least one entry: fits a frame's header.
const APPEND_BYTES_MAX: usize = 512 << 10;

/// A Raft log; clones share it.
#[derive(Clone)]
pub(super) struct LogStore(Arc<Shared>);

struct Shared {
    wal: Wal,
    index: Mutex<LogIndex>,
}

impl LogStore {
    /// Opens or creates the log in a directory, which must exist.
    pub(super) fn open(dir: &Path, config: WalConfig) -> FsResult<Self> {
        let mut index = LogIndex::default();
        let disk = Arc::new(OsDisk::new(dir));
        let wal = Wal::open(disk, Path::new(""), config, &mut |lsn, bytes| {
            index.replay(lsn, log_record::decode(bytes)?, bytes.len() as u32)
        })?;
        index.check()?;
        Ok(Self(Arc::new(Shared {
            wal,
            index: Mutex::new(index),
        })))
    }

    /// The highest index that may be purged while at least `entries_min` entries or `bytes_min`
    /// bytes stay.
    pub(super) fn purgeable(&self, entries_min: u64, bytes_min: u64) -> Option<u64> {
        self.0.index.lock().purgeable(entries_min, bytes_min)
    }

    /// Id of the newest entry that is known to be committed.
    pub(super) fn committed(&self) -> Option<LogId> {
        self.0.index.lock().state.committed
    }

    /// The leadership of `node` that the saved vote stands for, with the last entry's index.
    pub(super) fn leadership_of(&self, node: u64) -> Option<(Term, u64)> {
        let index = self.0.index.lock();
        let vote = index
            .state
            .vote
            .filter(|vote| vote.committed && vote.leader_id.node_id == node)?;
        Some((vote.leader_id.into(), index.last()?.index))
    }

    /// Waits until a record is on disk.
    async fn durable(&self, lsn: Lsn) -> FsResult<()> {
        let (sender, receiver) = oneshot::channel();
        self.0
            .wal
            .on_durable(lsn, Box::new(move |done| drop(sender.send(done))));
        receiver
            .await
            .unwrap_or_else(|_| Err(FsError::new(lumeofs_base::Code::Io, "Raft log is closed")))
    }

    fn append_all(&self, entries: impl Iterator<Item = Entry>) -> FsResult<Option<Lsn>> {
        let mut index = self.0.index.lock();
        let mut last = None;
        for entry in entries {
            let bytes = log_record::encode_entry(&entry);
            let lsn = self.0.wal.append(&[&bytes])?;
            index.push(entry.log_id, lsn, bytes.len() as u32)?;
            index.remember(entry, bytes.len() as u32);
            last = Some(lsn);
        }
        Ok(last)
    }

    /// Reads entries; at most `bytes_max` of them, but at least one.
    async fn entries(&self, from: u64, to: u64, bytes_max: usize) -> FsResult<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut missing = Vec::new();
        {
            let index = self.0.index.lock();
            let mut bytes = 0;
            for at in index.clamp(from, to) {
                let slot = index.slot(at);
                bytes += slot.bytes as usize;
                if bytes > bytes_max && !(entries.is_empty() && missing.is_empty()) {
                    break;
                }
                // The cache holds the end of the log: what it lacks comes first.
                match index.cached(at) {
                    Some(entry) => entries.push(entry.clone()),
                    None => missing.push(slot.lsn),
                }
            }
        }
        if missing.is_empty() {
            return Ok(entries);
        }
        let shared = self.0.clone();
        let mut read = blocking(move || {
            let read = |lsn: Lsn| log_record::decode_entry(&shared.wal.read(lsn)?);
            missing.into_iter().map(read).collect::<FsResult<Vec<_>>>()
        })
        .await?;
        read.append(&mut entries);
        Ok(read)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(from, to, usize::MAX)
            .await
            .map_err(read_failed)
    }

    async fn limited_get_log_entries(
        &mut self,
        from: u64,
        to: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.entries(from, to, APPEND_BYTES_MAX)
            .await
            .map_err(read_failed)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let index = self.0.index.lock();
        Ok(LogState {
            last_purged_log_id: index.state.purged,
            last_log_id: index.last(),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let failed = |error: FsError| StorageIOError::write_vote(any(&error));
        let lsn = {
            let mut index = self.0.index.lock();
            index.state.vote = Some(*vote);
            self.0
                .wal
                .append(&[&log_record::encode(&Record::Vote(*vote))])
                .map_err(failed)?
        };
        self.durable(lsn)
            .await
            .map_err(|error| failed(error).into())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.0.index.lock().state.vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let Some(committed) = committed else {
            return Ok(());
        };
        let mut index = self.0.index.lock();
        index.state.committed = Some(committed);
        // It rides along with the next entries: losing it costs a restarted master a moment only.
        let record = log_record::encode(&Record::Committed(committed));
        self.0.wal.append(&[&record]).map_err(write_failed)?;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.committed())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let done = move |done: FsResult<()>| {
            callback
                .log_io_completed(done.map_err(|error| std::io::Error::other(error.to_string())));
        };
        match self.append_all(entries.into_iter()).map_err(write_failed)? {
            Some(lsn) => self.0.wal.on_durable(lsn, Box::new(done)),
            None => done(Ok(())),
        }
        Ok(())
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        let mut index = self.0.index.lock();
        index.truncate(since.index);
        // No sync: whatever follows is durable only if this is.
        let record = log_record::encode(&Record::Truncate { since: since.index });
        self.0.wal.append(&[&record]).map_err(write_failed)?;
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        let (state_lsn, first_needed) = {
            let mut index = self.0.index.lock();
            index.purge(upto);
            let state: State = index.state.clone();
            let lsn = self
                .0
                .wal
                .append(&[&log_record::encode(&Record::State(state))])
                .map_err(write_failed)?;
            (lsn, index.first_lsn().unwrap_or(lsn).min(lsn))
        };
        // The state restates what lies in the part that is cut off, so it must be on disk first.
        self.durable(state_lsn).await.map_err(write_failed)?;
        let shared = self.0.clone();
        blocking(move || shared.wal.truncate_before(first_needed))
            .await
            .map_err(|e| write_failed(e).into())
    }
}

fn read_failed(error: FsError) -> StorageError {
    StorageIOError::read_logs(any(&error)).into()
}

fn write_failed(error: FsError) -> StorageIOError {
    StorageIOError::write_logs(any(&error))
}
