//! Which masters there are and where: one list that everything in this process reads and can watch.
//!
//! It begins with what this process was told, which founds a cluster; from then on the controller's records count,
//! as this master's member of the controller group has applied them.

use crate::config::MasterConfig;
use crate::raft::Store;
use lumeofs_base::NodeId;
use lumeofs_meta::controller::{self, MasterRecord, MasterState};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// How often it is looked whether the records have changed.
const LOOK: Duration = Duration::from_millis(100);

/// The masters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct List {
    /// All that are or were, by id.
    pub(crate) records: Vec<MasterRecord>,
    /// Whether the controller has recorded them; otherwise they are what this process was told.
    pub(crate) recorded: bool,
}

impl List {
    /// A master's record.
    pub(crate) fn get(&self, id: u64) -> Option<&MasterRecord> {
        self.records.iter().find(|master| master.id.get() == id)
    }

    /// Those that are members of the groups, or on their way to be, or not to be.
    pub(crate) fn members(&self) -> impl Iterator<Item = &MasterRecord> {
        self.records
            .iter()
            .filter(|master| !matches!(master.state, MasterState::Candidate | MasterState::Removed))
    }
}

/// The list, shared.
pub(crate) struct Masters {
    me: u64,
    /// Where a master asks that knows nobody yet.
    seeds: Vec<String>,
    list: watch::Sender<Arc<List>>,
}

impl Masters {
    /// What this process was told, or has recorded.
    pub(crate) fn new(config: &MasterConfig, store: &Store) -> Self {
        let recorded = recorded(store);
        let list = match recorded.is_empty() {
            true => List {
                records: founders(&config.masters),
                recorded: false,
            },
            false => List {
                records: recorded,
                recorded: true,
            },
        };
        let told = config.masters.iter();
        let told = told.filter(|(id, _)| **id != config.id());
        let told = told.map(|(_, address)| address.clone());
        Self {
            me: config.id(),
            seeds: config.seeds.iter().cloned().chain(told).collect(),
            list: watch::Sender::new(Arc::new(list)),
        }
    }

    /// Runs for ever: takes over what the controller records.
    pub(crate) async fn follow(self: Arc<Self>, store: Arc<Store>) {
        loop {
            self.take_over(recorded(&store));
            sleep(LOOK).await;
        }
    }

    fn take_over(&self, records: Vec<MasterRecord>) {
        self.list.send_if_modified(|list| {
            let new = !records.is_empty() && list.records != records;
            if new || (!records.is_empty() && !list.recorded) {
                *list = Arc::new(List {
                    records,
                    recorded: true,
                });
            }
            new
        });
    }

    /// The list now.
    pub(crate) fn list(&self) -> Arc<List> {
        self.list.borrow().clone()
    }

    /// The list whenever it changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<List>> {
        self.list.subscribe()
    }

    /// Where a master is.
    pub(crate) fn address(&self, id: u64) -> Option<String> {
        self.list
            .borrow()
            .get(id)
            .map(|master| master.address.clone())
    }

    /// Whether a master was removed.
    pub(crate) fn is_removed(&self, id: u64) -> bool {
        let list = self.list.borrow();
        list.get(id)
            .is_some_and(|master| master.state == MasterState::Removed)
    }

    /// Addresses of others that may know more than we do, each once.
    pub(crate) fn others(&self) -> Vec<String> {
        let list = self.list();
        let mine = list.get(self.me).map(|master| &master.address);
        let others = list.members().filter(|master| master.id.get() != self.me);
        let mut addresses: Vec<String> = others.map(|master| master.address.clone()).collect();
        for seed in &self.seeds {
            if !addresses.contains(seed) && mine != Some(seed) {
                addresses.push(seed.clone());
            }
        }
        addresses
    }

    /// Position of this master among all, by id: staggers elections and checkpoints. It is asked for once, when the
    /// process starts; who knows nobody yet goes by its id alone.
    pub(crate) fn rank(&self) -> usize {
        let list = self.list();
        let position = list.members().position(|master| master.id.get() == self.me);
        position.unwrap_or_else(|| {
            let before = usize::try_from(self.me.saturating_sub(1)).unwrap_or(usize::MAX);
            before % controller::VOTERS_MAX
        })
    }
}

/// Those that found a cluster.
pub(crate) fn founders(masters: &BTreeMap<u64, String>) -> Vec<MasterRecord> {
    let founder = |(id, address): (&u64, &String)| MasterRecord {
        id: NodeId(*id),
        address: address.clone(),
        state: MasterState::Voter,
        replaces: None,
    };
    masters.iter().map(founder).collect()
}

fn recorded(store: &Store) -> Vec<MasterRecord> {
    store.read(controller::masters)
}
