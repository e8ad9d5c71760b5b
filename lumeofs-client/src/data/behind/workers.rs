//! The threads that write behind.
//!
//! They are few and serve all files, so none stays for long with one whose servers do not answer: it is tried again
//! after a pause, by some of the threads at most, and given up when its outage has lasted as long as the mount waits.

use crate::data::behind::Sending;
use crate::link::{Asker, Link};
use crate::pages::file::File;
use crate::pages::queue::Work;
use crate::pages::state::State;
use crate::wait::{Patience, limit_of, now};
use lumeofs_base::FsResult;
use lumeofs_base::limits::REQUEST_TIMEOUT;
use std::sync::Arc;
use std::time::Duration;

/// How long one attempt at a file may see no answer of datanodes.
const ATTEMPT: Duration = REQUEST_TIMEOUT;

impl Link {
    /// A background thread.
    pub(crate) fn keep_writing(&self) {
        while !self.halt.is_halted() {
            let (file, is_batch) = match self.pages.shared.next_work(&self.halt) {
                Work::Batch(file) => (file, true),
                Work::Settle(file) => (file, false),
                Work::Wait(_) => continue,
            };
            if file.look(|state| state.stuck_since.is_none()) {
                self.attempt(&file, is_batch);
            } else if self.pages.shared.begin_retry() {
                self.attempt(&file, is_batch);
                self.pages.shared.end_retry();
            } else {
                file.put_off(is_batch);
            }
        }
    }

    fn attempt(&self, file: &Arc<File>, is_batch: bool) {
        let began = now();
        let stuck_since = file.look(|state| state.stuck_since);
        let lasted = began.saturating_sub(stuck_since.unwrap_or(began));
        let limit = limit_of(self.on_outage);
        let attempt = limit.map_or(ATTEMPT, |limit| limit.min(ATTEMPT));
        let is_last_try = limit.is_some_and(|limit| lasted + attempt >= limit);
        // An outage of the metadata group is one for all files, and a mutation that is given up may still come.
        let patience = Patience::deferred(&self.halt, self.on_outage).with_datanodes(attempt);
        let asker = Asker::background(patience);
        let inode = self.inodes.get(file.ino);
        let sending = Sending {
            is_last_try,
            ..self.sending(&asker, &inode, file)
        };
        let result = match is_batch {
            true => sending.send_batch(),
            false => sending.settle(),
        };
        if let Err(error) = result
            && !self.halt.is_halted()
        {
            let ino = file.ino;
            if stuck_since.is_none() {
                tracing::warn!(%ino, %error, "written data is still to be sent");
            }
            // Before that, answers came.
            let since = began.max(now().saturating_sub(attempt));
            file.change(|state| *state.stuck_since.get_or_insert(since));
        }
    }
}

impl Sending<'_> {
    /// Sends one batch of a file that is being written to.
    fn send_batch(&self) -> FsResult<()> {
        self.file.change(|state| state.is_ready = false);
        self.send_some()?;
        if self.file.look(State::unpublished) >= self.link.pages.shared.unpublished_max() {
            self.publish_local(true)?;
        }
        Ok(())
    }

    /// Sends all that is dirty now and publishes, unless somebody else is at it: when that has ended, what there is left to
    /// do comes up again.
    fn settle(&self) -> FsResult<()> {
        let all = self.file.change(|state| {
            state.is_aging = false;
            state.begin_flush()
        });
        if self.send_all(all, false)? {
            self.publish_local(true)?;
        }
        Ok(())
    }
}
