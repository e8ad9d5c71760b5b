//! What the threads of a datanode share.

#[cfg(test)]
mod tests;

use crate::blocked::Work;
use crate::control::Control;
use crate::group::{Caller, GroupDriver};
use crate::known::Known;
use crate::metrics::Requests;
use crate::pace::Pace;
use crate::peers::Peers;
use crate::placing::Placing;
use crate::requests::Forwards;
use crate::run::DatanodeConfig;
use crate::scrub::Scrub;
use crate::store::{ChunkStore, Reservation};
use lumeofs_base::clock::SystemClock;
use lumeofs_base::in_work::Board;
use lumeofs_base::limits::GROUP_INFLIGHT_BYTES_MAX;
use lumeofs_base::{
    ChunkId, ClusterMap, Code, FsError, FsResult, GroupConfig, GroupId, NodeId, entropy,
};
use lumeofs_proto::auth::Identity;
use lumeofs_proto::blocking::Closer;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Below this much free space a datanode takes no more data, whatever its groups.
const LOW_SPACE_BYTES: u64 = 128 << 20;

/// What of a store of this size counts as too little. What primaries elsewhere have ordered before
/// they hear of it must still fit.
fn low_space(total: u64, groups: usize) -> u64 {
    let in_flight = groups as u64 * GROUP_INFLIGHT_BYTES_MAX as u64;
    (LOW_SPACE_BYTES + in_flight).min(total / 8)
}

/// A datanode.
pub(crate) struct Node {
    pub(crate) config: DatanodeConfig,
    pub(crate) identity: Identity,
    pub(crate) clock: SystemClock,
    stores: Vec<Arc<ChunkStore>>,
    scrubs: Vec<Arc<Scrub>>,
    /// Data directories that are not used, and why.
    broken: Vec<(PathBuf, String)>,
    map: RwLock<Arc<ClusterMap>>,
    groups: RwLock<BTreeMap<GroupId, Arc<GroupDriver>>>,
    pub(crate) control: Control,
    pub(crate) peers: Peers,
    pub(crate) forwards: Forwards,
    pub(crate) placing: Placing,
    pub(crate) pace: Pace,
    pub(crate) requests: Arc<Requests>,
    pub(crate) known: Known,
    /// Requests that its connections work on.
    pub(crate) work: Board<Work>,
    conns: Mutex<HashMap<u64, Closer>>,
    nonce: AtomicU64,
    stopping: AtomicBool,
    refusal: Mutex<Option<FsError>>,
    threads: AtomicUsize,
}

impl Node {
    /// `broken` says what is wrong with disks that are not among `stores`, which are in the order of their directories.
    pub(crate) fn new(
        config: DatanodeConfig,
        stores: Vec<Arc<ChunkStore>>,
        broken: Vec<(PathBuf, String)>,
    ) -> Arc<Self> {
        let is_used = |dir: &&PathBuf| !broken.iter().any(|(broken, _)| broken == *dir);
        let used = config.data_dirs.iter().filter(is_used).zip(&stores);
        let scrub = |(dir, store): (&PathBuf, &Arc<ChunkStore>)| {
            let (dir, rate) = (dir.display().to_string(), config.scrub_rate_bytes);
            Arc::new(Scrub::new(store.clone(), dir, rate))
        };
        let scrubs = used.map(scrub).collect();
        let control = Control::new();
        let known = Known::open(config.data_dirs.first().map(PathBuf::as_path));
        // Room for the streams of each: a core adds 24 bits.
        let nonce = u64::from_le_bytes(entropy::bytes()) >> 32;
        Arc::new(Self {
            identity: config.identity.clone(),
            config,
            clock: SystemClock,
            stores,
            scrubs,
            broken,
            map: RwLock::default(),
            groups: RwLock::default(),
            control,
            peers: Peers::default(),
            forwards: Forwards::default(),
            placing: Placing::default(),
            pace: Pace::default(),
            requests: Arc::default(),
            known,
            work: Board::default(),
            conns: Mutex::default(),
            nonce: AtomicU64::new(nonce),
            stopping: AtomicBool::new(false),
            refusal: Mutex::default(),
            threads: AtomicUsize::new(0),
        })
    }

    /// A number that nobody else got from this process.
    pub(crate) fn next_nonce(&self) -> u64 {
        self.nonce.fetch_add(1, Ordering::Relaxed)
    }

    /// Starts a named thread that ends soon after [`Node::stop`].
    pub(crate) fn spawn(self: &Arc<Self>, name: &str, body: impl FnOnce() + Send + 'static) {
        let node = self.clone();
        node.threads.fetch_add(1, Ordering::AcqRel);
        let builder = std::thread::Builder::new().name(name.to_owned());
        let started = builder.spawn(move || {
            body();
            node.threads.fetch_sub(1, Ordering::AcqRel);
        });
        if let Err(error) = started {
            self.threads.fetch_sub(1, Ordering::AcqRel);
            tracing::error!(%name, %error, "cannot start a thread");
        }
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads.load(Ordering::Acquire)
    }

    pub(crate) fn map(&self) -> Arc<ClusterMap> {
        self.map.read().clone()
    }

    pub(crate) fn address_of(&self, node: NodeId) -> FsResult<String> {
        let map = self.map();
        let info = map.node(node).ok_or_else(|| {
            FsError::new(
                Code::Unavailable,
                format!("address of datanode {node} is not known yet"),
            )
        })?;
        Ok(info.address.clone())
    }

    pub(crate) fn group(&self, group: GroupId) -> Option<Arc<GroupDriver>> {
        self.groups.read().get(&group).cloned()
    }

    pub(crate) fn groups(&self) -> Vec<Arc<GroupDriver>> {
        self.groups.read().values().cloned().collect()
    }

    /// The group, which learns of the configuration; started if this datanode is a member.
    pub(crate) fn group_of(self: &Arc<Self>, config: GroupConfig) -> Option<Arc<GroupDriver>> {
        let known = self.group(config.group);
        if let Some(driver) = known {
            driver.with(Caller::Quick, |core, now| core.on_config(&config, now));
            return Some(driver);
        }
        let is_member = config.members.contains(&self.identity.node);
        if !is_member || self.is_stopping() || self.placing.is_dropping(config.group) {
            return None;
        }
        let store = self.store_of(config.group);
        Some(self.start_group(config, store))
    }

    /// Starts a group of which this datanode is a member.
    pub(crate) fn start_group(
        self: &Arc<Self>,
        config: GroupConfig,
        store: Arc<ChunkStore>,
    ) -> Arc<GroupDriver> {
        let id = config.group;
        let mut groups = self.groups.write();
        if let Some(driver) = groups.get(&id) {
            return driver.clone();
        }
        let driver = GroupDriver::new(self, store, config);
        groups.insert(id, driver.clone());
        driver
    }

    /// No further request finds the group.
    pub(crate) fn forget_group(&self, group: GroupId) {
        self.groups.write().remove(&group);
    }

    pub(crate) fn stores(&self) -> &[Arc<ChunkStore>] {
        &self.stores
    }

    pub(crate) fn scrubs(&self) -> &[Arc<Scrub>] {
        &self.scrubs
    }

    /// A request came upon damage in a range of a chunk: repairs it from other members if that can be done at once.
    /// Whether the range is whole.
    pub(crate) fn mend(
        &self,
        store: &Arc<ChunkStore>,
        chunk: ChunkId,
        offset: u64,
        len: u64,
    ) -> bool {
        let mut scrubs = self.scrubs.iter();
        let scrub = scrubs.find(|scrub| scrub.is_of(store));
        store.check().is_ok()
            && scrub.is_some_and(|scrub| scrub.mend_range(self, chunk, offset, len))
    }

    /// The data directories, with their stores where they are used.
    pub(crate) fn disks(&self) -> impl Iterator<Item = (&Path, Option<&ChunkStore>)> {
        let is_broken = |dir: &Path| self.broken.iter().any(|(broken, _)| broken == dir);
        let mut stores = self.stores.iter();
        self.config.data_dirs.iter().map(move |dir| {
            // Stores are in the order of their directories.
            let store = if is_broken(dir) { None } else { stores.next() };
            (dir.as_path(), store.map(|store| &**store))
        })
    }

    /// A map from the controller.
    pub(crate) fn apply_map(self: &Arc<Self>, map: ClusterMap) {
        if map.version < self.map().version {
            return;
        }
        let map = Arc::new(map);
        *self.map.write() = map.clone();
        for config in &map.groups {
            self.group_of(config.clone());
        }
        self.retire_groups(&map);
    }

    /// Bytes in all and free, without those that writes never get.
    pub(crate) fn space(&self) -> (u64, u64) {
        let spaces = self.stores.iter().map(|store| {
            let (total, free) = store.shown_space();
            let kept = low_space(total, self.groups_on(store));
            (total - kept, free.saturating_sub(kept))
        });
        spaces.fold((0, 0), |sum, space| (sum.0 + space.0, sum.1 + space.1))
    }

    /// No master wants this datanode: it cannot do anything.
    pub(crate) fn refuse(&self, error: FsError) {
        *self.refusal.lock() = Some(error);
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.refusal.lock().is_some()
    }

    pub(crate) fn refusal(&self) -> Option<FsError> {
        self.refusal.lock().clone()
    }

    fn groups_on(&self, store: &Arc<ChunkStore>) -> usize {
        let groups = self.groups.read();
        groups
            .values()
            .filter(|driver| Arc::ptr_eq(&driver.store, store))
            .count()
    }

    /// Space for data that is about to be ordered. [`Code::NoSpace`] if it could find the disk full.
    pub(crate) fn reserve(&self, store: &Arc<ChunkStore>, len: usize) -> FsResult<Reservation> {
        let (total, _) = store.space();
        store.reserve(len, low_space(total, self.groups_on(store)))
    }

    /// What is wrong with this datanode's disks, for people. Empty if nothing is.
    pub(crate) fn trouble(&self) -> String {
        let errors = self.stores.iter().filter_map(|store| store.check().err());
        let errors = errors.map(|error| error.context);
        let broken = self.broken.iter();
        let broken = broken.map(|(dir, why)| format!("{}: {why}", dir.display()));
        let all: Vec<String> = broken.chain(errors).collect();
        all.join("; ")
    }

    /// Time passes.
    pub(crate) fn tick(self: &Arc<Self>) {
        self.move_off_failed_disks();
        self.pace.tick(self.map().repair.rate_bytes);
        for driver in self.groups() {
            // Of a disk that hangs, or answers again, nobody else would tell the group.
            match driver.store.check() {
                Ok(()) => driver.store_works(),
                Err(error) => driver.store_failed(&error),
            }
            driver.work.nudge_if_queued();
            let (total, free) = driver.store.space();
            let low = free < low_space(total, self.groups_on(&driver.store)) || total == 0;
            driver.with(Caller::Quick, |core, now| {
                core.set_low_space(low);
                core.on_tick(now);
            });
        }
    }

    /// A connection by which beacons came has ended.
    pub(crate) fn beacons_ended(&self, from: NodeId) {
        for driver in self.groups() {
            driver.with(Caller::Quick, |core, _| core.on_primary_reset(from));
        }
    }

    /// Whether all groups are as they should be.
    pub(crate) fn is_settled(&self) -> bool {
        let groups = self.groups();
        !groups.is_empty()
            && groups
                .iter()
                .all(|driver| driver.with(Caller::Quick, |core, _| core.is_settled()))
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// How many connections there are.
    pub(crate) fn connections(&self) -> usize {
        self.conns.lock().len()
    }

    /// Remembers a connection so that [`Node::stop`] can end it.
    pub(crate) fn register(&self, closer: Closer) -> u64 {
        let id = self.next_nonce();
        self.conns.lock().insert(id, closer);
        if self.is_stopping() {
            self.unregister(id);
        }
        id
    }

    /// Ends and forgets a connection.
    pub(crate) fn unregister(&self, id: u64) {
        if let Some(closer) = self.conns.lock().remove(&id) {
            closer.close();
        }
    }

    /// Ends all threads and connections.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.control.stop();
        self.peers.stop();
        for driver in self.groups() {
            driver.stop();
        }
        self.groups.write().clear();
        self.conns
            .lock()
            .drain()
            .for_each(|(_, closer)| closer.close());
    }
}
