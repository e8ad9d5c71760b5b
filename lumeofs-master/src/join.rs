//! How a master without any log takes part: as a new one, or not at all.
//!
//! A master that lost its logs must not come back under its id (rule R4): it would vote again where
//! it has voted, and a quorum with it need not know what an earlier one acknowledged. So the
//! controller records which masters ever joined; one that has no log asks the others whether it is
//! among them, and neither answers Raft nor makes a first membership before one of them has replied.

use crate::config::MasterConfig;
use crate::raft::Group;
use anyhow::Result;
use lumeofs_base::{Code, FsError, FsResult};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{MapReply, MapRequest, MasterAddress};
use lumeofs_proto::nonblocking::connect;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// How long another master may take to answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before all are asked again.
const PROBE_PAUSE: Duration = Duration::from_millis(50);

/// Whether this master takes part in Raft.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admission(Arc<AtomicBool>);

impl Admission {
    /// Whether it does by now.
    pub(crate) fn is_granted(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Lets this master take part: at once if it has logs, otherwise when it is known to be new.
    /// Makes the first membership if that is this master's task.
    ///
    /// # Errors
    /// This master joined before and lost its logs.
    pub(crate) async fn gain(
        self,
        config: MasterConfig,
        controller: Arc<Group>,
        metadata: Arc<Group>,
    ) -> Result<()> {
        let (new_controller, new_metadata) = (
            controller.is_pristine().await?,
            metadata.is_pristine().await?,
        );
        if new_controller && new_metadata {
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

/// Returns when another master has answered that it does not know this one.
async fn wait_until_new(config: &MasterConfig) -> Result<()> {
    let others = || config.masters.iter().filter(|(id, _)| **id != config.id());
    let mut answered = others().next().is_none();
    while !answered {
        for (id, address) in others() {
            let Ok(Ok(masters)) = timeout(PROBE_TIMEOUT, masters_of(config, address)).await else {
                continue;
            };
            answered = true;
            let mut known = masters.iter().filter(|master| master.joined);
            if known.any(|master| master.id == config.id()) {
                let text = format!(
                    "data directory {} has no log, but master {id} at {address} says that master {} took \
                     part in this cluster: it must not vote again without what it has promised; restore \
                     the directory, and keep the other masters running",
                    config.data_dir.display(),
                    config.id()
                );
                return Err(FsError::new(Code::Refused, text).into());
            }
        }
        if !answered {
            sleep(PROBE_PAUSE).await;
        }
    }
    Ok(())
}

async fn masters_of(config: &MasterConfig, address: &str) -> FsResult<Vec<MasterAddress>> {
    let net = |error| FsError::from_net(&error, "ask another master");
    let (mut reader, mut writer, _) = connect(address, &config.identity).await?;
    writer
        .request(Op::Map, 0, &MapRequest::default(), &[])
        .await
        .map_err(net)?;
    let reply: MapReply = reader.receive().await.map_err(net)?.decode()?;
    Ok(reply.masters)
}
