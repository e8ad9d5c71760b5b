//! Whether the processes of the other masters are there.
//!
//! One idle connection to each. When it ends, connecting again tells apart a process that is gone
//! (refused) from a network or a machine that is silent. Only the first is grounds for the fast
//! election of rule R2.

use lumeofs_base::limits::CONNECT_TIMEOUT;
use lumeofs_proto::auth::Identity;
use lumeofs_proto::nonblocking::connect;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Pause between two attempts to reach a master.
const RETRY: Duration = Duration::from_millis(50);
/// Pause after a master was reachable but did not accept us.
const REFUSED_RETRY: Duration = Duration::from_secs(1);

/// Watches the other masters. Dropping it ends the watch.
pub(crate) struct Presence {
    gone: BTreeMap<u64, Arc<AtomicBool>>,
    _watchers: JoinSet<()>,
}

impl Presence {
    /// Starts to watch.
    pub(crate) fn watch(identity: &Identity, masters: &BTreeMap<u64, String>) -> Self {
        let mut watchers = JoinSet::new();
        let mut gone = BTreeMap::new();
        for (id, address) in masters.iter().filter(|(id, _)| **id != identity.node.get()) {
            let flag = Arc::new(AtomicBool::new(false));
            gone.insert(*id, flag.clone());
            watchers.spawn(follow(address.clone(), identity.clone(), flag));
        }
        Self {
            gone,
            _watchers: watchers,
        }
    }

    /// Whether the last attempt to connect to this master was refused.
    pub(super) fn is_gone(&self, master: u64) -> bool {
        self.gone
            .get(&master)
            .is_some_and(|gone| gone.load(Ordering::Relaxed))
    }
}

async fn follow(address: String, identity: Identity, gone: Arc<AtomicBool>) {
    loop {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(&address)).await {
            Ok(Ok(_)) => {
                gone.store(false, Ordering::Relaxed);
                match connect(&address, &identity).await {
                    // The other side never sends anything here: this returns when it is gone.
                    Ok((mut reader, _writer, _)) => drop(reader.receive().await),
                    Err(_) => sleep(REFUSED_RETRY).await,
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
