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
    /// `host:port` that others reach it by.
    pub advertise: String,
    /// The masters that found the cluster: id and the `host:port` others reach them by. They count until the
    /// controller has recorded them. Empty for a master that joins a cluster.
    pub masters: BTreeMap<u64, String>,
    /// Masters to ask when this one knows no others yet, as `host:port`.
    pub seeds: Vec<String>,
    /// A new master becomes a voter without being admitted by anybody.
    pub join: bool,
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
    /// This master's id.
    pub(crate) fn id(&self) -> u64 {
        self.identity.node.get()
    }
}
