//! What a master must be told.

use lumeofs_proto::auth::Identity;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Options of a master. The library never sees the argument parser.
#[derive(Clone, Debug)]
pub struct MasterConfig {
    /// Cluster, secret and this master's node id.
    pub identity: Identity,
    /// `host:port` to listen on.
    pub listen: String,
    /// All masters of the cluster, this one included: id and the `host:port` others reach it by.
    pub masters: BTreeMap<u64, String>,
    /// Where logs and metadata lie. Created if missing; belongs to one node of one cluster for ever.
    pub data_dir: PathBuf,
    /// This process makes the first membership when its groups are pristine. True on exactly one
    /// master: the one with the lowest id.
    pub bootstrap: bool,
    /// Bytes of a file in one chunk. Used when the cluster is new.
    pub chunk_size: u64,
    /// Copies of a chunk. Used when the cluster is new.
    pub replicas: u32,
    /// Every write waits for the disks. Used when the cluster is new.
    pub always_durable: bool,
}

impl MasterConfig {
    /// Position of this master among all, by id: staggers elections and checkpoints.
    pub(crate) fn rank(&self) -> usize {
        self.masters
            .keys()
            .position(|id| *id == self.id())
            .unwrap_or(0)
    }

    /// This master's id.
    pub(crate) fn id(&self) -> u64 {
        self.identity.node.get()
    }
}
