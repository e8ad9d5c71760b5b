//! What callers, writer and keeper share: the state machine under its lock, and who waits for what.

use crate::Lsn;
use crate::core::Core;
use crate::files::{LogDir, LogFile};
use crate::stats::WalStats;
use lumeofs_base::{Code, FsError, FsResult};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What [`crate::Wal::on_durable`] is given.
pub(crate) type Callback = Box<dyn FnOnce(FsResult<()>) + Send>;

pub(crate) struct Shared {
    pub(crate) dir: LogDir,
    pub(crate) state: Mutex<State>,
    pub(crate) stats: WalStats,
    /// Wakes the writer.
    pub(crate) to_write: Condvar,
    /// Wakes the keeper.
    pub(crate) to_keep: Condvar,
    /// Wakes callers of sync and truncate_after.
    pub(crate) written: Condvar,
    /// Wakes callers of append that wait for space of any kind.
    pub(crate) room: Condvar,
}

pub(crate) struct State {
    pub(crate) core: Core<Arc<LogFile>>,
    /// The first failure. Nothing is written any more.
    pub(crate) poison: Option<FsError>,
    callbacks: BTreeMap<Lsn, Vec<Callback>>,
    /// Callbacks whose answer is known, for the writer to run.
    pub(crate) answered: Vec<(Callback, FsResult<()>)>,
    /// How often the keeper found the disk full, and what it was told the last time.
    pub(crate) full: (u64, FsError),
    /// The log is being closed: write what is buffered, then end.
    pub(crate) closing: bool,
}

impl State {
    pub(crate) fn new(core: Core<Arc<LogFile>>) -> Self {
        Self {
            core,
            poison: None,
            callbacks: BTreeMap::new(),
            answered: Vec::new(),
            full: (0, Code::NoSpace.into()),
            closing: false,
        }
    }

    pub(crate) fn check(&self) -> FsResult<()> {
        self.poison.clone().map_or(Ok(()), Err)
    }

    /// Whether somebody may wait for the record at `lsn`.
    pub(crate) fn check_known(&self, lsn: Lsn) -> FsResult<()> {
        self.check()?;
        if lsn <= self.core.last() {
            return Ok(());
        }
        let context = format!("the log ends at {}, before record {lsn}", self.core.last());
        Err(FsError::new(Code::Invalid, context))
    }

    pub(crate) fn call_when_durable(&mut self, lsn: Lsn, done: Callback) {
        match self.check_known(lsn) {
            Ok(()) if lsn > self.core.durable() => {
                self.core.want(lsn);
                self.callbacks.entry(lsn).or_default().push(done);
            }
            known => self.answered.push((done, known)),
        }
    }

    /// Moves callbacks to the answered ones as far as the log is durable.
    pub(crate) fn answer_durable(&mut self) {
        let durable = self.core.durable();
        while let Some(entry) = self.callbacks.first_entry()
            && *entry.key() <= durable
        {
            let callbacks = entry.remove().into_iter();
            self.answered
                .extend(callbacks.map(|callback| (callback, Ok(()))));
        }
    }
}

impl Shared {
    /// Makes `error` the answer to everything from now on. Only the first one counts.
    pub(crate) fn poison(&self, state: &mut State, error: FsError) {
        if state.poison.is_none() {
            let dir = self.dir.dir.display();
            tracing::error!("the log in {dir} stops after a failure: {error}");
            let error = FsError {
                code: Code::Io,
                ..error
            }
            .during(format_args!("log {dir} failed"));
            state.poison = Some(error.clone());
            let callbacks = std::mem::take(&mut state.callbacks).into_values().flatten();
            state
                .answered
                .extend(callbacks.map(|callback| (callback, Err(error.clone()))));
        }
        self.to_write.notify_all();
        self.to_keep.notify_all();
        self.written.notify_all();
        self.room.notify_all();
    }
}

/// Poisons the log if its thread panics, so that nobody waits for it for ever.
pub(crate) struct PanicGuard<'a>(pub(crate) &'a Shared);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.0.state.lock();
            let error = FsError::new(Code::Io, "a thread of the log panicked");
            self.0.poison(&mut state, error);
        }
    }
}
