//! The writer thread: takes whatever is buffered, writes it as one batch, answers who waited.

use crate::core::Step;
use crate::files::{LogFile, disk_error};
use crate::state::{PanicGuard, Shared, State};
use lumeofs_base::FsResult;
use lumeofs_base::clock::{Clock as _, SystemClock};
use parking_lot::MutexGuard;
use std::sync::Arc;

/// Runs until the log is closed and everything buffered is written.
pub(crate) fn run(shared: &Shared) {
    let _guard = PanicGuard(shared);
    let mut state = shared.state.lock();
    loop {
        if !state.answered.is_empty() {
            let answered = std::mem::take(&mut state.answered);
            MutexGuard::unlocked(&mut state, || {
                for (callback, result) in answered {
                    callback(result);
                }
            });
            continue;
        }
        match next_step(shared, &mut state) {
            Some(step) => {
                let done = MutexGuard::unlocked(&mut state, || execute(shared, step));
                finish(shared, &mut state, done);
            }
            None if state.closing => return,
            None => shared.to_write.wait(&mut state),
        }
    }
}

fn next_step(shared: &Shared, state: &mut State) -> Option<Step<Arc<LogFile>>> {
    if state.poison.is_some() {
        return None;
    }
    if state.closing {
        let last = state.core.last();
        state.core.want(last);
    }
    let truncating = state.core.is_truncating();
    let step = state.core.next_step();
    if truncating && step.is_none() {
        // Either there was nothing to drop, or the keeper must prepare a segment first.
        shared.written.notify_all();
        shared.to_keep.notify_all();
        shared.room.notify_all();
    }
    step
}

/// The step is consumed so that the batch's buffer can be used again.
fn execute(shared: &Shared, step: Step<Arc<LogFile>>) -> FsResult<()> {
    match step {
        Step::Begin { file, header } => shared.dir.begin(&file, &header),
        Step::Write {
            file,
            offset,
            batch,
        } => {
            let begun = SystemClock.monotonic();
            let written = file.file.write_all_at(batch.bytes(), offset);
            let took = SystemClock.monotonic().saturating_sub(begun);
            shared.stats.wrote(batch.bytes().len(), took);
            written.map_err(disk_error("write", &file.path()))
        }
    }
}

fn finish(shared: &Shared, state: &mut State, done: FsResult<()>) {
    // The keeper may have failed meanwhile; what was written is durable all the same, but the answer
    // was given.
    match done {
        Ok(()) if state.poison.is_none() => {
            state.core.step_done();
            state.answer_durable();
            shared.written.notify_all();
            shared.room.notify_all();
            if state.core.has_chore() {
                shared.to_keep.notify_one();
            }
        }
        Ok(()) => {}
        Err(error) => shared.poison(state, error),
    }
}
