//! How a master without any log takes part: as a new one, or not at all.
//!
//! A master that lost its logs must not come back under its id (rule R4): it would vote again where
//! it has voted, and a quorum with it need not know what an earlier one acknowledged. So the
//! controller records which masters ever joined; one that has no log, or lost that of one group, asks the others
//! whether it is among them. It neither answers Raft nor makes a first membership before it knows: from the
//! controller's leader, or, as long as there is none, from all others, since any of them may be the one that knows.

use crate::config::MasterConfig;
use crate::raft::Group;
use anyhow::Result;
use lumeofs_base::{Code, FsError, FsResult};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{MapReply, MapRequest};
use lumeofs_proto::nonblocking::connect;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long another master may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
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
    /// This master joined before and lost its logs.
    pub(crate) async fn gain(
        self,
        config: MasterConfig,
        had_logs: bool,
        controller: Arc<Group>,
        metadata: Arc<Group>,
    ) -> Result<()> {
        let (new_controller, new_metadata) = (
            controller.is_pristine().await?,
            metadata.is_pristine().await?,
        );
        if !had_logs || (new_controller && new_metadata) {
            wait_until_new(&config).await?;
        }
        self.0.store(true, Ordering::Release);
        if config.bootstrap && (new_controller || new_metadata) {
            controller.initialize(&config.masters).await?;
            metadata.initialize(&config.masters).await?;
        }
        Ok(())
    }
}

/// Returns when it is certain that this master is new.
async fn wait_until_new(config: &MasterConfig) -> Result<()> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let mut silent = Vec::new();
        for (id, address) in config.masters.iter().filter(|(id, _)| **id != config.id()) {
            let asked = timeout(PROBE_TIMEOUT, knowledge(config, address)).await;
            let asked = asked.unwrap_or_else(|_| Err(Code::Timeout.into()));
            match asked {
                Ok(Knowledge::Joined) => return Err(refusal(config, *id, address).into()),
                Ok(Knowledge::New) => return Ok(()),
                Ok(Knowledge::NotHeard) => {}
                Err(_) => silent.push(*id),
            }
        }
        if silent.is_empty() {
            return Ok(());
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
    /// It never did.
    New,
    /// Nothing, but that may be old.
    NotHeard,
}

async fn knowledge(config: &MasterConfig, address: &str) -> FsResult<Knowledge> {
    let net = |error| FsError::from_net(&error, "ask another master");
    let (mut reader, mut writer, _) = connect(address, &config.identity).await?;
    let request = MapRequest {
        certainly: true,
        ..MapRequest::default()
    };
    writer
        .request(Op::Map, 0, &request, &[])
        .await
        .map_err(net)?;
    let reply: MapReply = reader.receive().await.map_err(net)?.decode()?;
    let mut joined = reply.masters.iter().filter(|master| master.joined);
    Ok(if joined.any(|master| master.id == config.id()) {
        Knowledge::Joined
    } else if reply.certain {
        Knowledge::New
    } else {
        Knowledge::NotHeard
    })
}

fn refusal(config: &MasterConfig, other: u64, address: &str) -> FsError {
    let text = format!(
        "data directory {} has no log, or lost one of two, but master {other} at {address} says that master {} took part in this \
         cluster: it must not vote again without what it has promised; keep the other masters running, they go on \
         without it as long as they are a majority, and restore the directory as it was when this master ran last",
        config.data_dir.display(),
        config.id()
    );
    FsError::new(Code::Refused, text)
}
