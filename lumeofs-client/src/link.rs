//! What a client consists of: its connections, its knowledge of the cluster, its session, its files,
//! and the background threads that tend them.

use crate::atimes::Atimes;
use crate::client::{ClientOptions, Context, OnOutage};
use crate::data::{Ahead, Generations};
use crate::inodes::Inodes;
use crate::kernel::{DROPPERS, Kernel};
use crate::leases::Leases;
use crate::locks::Locks;
use crate::map::Maps;
use crate::masters::Masters;
use crate::opens::Opens;
use crate::pages::Pages;
use crate::pool::Pool;
use crate::retry::{Attempt, Next, retry};
use crate::session::{Alarm, SessionState};
use crate::wait::{Halt, Patience};
use crate::window::Window;
use lumeofs_base::limits::{REPLICAS_DEFAULT, SPACE_SHORT_BYTES};
use lumeofs_base::{ClusterMap, Code, FsError, FsResult, NodeInfo, SessionId};
use lumeofs_meta::op::Caller;
use lumeofs_proto::auth::Credentials;
use parking_lot::Mutex;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a client looks for the cluster. Covers an election after the loss of a silent leader.
const CONNECT_LIMIT: Duration = Duration::from_secs(8);

/// Write leases that are given back at once.
const GIVING_BACK: usize = 4;
/// Mutations without a caller that are under way at once.
const FINISHING: usize = 2;
/// Inodes whose locks are given back or released at once.
const LOCKING: usize = 2;
/// Threads that send what was written into the cache.
const WRITERS: usize = 4;
/// Threads that read ahead.
const READERS: usize = 4;

/// The inside of a [`crate::Client`], shared with its threads.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) pool: Arc<Pool>,
    pub(crate) masters: Masters,
    pub(crate) maps: Maps,
    pub(crate) window: Window,
    pub(crate) session: SessionState,
    pub(crate) opens: Opens,
    pub(crate) inodes: Inodes,
    pub(crate) leases: Leases,
    pub(crate) locks: Locks,
    pub(crate) pages: Pages,
    pub(crate) ahead: Ahead,
    pub(crate) atimes: Atimes,
    pub(crate) kernel: Kernel,
    pub(crate) generations: Generations,
    /// See [`Link::era`].
    pub(crate) era: AtomicU32,
    pub(crate) halt: Halt,
    pub(crate) description: String,
    pub(crate) on_outage: OnOutage,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Who asks, and how long they wait.
pub(crate) struct Asker<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) patience: Patience<'a>,
    /// The session under which it sent data first: no other one carries its call on.
    pub(crate) bound: Cell<Option<SessionId>>,
}

/// For what the client does of its own accord.
static TRUSTED: Caller = Caller {
    uid: 0,
    gid: 0,
    groups: Vec::new(),
    trusted: true,
};

impl<'a> Asker<'a> {
    /// The client itself.
    pub(crate) fn background(patience: Patience<'a>) -> Self {
        Self {
            caller: &TRUSTED,
            patience,
            bound: Cell::new(None),
        }
    }

    /// The client itself, as long as this asker waits.
    pub(crate) fn trusted(&self) -> Self {
        Self::background(self.patience.renewed())
    }
}

impl Link {
    pub(crate) fn connect(
        masters: &[String],
        credentials: Credentials,
        options: ClientOptions,
    ) -> FsResult<Arc<Self>> {
        let pool = Arc::new(Pool::new(credentials));
        let alarm = Arc::new(Alarm::default());
        let link = Arc::new(Self {
            masters: Masters::new(Arc::clone(&pool), Arc::clone(&alarm), masters)?,
            pool,
            maps: Maps::default(),
            window: Window::default(),
            session: SessionState::new(alarm),
            opens: Opens::default(),
            inodes: Inodes::default(),
            leases: Leases::new(),
            locks: Locks::default(),
            pages: Pages::new(options.cache_bytes),
            ahead: Ahead::default(),
            atimes: Atimes::default(),
            kernel: Kernel::default(),
            generations: Generations::default(),
            era: AtomicU32::new(0),
            halt: Halt::default(),
            description: options.description,
            on_outage: options.on_outage,
            threads: Mutex::default(),
        });
        link.begin()
            .map_err(|error| link.explain_no_beginning(masters, error))?;
        link.pages.shared.begin_session(link.window.session());
        link.restart_leases(Some(link.window.session()));
        link.start("lumeofs-session", Self::keep_session)?;
        link.start("lumeofs-publish", Self::keep_publishing)?;
        link.start("lumeofs-atime", Self::keep_telling_accesses)?;
        link.start("lumeofs-lease", Self::keep_polling)?;
        link.start("lumeofs-ack", Self::keep_acknowledging)?;
        link.start("lumeofs-make", Self::keep_telling)?;
        for _ in 0..DROPPERS {
            link.start("lumeofs-kernel", Self::keep_dropping_pages)?;
        }
        for _ in 0..GIVING_BACK {
            link.start("lumeofs-giveback", Self::keep_giving_back)?;
        }
        for _ in 0..LOCKING {
            link.start("lumeofs-locks", Self::keep_locks)?;
        }
        for _ in 0..FINISHING {
            link.start("lumeofs-finish", Self::keep_finishing)?;
        }
        for _ in 0..WRITERS {
            link.start("lumeofs-behind", Self::keep_writing)?;
        }
        for _ in 0..READERS {
            link.start("lumeofs-ahead", Self::keep_reading_ahead)?;
        }
        Ok(link)
    }

    /// Finds the masters and opens a session, within a time that counts from here: whoever starts
    /// something must hear within seconds that nobody is there, also who would wait out an outage.
    fn begin(&self) -> FsResult<()> {
        let patience = Patience::background(&self.halt, Some(CONNECT_LIMIT)).fixed();
        let mut first = FirstMap {
            link: self,
            patience: &patience,
        };
        retry(&patience, &mut first)?;
        self.open_session(&patience)
    }

    /// Says what to do about a beginning that failed.
    fn explain_no_beginning(&self, masters: &[String], error: FsError) -> FsError {
        let masters = masters.join(", ");
        match error.code {
            Code::Unavailable | Code::Timeout if !self.masters.have_answered() => FsError::new(
                Code::Unavailable,
                format!(
                    "no master answers at {masters}: {}; check the addresses, that the masters run \
                     and that nothing blocks their ports",
                    error.context
                ),
            ),
            Code::Unavailable | Code::Timeout | Code::NotLeader(_) => FsError::new(
                Code::Unavailable,
                format!(
                    "no quorum of the masters {masters}: {}; more than half of them must run and \
                     reach each other",
                    error.context
                ),
            ),
            _ => error,
        }
    }

    fn start(self: &Arc<Self>, name: &str, run: fn(&Self)) -> FsResult<()> {
        let link = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || run(&link));
        let thread =
            thread.map_err(|error| FsError::new(Code::Io, format!("thread {name}: {error}")))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Ends the client, within seconds also if nobody answers.
    ///
    /// # Errors
    /// What was written and is lost.
    pub(crate) fn close(&self) -> FsResult<()> {
        if self.halt.is_halted() {
            return Ok(());
        }
        let settled = self.settle_before_close();
        if !self.halt.halt() {
            return settled;
        }
        self.pages.shared.wake_workers();
        self.ahead.end();
        self.kernel.end();
        self.session.beat_soon();
        self.leases.wake();
        self.locks.wake();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.join().is_err() {
                tracing::error!("a background thread of the client panicked");
            }
        }
        self.close_session();
        settled
    }

    /// The newest map seen.
    pub(crate) fn map(&self) -> Arc<ClusterMap> {
        self.maps.current()
    }

    /// Bytes that can be stored, and how many of them are free: of all copies, divided by their number.
    pub(crate) fn space(&self, patience: &Patience<'_>) -> (u64, u64) {
        self.maps.refresh_space(&self.masters, patience);
        let map = self.map();
        let copies = map.groups.iter().map(|group| group.members.len()).max();
        let copies = copies.unwrap_or(REPLICAS_DEFAULT).max(1) as u64;
        let sum = |bytes: fn(&NodeInfo) -> u64| map.nodes.iter().map(bytes).sum::<u64>() / copies;
        (sum(|node| node.capacity_bytes), sum(|node| node.free_bytes))
    }

    /// Whether some datanode may have no room for what would wait in memory.
    pub(crate) fn is_short_of_space(&self) -> bool {
        let map = self.map();
        let wanted = SPACE_SHORT_BYTES + self.pages.shared.untold();
        let mut nodes = map.nodes.iter().filter(|node| node.capacity_bytes > 0);
        nodes.any(|node| node.free_bytes < wanted)
    }

    /// Reads the map again; a failure to do so only costs a later attempt. Says whether it is newer
    /// than `seen`.
    pub(crate) fn refresh_map(&self, patience: &Patience<'_>, seen: u64) -> bool {
        match self.maps.refresh(&self.masters, patience, seen) {
            Ok(newer) => {
                let map = self.map();
                self.pool.keep_only(|address| {
                    self.masters.has(address)
                        || map.nodes.iter().any(|node| node.address == address)
                });
                newer
            }
            Err(error) => {
                tracing::debug!(%error, "cluster map not refreshed");
                false
            }
        }
    }

    /// The asker of a call.
    pub(crate) fn asker<'a>(&'a self, cx: &Context<'a>) -> Asker<'a> {
        Asker {
            caller: cx.caller,
            patience: Patience::new(cx, &self.halt, self.on_outage),
            bound: Cell::new(None),
        }
    }
}

/// The first map must be there: without it neither nodes nor the chunk size are known.
struct FirstMap<'a, 'p> {
    link: &'a Link,
    patience: &'a Patience<'p>,
}

impl Attempt for FirstMap<'_, '_> {
    type Done = ();

    fn attempt(&mut self) -> FsResult<()> {
        self.link
            .maps
            .refresh(&self.link.masters, self.patience, 0)?;
        if self.link.map().chunk_size == 0 {
            return Err(FsError::new(
                Code::Unavailable,
                "the cluster has no configuration yet",
            ));
        }
        Ok(())
    }

    fn prepare(&mut self, _error: &FsError) -> FsResult<Next> {
        Ok(Next::Pause)
    }
}
