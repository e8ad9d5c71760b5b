//! Whether the processes of the other masters are there.
//!
//! One idle connection to each. When it ends, connecting again tells apart a process that is gone
//! (refused) from a network or a machine that is silent. Only the first is grounds for the fast
//! election of rule R2.
//!
//! A master that every other one turns away, for its secret or its cluster, can never take part: it
//! ends instead of waiting for a quorum.

use lumeofs_base::limits::CONNECT_TIMEOUT;
use lumeofs_base::{Code, FsError};
use lumeofs_proto::auth::Identity;
use lumeofs_proto::nonblocking::connect;
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
    gone: BTreeMap<u64, Arc<AtomicBool>>,
    /// What the others that turned this master away said.
    refusals: watch::Sender<BTreeMap<u64, FsError>>,
    _watchers: JoinSet<()>,
}

impl Presence {
    /// Starts to watch.
    pub(crate) fn watch(identity: &Identity, masters: &BTreeMap<u64, String>) -> Self {
        let mut watchers = JoinSet::new();
        let mut gone = BTreeMap::new();
        let refusals = watch::Sender::default();
        for (id, address) in masters.iter().filter(|(id, _)| **id != identity.node.get()) {
            let flag = Arc::new(AtomicBool::new(false));
            gone.insert(*id, flag.clone());
            let refused = Refused {
                master: *id,
                all: refusals.clone(),
            };
            watchers.spawn(follow(address.clone(), identity.clone(), flag, refused));
        }
        Self {
            gone,
            refusals,
            _watchers: watchers,
        }
    }

    /// Returns when all other masters turn this one away.
    pub(crate) async fn refused_by_all(&self) -> FsError {
        let mut refusals = self.refusals.subscribe();
        let others = self.gone.len();
        let all = refusals
            .wait_for(|refusals| others > 0 && refusals.len() == others)
            .await;
        let first = all.ok().and_then(|all| all.values().next().cloned());
        match first {
            Some(error) => error.during("all other masters refuse this one"),
            // Nobody can refuse any more.
            None => std::future::pending().await,
        }
    }

    /// Whether the last attempt to connect to this master was refused.
    pub(super) fn is_gone(&self, master: u64) -> bool {
        self.gone
            .get(&master)
            .is_some_and(|gone| gone.load(Ordering::Relaxed))
    }
}

/// Where a watcher notes that its master turned this one away.
struct Refused {
    master: u64,
    all: watch::Sender<BTreeMap<u64, FsError>>,
}

impl Refused {
    fn note(&self, error: Option<FsError>) {
        self.all.send_if_modified(|all| {
            let Some(error) = error else {
                return all.remove(&self.master).is_some();
            };
            let new = all.insert(self.master, error.clone()).is_none();
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
