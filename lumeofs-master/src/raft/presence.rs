//! Whether the processes of the other masters are there.
//!
//! One idle connection to each. When it ends, connecting again tells apart a process that is gone
//! (refused) from a network or a machine that is silent. Only the first is grounds for the fast
//! election of rule R2.
//!
//! A master that every other one turns away, for its secret or its cluster, can never take part: it
//! ends instead of waiting for a quorum.

use crate::masters::{List, Masters};
use lumeofs_base::limits::CONNECT_TIMEOUT;
use lumeofs_base::{Code, FsError};
use lumeofs_proto::auth::Identity;
use lumeofs_proto::nonblocking::connect;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Pause between two attempts to reach a master.
const RETRY: Duration = Duration::from_millis(50);
/// Pause after a master was reachable but did not accept us.
const REFUSED_RETRY: Duration = Duration::from_secs(1);

/// Watches the other masters. Dropping it ends the watch.
pub(crate) struct Presence {
    shared: Arc<Shared>,
    _watcher: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    /// Whether the last attempt to connect to a master was refused.
    gone: Mutex<BTreeMap<u64, Arc<AtomicBool>>>,
    /// Number of others, and what those of them that turned this master away said.
    refusals: watch::Sender<Refusals>,
}

#[derive(Default)]
struct Refusals {
    others: usize,
    said: BTreeMap<u64, FsError>,
}

impl Presence {
    /// Starts to watch those that are masters, now and later.
    pub(crate) fn watch(identity: &Identity, masters: &Masters) -> Self {
        let shared = Arc::new(Shared::default());
        let mut watcher = JoinSet::new();
        watcher.spawn(watch_all(
            identity.clone(),
            masters.subscribe(),
            shared.clone(),
        ));
        Self {
            shared,
            _watcher: watcher,
        }
    }

    /// Returns when all other masters turn this one away.
    pub(crate) async fn refused_by_all(&self) -> FsError {
        let mut refusals = self.shared.refusals.subscribe();
        let all = refusals
            .wait_for(|refusals| refusals.others > 0 && refusals.said.len() == refusals.others)
            .await;
        let first = all.ok().and_then(|all| all.said.values().next().cloned());
        match first {
            Some(error) => error.during("all other masters refuse this one"),
            // Nobody can refuse any more.
            None => std::future::pending().await,
        }
    }

    /// Whether the last attempt to connect to this master was refused.
    pub(super) fn is_gone(&self, master: u64) -> bool {
        let gone = self.shared.gone.lock();
        gone.get(&master)
            .is_some_and(|gone| gone.load(Ordering::Relaxed))
    }
}

/// Keeps one watcher for each other master, also when masters come, go or move.
async fn watch_all(
    identity: Identity,
    mut masters: watch::Receiver<Arc<List>>,
    shared: Arc<Shared>,
) {
    // Dropped with this task: then all watchers end too.
    let mut watchers: BTreeMap<u64, (String, JoinSet<()>)> = BTreeMap::new();
    loop {
        let list = masters.borrow_and_update().clone();
        let me = identity.node;
        let others: BTreeMap<u64, String> = list
            .members()
            .filter(|master| master.id != me)
            .map(|master| (master.id.get(), master.address.clone()))
            .collect();
        watchers.retain(|id, (address, _)| others.get(id) == Some(address));
        shared.gone.lock().retain(|id, _| watchers.contains_key(id));
        shared.refusals.send_modify(|refusals| {
            refusals.others = others.len();
            refusals.said.retain(|id, _| watchers.contains_key(id));
        });
        for (id, address) in others {
            if watchers.contains_key(&id) {
                continue;
            }
            let gone = Arc::new(AtomicBool::new(false));
            shared.gone.lock().insert(id, gone.clone());
            let refused = Refused {
                master: id,
                shared: shared.clone(),
            };
            let mut watcher = JoinSet::new();
            watcher.spawn(follow(address.clone(), identity.clone(), gone, refused));
            watchers.insert(id, (address, watcher));
        }
        if masters.changed().await.is_err() {
            // The list ends with the process; until then the watch goes on.
            std::future::pending::<()>().await;
        }
    }
}

/// Where a watcher notes that its master turned this one away.
struct Refused {
    master: u64,
    shared: Arc<Shared>,
}

impl Refused {
    fn note(&self, error: Option<FsError>) {
        self.shared.refusals.send_if_modified(|refusals| {
            let Some(error) = error else {
                return refusals.said.remove(&self.master).is_some();
            };
            let new = refusals.said.insert(self.master, error.clone()).is_none();
            if new {
                tracing::error!(master = self.master, %error, "this master is refused");
            }
            new
        });
    }
}

async fn follow(address: String, identity: Identity, gone: Arc<AtomicBool>, refused: Refused) {
    loop {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(&address)).await {
            Ok(Ok(_)) => {
                gone.store(false, Ordering::Relaxed);
                match connect(&address, &identity).await {
                    // The other side never sends anything here: this returns when it is gone.
                    Ok((mut reader, _writer, _)) => {
                        refused.note(None);
                        drop(reader.receive().await);
                    }
                    Err(error) => {
                        refused.note((error.code == Code::Refused).then_some(error));
                        sleep(REFUSED_RETRY).await;
                    }
                }
            }
            Ok(Err(error)) => {
                gone.store(
                    error.kind() == ErrorKind::ConnectionRefused,
                    Ordering::Relaxed,
                );
                sleep(RETRY).await;
            }
            Err(_) => gone.store(false, Ordering::Relaxed),
        }
    }
}
