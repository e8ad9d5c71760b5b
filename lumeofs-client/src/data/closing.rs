//! The end of a client: what was written is sent and published as long as anything moves, and what is lost is told.
//!
//! The threads that write behind do the work, several files at once, so that one file that fails or waits stops no
//! other; here they are only watched.

use crate::fenced::NAMED_MAX;
use crate::link::Link;
use crate::wait::now;
use lumeofs_base::limits::LEAVE_PATIENCE;
use lumeofs_base::{Code, FsError, FsResult};
use std::time::Duration;

/// How often it is looked how much is left.
const LOOK: Duration = Duration::from_millis(20);

impl Link {
    /// Sends and publishes everything while there still is a session, until nothing has moved for [`LEAVE_PATIENCE`].
    ///
    /// # Errors
    /// `Io` if anything is lost: it could not be sent, now or earlier, and no call has reported that. The log has each
    /// file and its bytes.
    pub(crate) fn settle_before_close(&self) -> FsResult<()> {
        let told = self.tell_before_close();
        self.send_before_close();
        self.publish_before_close();
        self.tell_accesses_before_close();
        let (unsent, untold) = (self.pages.unsent(), self.inodes.untold());
        if unsent.is_empty() && untold.is_empty() {
            return told;
        }
        for (ino, bytes) in unsent.iter().take(NAMED_MAX) {
            tracing::error!(%ino, bytes, "what was written is lost: it could not be sent before the end");
        }
        for (ino, error) in untold.iter().take(NAMED_MAX) {
            tracing::error!(%ino, %error, "no call has reported that what was written could not be stored");
        }
        let bytes: u64 = unsent.iter().map(|(_, bytes)| bytes).sum();
        let what = format!(
            "what was written is lost: of {} files {bytes} bytes could not be sent before the end, of {} files no call \
             has reported an error",
            unsent.len(),
            untold.len()
        );
        Err(FsError::new(Code::Io, what))
    }

    fn send_before_close(&self) {
        self.pages.shared.settle_all();
        let unsent = || self.pages.unsent().len();
        // What was sent may still be unpublished, so it is not seen by what is left.
        let done = || {
            let stats = self.pages.shared.stats();
            stats.written_bytes + stats.publications
        };
        let mut before = done();
        // An outage is not waited out twice.
        let silence = self.masters.silence().min(LEAVE_PATIENCE / 2);
        let mut moved = now().saturating_sub(silence);
        while unsent() > 0 && now() - moved < LEAVE_PATIENCE {
            self.halt.sleep(LOOK);
            let done = done();
            if done > before {
                (before, moved) = (done, now());
            }
        }
    }

    /// Publishes modification times, as long as the leader answers.
    fn publish_before_close(&self) {
        for ino in self.inodes.all_dirty() {
            let left = LEAVE_PATIENCE.saturating_sub(self.masters.silence());
            if left.is_zero() || self.publish_in_background(ino, Some(left)).is_err() {
                return;
            }
        }
    }
}
