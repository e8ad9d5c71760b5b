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
/// How often is looked whether the leases count.
const LOOK: Duration = Duration::from_millis(200);
/// How long the leader waits at most until pages are dropped.
const DROP_MAX: Duration = Duration::from_secs(1);
/// The same while requests for these pages are under way: they may be what waits for the leader.
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
    /// Those of them whose pages must go, in order.
    due: VecDeque<InodeId>,
    /// The one whose pages are being dropped.
    dropping: Option<InodeId>,
    /// Requests for pages that are under way.
    requests: HashMap<InodeId, usize>,
    /// The leader was not kept waiting for what is due now any longer.
    is_late: bool,
    late: u64,
    ended: bool,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

impl State {
    fn is_done(&self) -> bool {
        self.due.is_empty() && self.dropping.is_none()
    }

    fn push(&mut self, ino: InodeId) {
        if self.files.remove(&ino) {
            self.due.push_back(ino);
        }
    }
}

impl Kernel {
    /// The kernel must not show its pages of a file any more.
    pub(crate) fn forget(&self, ino: InodeId) {
        let mut state = self.state.lock();
        if state.files.contains(&ino) {
            state.push(ino);
            self.changed.notify_all();
        }
    }

    /// The same for all files.
    pub(crate) fn forget_all(&self) {
        let state = &mut *self.state.lock();
        if !state.files.is_empty() {
            state.due.extend(state.files.drain());
            self.changed.notify_all();
        }
    }

    /// Whether there are pages to be dropped for which the leader should wait.
    pub(crate) fn is_due(&self) -> bool {
        let state = self.state.lock();
        !state.is_done() && !state.is_late
    }

    /// Waits until the pages are dropped that must go, or for long enough.
    pub(crate) fn wait(&self) {
        let since = now();
        let mut state = self.state.lock();
        while !state.is_done() && !state.is_late {
            let is_busy = state
                .dropping
                .is_some_and(|ino| state.requests.contains_key(&ino));
            let limit = if is_busy { DROP_MAX_BUSY } else { DROP_MAX };
            let left = (since + limit).saturating_sub(now());
            if left.is_zero() {
                state.is_late = true;
                state.late += 1;
                return;
            }
            self.changed.wait_for(&mut state, left.min(DROP_MAX_BUSY));
        }
    }

    /// Ends the thread.
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
        let next = state.due.pop_front();
        let (Some(ino), Some(drop_pages)) = (next, state.drop_pages.clone()) else {
            state.is_late = false;
            self.changed.notify_all();
            match state.files.is_empty() {
                true => self.changed.wait(&mut state),
                false => drop(self.changed.wait_for(&mut state, LOOK)),
            }
            return true;
        };
        state.dropping = Some(ino);
        drop(state);
        drop_pages(ino);
        self.state.lock().dropping = None;
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
            // Nobody will tell of changes.
            kernel.forget(self.ino);
        }
    }
}

impl Link {
    /// A background thread.
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
