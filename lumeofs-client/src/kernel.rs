//! Pages of files in the page cache of the kernel that this client serves: of mappings, `splice` and `sendfile` (rule K2).
//!
//! What the kernel may have of a file goes when the client's own memory of it goes, and the leader hears that only
//! afterwards. The kernel waits for requests that are under way when it drops pages, and these may wait for the leader; so a
//! thread of its own asks it, and the leader is kept waiting for a limited time.

use crate::client::Client;
use crate::link::Link;
use crate::wait::now;
use lumeofs_base::InodeId;
use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Files of which the kernel may have pages. Beyond that all are dropped.
const FILES_MAX: usize = 65_536;
/// Threads that drop pages: so many may wait for one file each.
pub(crate) const DROPPERS: usize = 4;
/// How often is looked whether the leases count.
const LOOK: Duration = Duration::from_millis(200);
/// How long the leader waits at most until the pages of a file are dropped.
const DROP_MAX: Duration = Duration::from_secs(1);
/// The same once that has begun, while requests for these pages are under way: they may be what waits for the leader.
const DROP_MAX_BUSY: Duration = Duration::from_millis(50);

/// Has the kernel drop its pages of a file. Returns when they are gone.
type DropPages = Arc<dyn Fn(InodeId) + Send + Sync>;

/// What is known of the kernel's pages.
#[derive(Default)]
pub(crate) struct Kernel {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    drop_pages: Option<DropPages>,
    /// Files of which there may be pages.
    files: HashSet<InodeId>,
    /// Files whose pages must go.
    due: HashMap<InodeId, Due>,
    /// Those that no thread has taken up, in order.
    queue: VecDeque<InodeId>,
    /// Requests for pages that are under way.
    requests: HashMap<InodeId, usize>,
    /// How often the leader was not kept waiting any longer.
    late: u64,
    ended: bool,
}

/// A file whose pages must go.
struct Due {
    since: Duration,
    /// When a thread took it up.
    begun: Option<Duration>,
    /// There may be pages again since.
    again: bool,
    /// The leader is kept waiting for it.
    is_awaited: bool,
    /// It was, and for long enough.
    is_late: bool,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

impl State {
    /// The pages of a file must go, if there may be any.
    fn push(&mut self, now: Duration, ino: InodeId, is_awaited: bool) {
        let has_pages = self.files.remove(&ino);
        if let Some(due) = self.due.get_mut(&ino) {
            due.again |= has_pages && due.begun.is_some();
            // What took too long is waited for again only if there is more of it.
            if is_awaited && !due.is_awaited && (has_pages || !due.is_late) {
                (due.since, due.is_awaited, due.is_late) = (now, true, false);
            }
            return;
        }
        if !has_pages {
            return;
        }
        let due = Due {
            since: now,
            begun: None,
            again: false,
            is_awaited,
            is_late: false,
        };
        self.due.insert(ino, due);
        self.queue.push_back(ino);
    }

    /// How long the leader has to wait still; does not wait for what takes too long.
    fn left(&mut self, now: Duration) -> Option<Duration> {
        let mut left = None;
        for (ino, due) in &mut self.due {
            let busy = self.requests.contains_key(ino);
            let mut until = due.since + DROP_MAX;
            if let Some(begun) = due.begun.filter(|_| busy) {
                until = until.min(begun.max(due.since) + DROP_MAX_BUSY);
            }
            if due.is_awaited && until <= now {
                (due.is_awaited, due.is_late) = (false, true);
                self.late += 1;
            } else if due.is_awaited {
                left = left.max(Some(until - now));
            }
        }
        left
    }
}

impl Kernel {
    /// The kernel must not show its pages of a file any more. The leader is kept waiting for that with `is_awaited`.
    fn must_drop(&self, ino: InodeId, is_awaited: bool) {
        let mut state = self.state.lock();
        state.push(now(), ino, is_awaited);
        self.changed.notify_all();
    }

    /// What this client knows of a file has changed, or ends.
    pub(crate) fn forget(&self, ino: InodeId) {
        self.must_drop(ino, true);
    }

    /// The same for all files.
    pub(crate) fn forget_all(&self) {
        let mut state = self.state.lock();
        let files: Vec<InodeId> = state.files.iter().copied().collect();
        for ino in files {
            state.push(now(), ino, true);
        }
        self.changed.notify_all();
    }

    /// Whether there are pages to be dropped for which the leader should wait.
    pub(crate) fn is_due(&self) -> bool {
        self.state.lock().left(now()).is_some()
    }

    /// Waits until the pages are dropped that must go, or for long enough.
    pub(crate) fn wait(&self) {
        let mut state = self.state.lock();
        while let Some(left) = state.left(now())
            && !state.ended
        {
            self.changed.wait_for(&mut state, left.min(DROP_MAX_BUSY));
        }
    }

    /// Ends the threads.
    pub(crate) fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    /// Drops what is due, or waits for something. False: the end has come.
    fn drop_next(&self) -> bool {
        let mut state = self.state.lock();
        if state.ended {
            return false;
        }
        let taken = match state.drop_pages.clone() {
            Some(drop_pages) => state.queue.pop_front().map(|ino| (ino, drop_pages)),
            None => None,
        };
        let Some((ino, drop_pages)) = taken else {
            match state.files.is_empty() {
                true => self.changed.wait(&mut state),
                false => drop(self.changed.wait_for(&mut state, LOOK)),
            }
            return true;
        };
        if let Some(due) = state.due.get_mut(&ino) {
            (due.begun, due.again) = (Some(now()), false);
        }
        drop(state);
        drop_pages(ino);
        let state = &mut *self.state.lock();
        match state.due.get_mut(&ino) {
            Some(due) if due.again => {
                due.begun = None;
                state.queue.push_back(ino);
            }
            _ => drop(state.due.remove(&ino)),
        }
        self.changed.notify_all();
        true
    }
}

/// A request that fills or empties the kernel's page cache, until it is dropped.
pub struct PageRequest<'a> {
    link: &'a Link,
    ino: InodeId,
}

impl Drop for PageRequest<'_> {
    fn drop(&mut self) {
        let kernel = &self.link.kernel;
        let is_kept = self.link.keeps_data(self.ino);
        let mut state = kernel.state.lock();
        if let Some(count) = state.requests.get_mut(&self.ino) {
            *count -= 1;
            if *count == 0 {
                state.requests.remove(&self.ino);
            }
        }
        drop(state);
        if !is_kept {
            // Nobody will tell of changes, nor wait for this.
            kernel.must_drop(self.ino, false);
        }
    }
}

impl Link {
    /// One of [`DROPPERS`] background threads.
    pub(crate) fn keep_dropping_pages(&self) {
        while self.kernel.drop_next() {
            if !self.leases_count() {
                // Of changes nothing may be heard any more.
                self.kernel.forget_all();
            }
        }
    }
}

impl Client {
    /// Says how the kernel drops its pages of a file; `drop_pages` returns when they are gone. It is called by a thread of its
    /// own that no request waits for.
    pub fn on_changed(&self, drop_pages: impl Fn(InodeId) + Send + Sync + 'static) {
        self.link.kernel.state.lock().drop_pages = Some(Arc::new(drop_pages));
    }

    /// Before a request is answered that fills the kernel's page cache from a file, or comes from there.
    pub fn page_request(&self, ino: InodeId) -> PageRequest<'_> {
        let kernel = &self.link.kernel;
        let is_full = {
            let mut state = kernel.state.lock();
            *state.requests.entry(ino).or_default() += 1;
            state.files.len() >= FILES_MAX && !state.files.contains(&ino)
        };
        if is_full {
            kernel.forget_all();
        }
        {
            let files = &mut kernel.state.lock().files;
            files.insert(ino);
            if files.len() == 1 {
                // From now on somebody looks whether leases count.
                kernel.changed.notify_all();
            }
        }
        PageRequest {
            link: &self.link,
            ino,
        }
    }

    /// How often the leader was not kept waiting any longer although the kernel had not dropped pages.
    pub fn late_page_drops(&self) -> u64 {
        self.link.kernel.state.lock().late
    }
}
