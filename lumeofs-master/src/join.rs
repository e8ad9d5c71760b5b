//! How a master without any log takes part: as a new one, or not at all.
//!
//! A master that lost its logs must not come back under its id (rule R4): it would vote again where
//! it has voted, and a quorum with it need not know what an earlier one acknowledged. So the
//! controller records which masters ever joined; one that has no log, or lost that of one group, asks the others
//! whether it is among them. It neither answers Raft nor makes a first membership before it knows: from the
//! controller's leader, or, when a cluster is founded and there is none, from all others, since any of them may be the
//! one that knows.

use crate::ask::ask;
use crate::config::MasterConfig;
use crate::masters::{List, Masters, founders};
use crate::raft::Group;
use crate::standing::removed;
use anyhow::Result;
use lumeofs_base::{Code, FsError};
use lumeofs_meta::controller::MasterState;
use lumeofs_proto::meta::MapReply;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Pause before all are asked again.
const PROBE_PAUSE: Duration = Duration::from_millis(50);
/// How long a master asks before it says what it waits for.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// Whether this master takes part in Raft.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admission(Arc<AtomicBool>);

/// Whether a group's log has files. An empty log has some too: it was opened before.
pub(crate) fn has_log(data_dir: &Path, group: &str) -> bool {
    let log = data_dir.join(group).join("log");
    std::fs::read_dir(log).is_ok_and(|mut files| files.next().is_some())
}

impl Admission {
    /// Whether it does by now.
    pub(crate) fn is_granted(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Lets this master take part: at once if it has logs, otherwise when it is known to be new. `had_logs`: there
    /// were files of both groups' logs before this start.
    /// Makes the first membership if that is this master's task.
    ///
    /// # Errors
    /// This master joined before and lost its logs, or was removed.
    pub(crate) async fn gain(
        self,
        config: MasterConfig,
        masters: Arc<Masters>,
        had_logs: bool,
        controller: Arc<Group>,
        metadata: Arc<Group>,
    ) -> Result<()> {
        let (new_controller, new_metadata) = (
            controller.is_pristine().await?,
            metadata.is_pristine().await?,
        );
        let asks = !had_logs || (new_controller && new_metadata);
        let founds = match asks {
            true => wait_until_new(&config, &masters).await? == Cluster::New,
            // It may have died between the two first memberships.
            false => is_founding(&config, &masters.list()),
        };
        self.0.store(true, Ordering::Release);
        if config.bootstrap && founds && (new_controller || new_metadata) {
            controller.initialize(&config.masters).await?;
            metadata.initialize(&config.masters).await?;
        }
        Ok(())
    }
}

/// Whether nothing has changed since the cluster was founded as this process was told.
fn is_founding(config: &MasterConfig, list: &List) -> bool {
    !list.recorded || list.records == founders(&config.masters)
}

/// What the others say of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cluster {
    /// Nobody has taken part yet.
    New,
    /// There is one, and this master is new to it.
    Exists,
}

/// Returns when it is certain that this master is new.
async fn wait_until_new(config: &MasterConfig, masters: &Masters) -> Result<Cluster> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let mut silent = Vec::new();
        let mut exists = false;
        for address in masters.others() {
            match ask(&config.identity, &address).await {
                Ok(reply) => match knowledge(config, &reply) {
                    Knowledge::Joined => return Err(refusal(config, &address).into()),
                    Knowledge::Removed => return Err(removed(config).into()),
                    Knowledge::New => return Ok(Cluster::Exists),
                    Knowledge::Others => exists = true,
                    Knowledge::Nobody => {}
                },
                Err(_) => silent.push(address),
            }
        }
        // Where others have taken part, they find a leader among themselves, and it will know.
        if silent.is_empty() && !exists && !config.masters.is_empty() {
            return Ok(Cluster::New);
        }
        if !told && begun.elapsed() > TELL_AFTER {
            told = true;
            tracing::warn!(
                masters = ?silent,
                "this master has no log and waits for these, or for a leader, to say that it is new"
            );
        }
        sleep(PROBE_PAUSE).await;
    }
}

/// What another master knows of this one.
enum Knowledge {
    /// It took part.
    Joined,
    /// It was removed.
    Removed,
    /// It never took part: that is certain.
    New,
    /// Others took part, and that is all.
    Others,
    /// Nobody took part yet, as far as it knows.
    Nobody,
}

fn knowledge(config: &MasterConfig, reply: &MapReply) -> Knowledge {
    let removed = crate::ask::state_to_wire(MasterState::Removed);
    let mine = reply.records.iter().find(|record| record.id == config.id());
    match mine {
        Some(record) if record.state == removed => Knowledge::Removed,
        Some(record) if record.joined => Knowledge::Joined,
        _ if reply.certain => Knowledge::New,
        _ if reply.records.iter().any(|record| record.joined) => Knowledge::Others,
        _ => Knowledge::Nobody,
    }
}

fn refusal(config: &MasterConfig, address: &str) -> FsError {
    let text = format!(
        "data directory {} has no log, or lost one of two, but the master at {address} says that master {id} took part in this \
         cluster: it must not vote again without what it has promised; keep the other masters running, they go on \
         without it as long as they are a majority, and restore the directory as it was when this master ran last, or \
         let a new one take its place: join with an empty directory and run `lumeofs admin master replace {id} NEW`",
        config.data_dir.display(),
        id = config.id()
    );
    FsError::new(Code::Refused, text)
}
