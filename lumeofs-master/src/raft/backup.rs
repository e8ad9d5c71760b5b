//! A group's state on its way out of a cluster, and into the first master of a new one.

use super::log_store::LogStore;
use super::snapshot::Pieces;
pub(crate) use super::snapshot::rows;
use super::state_machine::blocking;
use super::store::{Incoming, Position};
use super::types::{LeaderId, LogId, Membership, Vote};
use super::{Group, Term};
use lumeofs_base::{FsError, FsResult};
use lumeofs_wal::WalConfig;
use openraft::BasicNode;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything that a group has applied at one index of its log. Holds a read transaction: as long as it lives, pages
/// that are written anew take more room.
pub(crate) struct Outgoing {
    /// The last entry that it contains.
    pub(crate) index: u64,
    /// The leadership that proposed that.
    pub(crate) term: Term,
    pieces: Pieces,
}

impl Outgoing {
    /// The next rows, at most about half a megabyte; see [`rows`]. Reads the disk.
    pub(crate) fn next(&mut self) -> FsResult<Option<Vec<u8>>> {
        self.pieces.next()
    }
}

impl Group {
    /// Everything that was acknowledged before the call. Fails if this member does not lead, or if no checkpoint is
    /// written within `limit`.
    pub(crate) async fn outgoing(&self, limit: Duration) -> FsResult<Outgoing> {
        self.linearizable().await?;
        let (position, base) = self.store().settled(limit).await?;
        let last = position.applied.unwrap_or_default();
        Ok(Outgoing {
            index: last.index,
            term: last.leader_id.into(),
            pieces: Pieces::new(base),
        })
    }
}

/// A group that is being made at the first and only master of a new cluster.
pub(crate) struct Restored {
    dir: PathBuf,
    incoming: Incoming,
}

impl Restored {
    /// Begins in a data directory that does not have the group.
    pub(crate) fn begin(data_dir: &Path, group: &str) -> FsResult<Self> {
        let dir = data_dir.join(group);
        std::fs::create_dir_all(dir.join("log")).map_err(|error| {
            FsError::from_disk(&error, format_args!("create {}", dir.display()))
        })?;
        let incoming = Incoming::create(&dir.join("store.incoming-0"))?;
        Ok(Self { dir, incoming })
    }

    /// Adds rows.
    pub(crate) fn add(&mut self, rows: &[(Vec<u8>, Vec<u8>)]) -> FsResult<()> {
        let rows = rows.iter();
        self.incoming
            .add(rows.map(|(key, value)| (&key[..], &value[..])))
    }

    /// Puts store and log into place: as if the master, alone in its group, had applied entries up to `index`, which
    /// were proposed in the term of this number, and then had cut them off.
    pub(crate) async fn finish(self, master: (u64, &str), index: u64, term: u64) -> FsResult<()> {
        let (id, address) = master;
        let last = LogId {
            leader_id: LeaderId { term, node_id: id },
            index,
        };
        let nodes = BTreeMap::from([(id, BasicNode::new(address))]);
        let alone = openraft::Membership::new(vec![BTreeSet::from([id])], nodes);
        let position = Position {
            applied: Some(last),
            membership: Membership::new(Some(last), alone),
        };
        // The log first: a store that has applied more than a log knows is refused at the start.
        let log = self.dir.join("log");
        let log = blocking(move || LogStore::open(&log, WalConfig::default(), id)).await?;
        log.begin_behind(last, Vote::new(term, id)).await?;
        let (incoming, target) = (self.incoming, self.dir.join("store.redb"));
        blocking(move || incoming.finish(&position, &target).map(drop)).await
    }
}
