//! The client's face: what mounts, commands and programs call.

use crate::link::Link;
use crate::pages::CacheStats;
use lumeofs_base::{Attr, ClusterMap, FsResult, RequestId};
use lumeofs_meta::op::Caller;
use lumeofs_proto::auth::Credentials;
use std::sync::Arc;
use std::time::Duration;

/// What happens to a call when no quorum answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOutage {
    /// Wait for the cluster, at most this long if given.
    Block(Option<Duration>),
    /// Fail with `Unavailable` after [`lumeofs_base::limits::REQUEST_TIMEOUT`].
    Eio,
}

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// What to do when no quorum answers.
    pub on_outage: OnOutage,
    /// What this client is, for people: host, process, mount point.
    pub description: String,
    /// Memory for cached data in bytes, at least [`crate::CACHE_BYTES_MIN`].
    pub cache_bytes: usize,
    /// What is made in directories is with a quorum of masters when a call returns, also where nobody else could see it.
    pub dirsync: bool,
}

/// Who calls, under which name, and whether the caller still waits.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Names the call in the logs of all servers that take part in it.
    pub request: RequestId,
    /// Whose rights apply.
    pub caller: &'a Caller,
    /// Asked about every 50 ms of waiting; `true` ends the call with `Interrupted`.
    pub interrupted: &'a (dyn Fn() -> bool + Sync),
}

/// What a write is besides its data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteMode {
    /// At the true end of the file, whatever the offset.
    pub append: bool,
    /// On the disks of all in-sync replicas before it is acknowledged.
    pub durable: bool,
    /// With all in-sync replicas before it is acknowledged.
    pub direct: bool,
    /// Takes suid and sgid from the mode.
    pub clear_suid: bool,
}

/// What a write did.
#[derive(Clone, Debug)]
pub struct Written {
    /// Where the data went: for an append the end that the file had.
    pub offset: u64,
    /// Attributes after the write.
    pub attr: Attr,
}

/// What `fallocate` does to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Reserves, growing the file unless `keep_size`.
    Allocate {
        /// The size stays.
        keep_size: bool,
    },
    /// Makes a hole, keeping the size.
    Punch,
    /// Reads as zero, growing the file unless `keep_size`.
    Zero {
        /// The size stays.
        keep_size: bool,
    },
}

/// What `statfs` wants to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Objects in the filesystem.
    pub inodes: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Bytes that files can take in all, after replication.
    pub capacity_bytes: u64,
    /// Bytes that files can still take, after replication.
    pub free_bytes: u64,
}

/// A session with a cluster. Every method may be called from any number of threads.
pub struct Client {
    pub(crate) link: Arc<Link>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to a cluster: finds a master, opens a session, reads the cluster map. `masters` are
    /// `host:port`, any one that answers is enough.
    ///
    /// # Errors
    /// `Refused` if a master is of another cluster or secret, `Unavailable` if within seconds none
    /// answers or no quorum of them is there, whatever [`ClientOptions::on_outage`] says.
    pub fn connect(
        masters: &[String],
        credentials: Credentials,
        options: ClientOptions,
    ) -> FsResult<Arc<Self>> {
        Ok(Arc::new(Self {
            link: Link::connect(masters, credentials, options)?,
        }))
    }

    /// Sends and publishes what is pending, until nothing has moved for [`lumeofs_base::limits::LEAVE_PATIENCE`], closes
    /// the session, ends the background threads. Idempotent; later calls fail with `Unavailable`.
    ///
    /// # Errors
    /// `Io` if something written is lost and no call has reported it: what could not be sent now or earlier. The client is
    /// closed all the same. The log has the inodes and their bytes.
    pub fn close(&self) -> FsResult<()> {
        self.link.close()
    }

    /// Announces the end: from now on no call waits out an outage for longer than
    /// [`lumeofs_base::limits::LEAVE_PATIENCE`], whatever [`ClientOptions::on_outage`] says.
    pub fn leave(&self) {
        self.link.halt.leave();
    }

    /// How long no leader of the metadata group has answered. Below
    /// [`lumeofs_base::limits::SESSION_KEEPALIVE`] and some while one is there.
    pub fn silence(&self) -> Duration {
        self.link.masters.silence()
    }

    /// How many sessions of this client the cluster has ended: after silence, or by an administrator.
    pub fn lost_sessions(&self) -> u64 {
        self.link.session.lost()
    }

    /// What the data cache holds and has done.
    pub fn cache_stats(&self) -> CacheStats {
        self.link.pages.shared.stats()
    }

    /// The newest cluster map that this client has seen.
    pub fn cluster_map(&self) -> Arc<ClusterMap> {
        self.link.map()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It is in the log.
        self.close().ok();
    }
}
