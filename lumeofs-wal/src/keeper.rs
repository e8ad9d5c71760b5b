//! The keeper thread: prepares space ahead of the writer and takes care of segments given up, so
//! that neither appends nor syncs have to.

use crate::core::Chore;
use crate::files::LogFile;
use crate::format::{Floor, Name};
use crate::state::{PanicGuard, Shared, State};
use lumeofs_base::limits::WAL_FILL_PIECE_BYTES;
use lumeofs_base::{AlignedBuf, Code, FsResult};
use parking_lot::MutexGuard;
use std::sync::{Arc, OnceLock};

/// What files are filled with, one for all logs of the process.
static ZEROS: OnceLock<AlignedBuf> = OnceLock::new();

/// What only the keeper knows.
pub(crate) struct Keeper {
    pub(crate) floor: Floor,
    pub(crate) floor_file: Arc<LogFile>,
    pub(crate) next_spare: u64,
}

/// What became of a chore.
enum Outcome {
    Done,
    Created(Arc<LogFile>, u64),
}

impl Keeper {
    /// Runs until the log is closed and what it gave up is dealt with.
    pub(crate) fn run(mut self, shared: &Shared) {
        let zeros = ZEROS.get_or_init(|| AlignedBuf::zeroed(WAL_FILL_PIECE_BYTES));
        let _guard = PanicGuard(shared);
        let mut state = shared.state.lock();
        loop {
            let chore = match (&state.poison, state.closing) {
                (Some(_), _) => None,
                (None, true) => state.core.next_retirement(),
                (None, false) => state.core.next_chore(),
            };
            let Some(chore) = chore else {
                if state.closing {
                    return;
                }
                shared.to_keep.wait(&mut state);
                continue;
            };
            let done = MutexGuard::unlocked(&mut state, || self.execute(shared, chore, zeros));
            finish(shared, &mut state, done);
        }
    }

    fn execute(
        &mut self,
        shared: &Shared,
        chore: Chore<Arc<LogFile>>,
        zeros: &AlignedBuf,
    ) -> FsResult<Outcome> {
        match chore {
            Chore::Fill { file, offset, len } => {
                shared.dir.fill(&file, offset, len, zeros)?;
                Ok(Outcome::Done)
            }
            Chore::CreateSpare => {
                let file = shared.dir.create_spare(self.next_spare)?;
                self.next_spare += 1;
                let filled = file.filled()?;
                Ok(Outcome::Created(file, filled))
            }
            Chore::Retire { floor, files } => {
                self.retire(shared, floor, &files)?;
                Ok(Outcome::Done)
            }
        }
    }

    /// The floor goes first: a segment that is gone while the log still leads to it is an error.
    /// The names go last, and are durable before a spare can be used again: otherwise a crash could
    /// bring back a segment whose bytes are already another's.
    fn retire(
        &mut self,
        shared: &Shared,
        floor: Option<u64>,
        files: &[(Arc<LogFile>, bool)],
    ) -> FsResult<()> {
        if let Some(base) = floor {
            self.floor = Floor {
                counter: self.floor.counter + 1,
                base,
            };
            shared.dir.write_floor(&self.floor_file, self.floor)?;
        }
        for (file, keep) in files {
            if *keep {
                shared.dir.rename(file, Name::Spare(self.next_spare))?;
                self.next_spare += 1;
            } else {
                shared.dir.remove(file)?;
            }
        }
        shared.dir.sync()
    }
}

fn finish(shared: &Shared, state: &mut State, done: FsResult<Outcome>) {
    match done {
        Ok(Outcome::Done) => state.core.chore_done(),
        Ok(Outcome::Created(file, filled)) => state.core.spare_created(file, filled),
        Err(error) if error.code == Code::NoSpace => {
            tracing::warn!(
                "the log in {} cannot grow: {error}",
                shared.dir.dir.display()
            );
            state.core.pause_filling();
            state.full = (state.full.0 + 1, error);
            shared.written.notify_all();
        }
        Err(error) => return shared.poison(state, error),
    }
    shared.room.notify_all();
    if state.core.is_truncating() {
        shared.to_write.notify_one();
    }
}
