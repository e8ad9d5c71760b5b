//! Read-ahead: a few threads fetch what a sequential reader will want next. A reader that comes to what they fetch waits
//! for it. Nothing waits for the queue: what does not fit is not read ahead.

use crate::data::cached::whole_blocks;
use crate::link::{Asker, Link};
use crate::pages::file::File;
use crate::wait::Patience;
use crossbeam::channel::{Receiver, Sender, bounded};
use lumeofs_base::limits::REQUEST_TIMEOUT;
use parking_lot::Mutex;
use std::ops::Range;
use std::sync::Arc;

/// Fetches that wait for a thread.
const QUEUE_MAX: usize = 64;
/// Bytes that one thread fetches at once.
const JOB_BYTES: u64 = 1 << 20;

/// What is to be read ahead.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// `None` once the client has ended.
    sender: Mutex<Option<Sender<Job>>>,
    receiver: Receiver<Job>,
}

#[derive(Debug)]
struct Job {
    file: Arc<File>,
    range: Range<u64>,
    /// How often the file's data had been dropped: it is not to be fetched under another lease.
    drops: u64,
}

impl Default for Ahead {
    fn default() -> Self {
        let (sender, receiver) = bounded(QUEUE_MAX);
        let sender = Mutex::new(Some(sender));
        Self { sender, receiver }
    }
}

impl Ahead {
    /// Ends the threads.
    pub(crate) fn end(&self) {
        self.sender.lock().take();
    }

    fn send(&self, job: Job) -> bool {
        let sender = self.sender.lock();
        sender
            .as_ref()
            .is_some_and(|sender| sender.try_send(job).is_ok())
    }
}

impl Link {
    /// After a read was asked for: has fetched what comes next, if the reader is a sequential one.
    pub(crate) fn read_ahead(&self, file: &Arc<File>, range: &Range<u64>, size: u64) {
        let most = self.pages.shared.ahead_max();
        let Some(ahead) = file.streams.lock().advance(range, size, most) else {
            return;
        };
        let ahead = whole_blocks(&ahead, size);
        let (drops, is_there) = file.look(|state| (state.drops, state.has(&ahead)));
        if is_there {
            return;
        }
        let mut start = ahead.start;
        while start < ahead.end {
            let end = (start / JOB_BYTES * JOB_BYTES + JOB_BYTES).min(ahead.end);
            let job = Job {
                file: Arc::clone(file),
                range: start..end,
                drops,
            };
            if !self.ahead.send(job) {
                return;
            }
            start = end;
        }
    }

    /// A background thread.
    pub(crate) fn keep_reading_ahead(&self) {
        while let Ok(job) = self.ahead.receiver.recv() {
            if self.halt.is_halted() {
                return;
            }
            let (id, ranges) = job.file.change(|state| match state.drops == job.drops {
                true => state.begin_fill(std::slice::from_ref(&job.range), true),
                false => (0, Vec::new()),
            });
            if ranges.is_empty() {
                continue;
            }
            let asker = Asker::background(Patience::background(&self.halt, Some(REQUEST_TIMEOUT)));
            let inode = self.inodes.get(job.file.ino);
            if let Err(error) = self.fetch_fill(&asker, &job.file, &inode, id, &ranges) {
                // Who reads it will ask again, and hear of it.
                tracing::debug!(ino = %job.file.ino, %error, "not read ahead");
            }
        }
    }
}
