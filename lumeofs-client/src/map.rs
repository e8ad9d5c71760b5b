//! The cluster map as this client knows it. Datanodes check every request's epoch, so an old map is
//! harmless: it costs a refusal and a refresh.

use crate::masters::Masters;
use crate::wait::{Patience, now};
use lumeofs_base::{ClusterMap, Code, FsError, FsResult};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::{MapReply, MapRequest};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::time::Duration;

/// How long one master may take to send its map before another is asked.
const MAP_LIMIT: Duration = Duration::from_secs(1);

/// The newest map seen.
#[derive(Debug, Default)]
pub(crate) struct Maps {
    current: RwLock<Arc<ClusterMap>>,
    /// When the last finished refresh began.
    refreshed: Mutex<Duration>,
    /// When the space of the datanodes was asked for last. It changes without a new version of the map.
    space_asked: Mutex<Option<Duration>>,
}

/// How old the known space of the datanodes may be; they report it about as often.
const SPACE_AGE_MAX: Duration = Duration::from_secs(1);

impl Maps {
    /// The newest map seen.
    pub(crate) fn current(&self) -> Arc<ClusterMap> {
        Arc::clone(&self.current.read())
    }

    /// Reads the map again from any master. Threads that want it at once share one request. Says
    /// whether the map is newer than the version `seen`.
    pub(crate) fn refresh(
        &self,
        masters: &Masters,
        patience: &Patience<'_>,
        seen: u64,
    ) -> FsResult<bool> {
        let wanted = now();
        let mut refreshed = patience.lock(&self.refreshed)?;
        if *refreshed < wanted {
            let began = now();
            self.fetch(masters, patience, self.current().version)?;
            *refreshed = began;
        }
        Ok(self.current().version > seen)
    }

    /// Brings the space of the datanodes up to date. If no master answers, what was known stays.
    pub(crate) fn refresh_space(&self, masters: &Masters, patience: &Patience<'_>) {
        let now = now();
        {
            let mut asked = self.space_asked.lock();
            if asked.is_some_and(|at| now < at + SPACE_AGE_MAX) {
                return;
            }
            *asked = Some(now);
        }
        if let Err(error) = self.fetch(masters, patience, 0) {
            tracing::debug!(%error, "space of the datanodes not refreshed");
        }
    }

    /// Reads the map again if it is not that of `version`; always if that is 0.
    fn fetch(&self, masters: &Masters, patience: &Patience<'_>, version: u64) -> FsResult<()> {
        let mut failed = None;
        for _ in 0..masters.count() {
            match self.fetch_from_one(masters, patience, version) {
                Ok(()) => return Ok(()),
                Err(error) => failed = Some(error),
            }
            patience.check()?;
        }
        Err(failed.unwrap_or_else(|| Code::Unavailable.into()))
    }

    fn fetch_from_one(
        &self,
        masters: &Masters,
        patience: &Patience<'_>,
        version: u64,
    ) -> FsResult<()> {
        let host = masters.any();
        let asked = MapRequest {
            version,
            ..MapRequest::default()
        };
        let taken = host.take(patience, MAP_LIMIT, true)?;
        let taken = taken.expect("a waiting take gives a connection or an error");
        let pending = taken.send(Op::Map, 0, MAP_LIMIT, &asked, &[])?;
        let reply: MapReply = pending
            .wait(patience, MAP_LIMIT, &mut || Ok(()))?
            .decode()?;
        masters.learn(&reply.masters);
        if !reply.map.is_empty() {
            let map: ClusterMap = postcard::from_bytes(&reply.map).map_err(|error| {
                FsError::new(
                    Code::Unavailable,
                    format!("cluster map of {}: {error}", host.address()),
                )
            })?;
            let mut current = self.current.write();
            if map.version >= current.version || current.chunk_size == 0 {
                *current = Arc::new(map);
            }
        }
        Ok(())
    }
}
