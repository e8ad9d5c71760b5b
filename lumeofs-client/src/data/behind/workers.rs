//! The threads that write behind.
//!
//! They are few and serve all files, so none stays for long with one whose servers do not answer: it is tried again
//! after a pause, by some of the threads at most, and given up when its outage has lasted as long as the mount waits.

use crate::inodes::Inode;
use crate::link::{Asker, Link};
use crate::pages::file::File;
use crate::pages::queue::{AGE_MAX, Work};
use crate::pages::state::State;
use crate::pages::state::sending::{Claimed, Until};
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
        let result = match is_batch {
            true => self.send_batch(&asker, &inode, file, is_last_try),
            false => self.settle(&asker, &inode, file, is_last_try),
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

    /// Lets somebody else finish with a file, for a while.
    fn look_away(&self, file: &File, seen: u64) {
        let patience = Patience::background(&self.halt, Some(AGE_MAX));
        // Whether that has ended is seen the next time.
        file.wait(seen, &patience).ok();
    }

    /// Sends what one request after the other can take of a file that is being written to.
    fn send_batch(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        file: &Arc<File>,
        is_last_try: bool,
    ) -> FsResult<()> {
        file.change(|state| state.is_ready = false);
        let seen = file.events();
        match self.claim(file, Until::ALL, false) {
            Claimed::Some(id, range) => {
                self.send_claim(asker, inode, file, id, &range, is_last_try)?
            }
            // It is being written again while it is sent.
            Claimed::UnderWay => self.look_away(file, seen),
            Claimed::None => {}
        }
        if file.look(State::unpublished) >= self.pages.shared.unpublished_max() {
            self.publish_local(asker, inode, file, true)?;
        }
        Ok(())
    }

    /// Sends all that is dirty now and publishes, unless somebody else is at it.
    fn settle(
        &self,
        asker: &Asker<'_>,
        inode: &Inode,
        file: &Arc<File>,
        is_last_try: bool,
    ) -> FsResult<()> {
        let all = file.change(|state| {
            state.is_aging = false;
            state.begin_flush()
        });
        loop {
            let seen = file.events();
            match self.claim(file, all, true) {
                Claimed::Some(id, range) => {
                    self.send_claim(asker, inode, file, id, &range, is_last_try)?
                }
                // When that has ended, what there is left to do comes up again.
                Claimed::UnderWay => {
                    self.look_away(file, seen);
                    return Ok(());
                }
                Claimed::None => break,
            }
        }
        self.publish_local(asker, inode, file, true).map(drop)
    }
}
