//! On which disk a group lies, and what becomes of a group that does not belong here any more.

use crate::group::{Caller, GroupDriver};
use crate::node::Node;
use crate::store::ChunkStore;
use lumeofs_base::{ClusterMap, GroupConfig, GroupId};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the work of a group that was stopped may take to end before its chunks are dropped.
const IDLE_WAIT: Duration = Duration::from_secs(10);

/// Groups in transit.
#[derive(Default)]
pub(crate) struct Placing {
    /// Groups whose chunks are being dropped: they begin anew only afterwards.
    dropping: Mutex<BTreeSet<GroupId>>,
    /// Since when the disk of a group has failed.
    failed: Mutex<BTreeMap<GroupId, Duration>>,
}

impl Placing {
    /// Whether the group's old chunks are still being dropped.
    pub(crate) fn is_dropping(&self, group: GroupId) -> bool {
        self.dropping.lock().contains(&group)
    }
}

impl Node {
    /// The disk that has the newest of the group, or the one where it belongs.
    pub(crate) fn store_of(&self, group: GroupId) -> Arc<ChunkStore> {
        let stores = self.stores();
        let works = |store: &&Arc<ChunkStore>| store.check().is_ok();
        let has = |store: &&Arc<ChunkStore>| store.has_group(group);
        let newest = stores
            .iter()
            .filter(has)
            .max_by_key(|store| store.last(group));
        let default = &stores[group.get() as usize % stores.len()];
        let roomiest = stores
            .iter()
            .filter(works)
            .max_by_key(|store| store.space().1);
        let new = Some(default).filter(works).or(roomiest).unwrap_or(default);
        newest.unwrap_or(new).clone()
    }

    /// Ends groups that the map has without this datanode, and drops what disks have of them: also what is left from
    /// before a restart, or on a disk that another has taken the place of.
    pub(crate) fn retire_groups(self: &Arc<Self>, map: &ClusterMap) {
        for config in &map.groups {
            let is_member = config.members.contains(&self.identity.node);
            let driver = self.group(config.group);
            let known = driver
                .as_ref()
                .map(|driver| driver.with(Caller::Quick, |core, _| core.config().epoch))
                .max(self.known.get(config.group).map(|known| known.epoch));
            // Not to be judged yet: it is about to begin, or the map is older than what it knows.
            if (is_member && driver.is_none()) || known > Some(config.epoch) {
                continue;
            }
            let in_use = driver
                .as_ref()
                .filter(|_| is_member)
                .map(|driver| driver.store.clone());
            let is_old = |store: &&Arc<ChunkStore>| {
                // Whoever dropped this datanode made a new epoch. One of a map that is older than what is here, such
                // as a restored one, says nothing.
                store.has_group(config.group)
                    && (is_member || config.epoch > store.last(config.group).epoch)
            };
            let old = self.stores().iter().filter(is_old).filter(|store| {
                store.check().is_ok()
                    && !in_use.as_ref().is_some_and(|used| Arc::ptr_eq(used, store))
            });
            let old: Vec<_> = old.cloned().collect();
            let ends = driver.filter(|_| !is_member);
            if (ends.is_some() || !old.is_empty())
                && self.placing.dropping.lock().insert(config.group)
            {
                self.drop_old(config, ends, old);
            }
        }
    }

    fn drop_old(
        self: &Arc<Self>,
        config: &GroupConfig,
        ends: Option<Arc<GroupDriver>>,
        stores: Vec<Arc<ChunkStore>>,
    ) {
        let (node, group) = (self.clone(), config.group);
        if ends.is_some() {
            tracing::info!(%group, epoch = %config.epoch, "no member of the group any more: dropping its chunks");
            self.forget_group(group);
        }
        self.spawn(&format!("drop-{group}"), move || {
            if let Some(driver) = &ends {
                driver.end();
            }
            for store in stores {
                if let Err(error) = store.drop_group(group) {
                    tracing::warn!(%group, %error, "chunks that do not belong here could not be dropped");
                }
            }
            node.placing.dropping.lock().remove(&group);
            // It may have become a member again meanwhile.
            node.apply_map(ClusterMap::clone(&node.map()));
        });
    }

    /// Moves groups whose disk has failed for good to another disk, where they are caught up like on a new one.
    pub(crate) fn move_off_failed_disks(self: &Arc<Self>) {
        let now = lumeofs_base::clock::Clock::monotonic(&self.clock);
        let patience = Duration::from_millis(self.map().repair.after_ms);
        let mut failed = self.placing.failed.lock();
        for driver in self.groups() {
            if driver.store.check().is_ok() {
                failed.remove(&driver.id);
                continue;
            }
            let since = *failed.entry(driver.id).or_insert(now);
            if now < since + patience {
                continue;
            }
            let Some(store) = self.spare_store() else {
                continue;
            };
            failed.remove(&driver.id);
            tracing::warn!(group = %driver.id, "the group's disk has failed: it moves to another disk of this datanode");
            let config = driver.with(Caller::Quick, |core, _| core.config().clone());
            self.forget_group(driver.id);
            driver.stop();
            self.start_group(config, store);
        }
    }

    /// Groups whose disk has failed for good, and for which there is no other.
    pub(crate) fn lost_groups(&self) -> Vec<u32> {
        let now = lumeofs_base::clock::Clock::monotonic(&self.clock);
        let patience = Duration::from_millis(self.map().repair.after_ms);
        let failed = self.placing.failed.lock();
        let lost = failed.iter().filter(|(_, since)| now >= **since + patience);
        lost.map(|(group, _)| group.get()).collect()
    }

    /// Whether no group is here, nor anything on its way out.
    pub(crate) fn holds_nothing(&self) -> bool {
        self.groups().is_empty() && self.placing.dropping.lock().is_empty()
    }

    /// The disk with the most room, if there is one that works and is not nearly full.
    fn spare_store(&self) -> Option<Arc<ChunkStore>> {
        let fits = |store: &&Arc<ChunkStore>| {
            let (total, free) = store.space();
            store.check().is_ok() && free > total / lumeofs_base::limits::REPAIR_FREE_PART_MIN
        };
        let stores = self.stores().iter().filter(fits);
        stores.max_by_key(|store| store.space().1).cloned()
    }
}

impl GroupDriver {
    /// Stops the group and waits until nothing of it is at the store.
    fn end(&self) {
        self.stop();
        let late = Instant::now() + IDLE_WAIT;
        while !self.work.is_idle() && Instant::now() < late {
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}
