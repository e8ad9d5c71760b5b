//! The Raft log: one WAL that holds votes, entries, truncations and purges in the order in which they
//! were decided.
//!
//! A leader's own entries go to its disk and to the followers at the same time: openraft, which would wait for
//! our disk first, is told at once that they are there. Two gates make up for it. Nothing is applied and no commit
//! index is sent ([`LogStore::wait_durable`]) before our log is on disk that far, so whatever anybody sees rests on
//! a majority of disks. And a restarted leader does not lead on in its old term, where it might give indices out again
//! that followers have filled: it starts as a candidate whose election did not end.

use super::log_index::LogIndex;
use super::log_record::{self, Record, State};
use super::state_machine::blocking;
use super::store::Store;
use super::types::{Entry, LogId, StorageError, StorageIOError, TypeConfig, Vote, any};
use lumeofs_base::disk::Disk;
use lumeofs_base::disk::os::OsDisk;
use lumeofs_base::{Code, FsError, FsResult};
use lumeofs_wal::{Lsn, Wal, WalConfig};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

/// Bytes of entries in one append to a follower, at least one entry: fits a frame's header.
const APPEND_BYTES_MAX: usize = 512 << 10;

/// Pause before a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// How long a purge waits for the installation of the snapshot that it belongs to.
const SAVE_TIMEOUT: Duration = Duration::from_secs(300);
/// How often it looks.
const SAVE_LOOK: Duration = Duration::from_millis(100);

/// A Raft log; clones share it.
#[derive(Clone)]
pub(super) struct LogStore(Arc<Shared>);

struct Shared {
    wal: Wal,
    index: Mutex<LogIndex>,
    /// This member.
    me: u64,
    /// It led when the log was closed.
    resigned: bool,
    /// The member is about to end.
    closing: AtomicBool,
    /// What it has saved may be purged here.
    store: OnceLock<Arc<Store>>,
}

impl LogStore {
    /// Opens or creates the log of the member `me` in a directory, which must exist.
    pub(super) fn open(dir: &Path, config: WalConfig, me: u64) -> FsResult<Self> {
        Self::open_on(Arc::new(OsDisk::new(dir)), config, me)
    }

    fn open_on(disk: Arc<dyn Disk>, config: WalConfig, me: u64) -> FsResult<Self> {
        let mut index = LogIndex::default();
        let wal = Wal::open(disk, Path::new(""), config, &mut |lsn, bytes| {
            index.replay(lsn, log_record::decode(bytes)?, bytes.len() as u32)
        })?;
        index.check()?;
        let resigned = index.resign(me);
        Ok(Self(Arc::new(Shared {
            wal,
            index: Mutex::new(index),
            me,
            resigned,
            closing: AtomicBool::new(false),
            store: OnceLock::new(),
        })))
    }

    /// From now on nothing is purged that this store has not saved. Ends what a crash interrupted: a snapshot that was
    /// installed stands for entries that are still here, or that never came.
    pub(super) async fn stand_behind(&self, store: Arc<Store>) -> FsResult<()> {
        let applied = store.applied();
        let set = self.0.store.set(store);
        assert!(set.is_ok(), "a log belongs to one store");
        match applied {
            Some(applied) if self.0.index.lock().is_replaced_by(applied) => {
                self.purge_saved(applied).await
            }
            _ => Ok(()),
        }
    }

    /// Waits until a crash would leave the entries up to `upto` in the store. openraft 0.9 purges the log as soon as
    /// it has *asked* for the installation of a snapshot; ended there, this member would have neither.
    async fn wait_saved(&self, upto: LogId) -> FsResult<()> {
        let Some(store) = self.0.store.get() else {
            return Ok(());
        };
        let begun = Instant::now();
        while !store.has_saved(upto)? {
            if self.0.closing.load(Ordering::Relaxed) {
                return Err(FsError::new(Code::Unavailable, "stopping"));
            }
            if begun.elapsed() > SAVE_TIMEOUT {
                let text = format!("entry {} is to be purged but was never saved", upto.index);
                return Err(FsError::new(Code::Timeout, text));
            }
            // Also looks by itself: the signal may have come just before.
            let _ = timeout(SAVE_LOOK, store.checkpointed.notified()).await;
        }
        Ok(())
    }

    /// Cuts off the entries up to `upto`, which are saved.
    async fn purge_saved(&self, upto: LogId) -> FsResult<()> {
        let (record, is_jump) = {
            let index = self.0.index.lock();
            let mut state: State = index.state.clone();
            state.purged = state.purged.max(Some(upto));
            let record = log_record::encode(&Record::State(state));
            (record, index.is_replaced_by(upto))
        };
        let enter = |index: &mut LogIndex, lsn| {
            index.purge(upto);
            Ok((lsn, index.first_lsn().unwrap_or(lsn).min(lsn)))
        };
        let appended = if is_jump {
            // The next entry will not be the next one of this log: without the record that says why, nobody
            // could read it again.
            self.append_record(&record, enter).await
        } else {
            let mut index = self.0.index.lock();
            match self.0.wal.append(&[&record]) {
                Ok(lsn) => enter(&mut index, lsn),
                // The log stays longer than it must; a later purge cuts it.
                Err(error) if error.code == Code::NoSpace => return Ok(()),
                Err(error) => Err(error),
            }
        };
        let (state_lsn, first_needed) = appended?;
        // The state restates what lies in the part that is cut off, so it must be on disk first.
        self.durable(state_lsn).await?;
        let shared = self.0.clone();
        blocking(move || shared.wal.truncate_before(first_needed)).await
    }

    /// Makes an empty log begin behind an entry that it never had, as if it had been cut off there. `vote` is what this
    /// member has voted for.
    pub(super) async fn begin_behind(&self, last: LogId, vote: Vote) -> FsResult<()> {
        assert!(self.is_blank(), "only a new log begins anywhere");
        let state = State {
            vote: Some(vote),
            committed: Some(last),
            purged: Some(last),
        };
        let record = log_record::encode(&Record::State(state.clone()));
        let enter = |index: &mut LogIndex, lsn| {
            index.purge(last);
            index.state = state;
            Ok(lsn)
        };
        let lsn = self.append_record(&record, enter).await?;
        self.durable(lsn).await
    }

    /// The highest index that may be purged while at least `entries_min` entries or `bytes_min`
    /// bytes stay.
    pub(super) fn purgeable(&self, entries_min: u64, bytes_min: u64) -> Option<u64> {
        self.0.index.lock().purgeable(entries_min, bytes_min)
    }

    /// Whether this member led when the log was closed.
    pub(super) fn has_resigned(&self) -> bool {
        self.0.resigned
    }

    /// Whether nothing was ever written to it.
    pub(super) fn is_blank(&self) -> bool {
        let index = self.0.index.lock();
        index.last().is_none() && index.state.vote.is_none()
    }

    /// Index of the last entry that was cut off at the front.
    pub(super) fn purged(&self) -> Option<u64> {
        self.0.index.lock().state.purged.map(|id| id.index)
    }

    /// Id of the last entry.
    pub(super) fn last(&self) -> Option<LogId> {
        self.0.index.lock().last()
    }

    /// Id of the newest entry that is known to be committed.
    pub(super) fn wal(&self) -> &Wal {
        &self.0.wal
    }

    pub(super) fn committed(&self) -> Option<LogId> {
        self.0.index.lock().state.committed
    }

    /// Returns when the entries up to `upto`, as far as this log has them, are on our disk.
    pub(super) async fn wait_durable(&self, upto: u64) -> FsResult<()> {
        let Some(lsn) = self.0.index.lock().lsn_upto(upto) else {
            return Ok(());
        };
        if lsn <= self.0.wal.durable() {
            return Ok(());
        }
        self.durable(lsn).await
    }

    /// Waits until a record is on disk.
    async fn durable(&self, lsn: Lsn) -> FsResult<()> {
        let (sender, receiver) = oneshot::channel();
        self.0
            .wal
            .on_durable(lsn, Box::new(move |done| drop(sender.send(done))));
        receiver
            .await
            .unwrap_or_else(|_| Err(FsError::new(Code::Io, "Raft log is closed")))
    }

    /// Appends a record and enters it in the index. While the disk is full it waits: openraft takes any
    /// error of a log for the end of the member, and this one ends by itself when there is space again.
    /// To the others a member that waits looks like one that is gone.
    async fn append_record<T>(
        &self,
        bytes: &[u8],
        enter: impl FnOnce(&mut LogIndex, Lsn) -> FsResult<T>,
    ) -> FsResult<T> {
        let mut told = false;
        loop {
            {
                let mut index = self.0.index.lock();
                match self.0.wal.append(&[bytes]) {
                    Ok(lsn) => return enter(&mut index, lsn),
                    Err(error) if error.code != Code::NoSpace => return Err(error),
                    Err(error) if self.0.closing.load(Ordering::Relaxed) => return Err(error),
                    Err(error) if !told => {
                        told = true;
                        tracing::error!(%error, "the Raft log waits for space on its disk: free some");
                    }
                    Err(_) => {}
                }
            }
            sleep(FULL_RETRY).await;
        }
    }

    /// Ends waits for space.
    pub(super) fn close(&self) {
        self.0.closing.store(true, Ordering::Relaxed);
    }

    /// Appends entries. Says where the last one lies, and whether this member proposed them as leader.
    async fn append_all(
        &self,
        entries: impl Iterator<Item = Entry> + Send,
    ) -> FsResult<Option<(Lsn, bool)>> {
        let mut last = None;
        for entry in entries {
            let bytes = log_record::encode_entry(&entry);
            let enter = |index: &mut LogIndex, lsn| {
                index.push(entry.log_id, lsn, bytes.len() as u32)?;
                let is_own = index.leads(self.0.me, entry.log_id.leader_id);
                index.remember(entry, bytes.len() as u32);
                Ok((lsn, is_own))
            };
            last = Some(self.append_record(&bytes, enter).await?);
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
        let enter = |index: &mut LogIndex, lsn| {
            index.state.vote = Some(*vote);
            Ok(lsn)
        };
        let record = log_record::encode(&Record::Vote(*vote));
        let lsn = self.append_record(&record, enter).await.map_err(failed)?;
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
        match self.0.wal.append(&[&record]) {
            Err(error) if error.code != Code::NoSpace => Err(write_failed(error).into()),
            _ => Ok(()),
        }
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
        let appended = self.append_all(entries.into_iter()).await;
        match appended.map_err(write_failed)? {
            Some((_, true)) => {
                self.0.wal.request_sync();
                done(Ok(()));
            }
            Some((lsn, false)) => self.0.wal.on_durable(lsn, Box::new(done)),
            None => done(Ok(())),
        }
        Ok(())
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        let enter = |index: &mut LogIndex, _| {
            index.truncate(since.index);
            Ok(())
        };
        // No sync: whatever follows is durable only if this is.
        let record = log_record::encode(&Record::Truncate { since: since.index });
        let done = self.append_record(&record, enter).await;
        done.map_err(|error| write_failed(error).into())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        self.wait_saved(upto).await.map_err(write_failed)?;
        let purged = self.purge_saved(upto).await;
        purged.map_err(|error| write_failed(error).into())
    }
}

fn read_failed(error: FsError) -> StorageError {
    StorageIOError::read_logs(any(&error)).into()
}

fn write_failed(error: FsError) -> StorageIOError {
    StorageIOError::write_logs(any(&error))
}

#[cfg(test)]
mod tests {
    use super::super::types::LeaderId;
    use super::*;
    use lumeofs_base::disk::sim::SimDisk;
    use openraft::EntryPayload;
    use openraft::storage::RaftLogStorageExt as _;

    fn id(index: u64) -> LogId {
        LogId {
            leader_id: LeaderId {
                term: 1,
                node_id: 1,
            },
            index,
        }
    }

    fn entry(index: u64) -> Entry {
        Entry {
            log_id: id(index),
            payload: EntryPayload::Blank,
        }
    }

    #[tokio::test]
    async fn a_jump_over_entries_waits_for_space_as_the_log_could_not_be_read_without_it() {
        let disk = SimDisk::new();
        let config = WalConfig {
            segment_bytes: 64 << 10,
            ..WalConfig::default()
        };
        let open = || LogStore::open_on(Arc::new(disk.clone()), config, 2).unwrap();
        let mut log = open();
        log.blocking_append((1..=40).map(entry)).await.unwrap();
        disk.set_capacity(0);
        let filler = log_record::encode(&Record::Truncate { since: 41 });
        let full = loop {
            if let Err(error) = log.0.wal.append(&[&filler]) {
                break error;
            }
        };
        assert_eq!(full.code, Code::NoSpace);
        // This one may be forgotten: the entries stay.
        log.purge(id(10)).await.unwrap();
        let mut jumping = log.clone();
        let jump = tokio::spawn(async move { jumping.purge(id(100)).await });
        sleep(FULL_RETRY * 2).await;
        assert!(!jump.is_finished());
        disk.set_capacity(None);
        jump.await.unwrap().unwrap();
        log.blocking_append([entry(101)]).await.unwrap();
        drop(log);
        let mut log = open();
        let state = log.get_log_state().await.unwrap();
        assert_eq!(
            (state.last_purged_log_id, state.last_log_id),
            (Some(id(100)), Some(id(101)))
        );
    }
}
