//! Where the chunks of a file are: what `admin chunks PATH` prints.

use crate::client::{Client, Context};
use crate::link::{Asker, Link};
use lumeofs_base::limits::{CHUNKS_PER_ALLOCATION_MAX, FILE_SIZE_BYTES_MAX};
use lumeofs_base::{
    ChunkId, ChunkIndex, Epoch, FsError, FsResult, GroupId, InodeId, NodeId, Version,
};
use lumeofs_meta::op::ChunkRef;
use lumeofs_proto::data::{GroupState, GroupStateRequest};
use lumeofs_proto::frame::Op;
use std::time::Duration;

/// How long one replica may take to answer.
const ASK_LIMIT: Duration = Duration::from_secs(1);

/// A chunk of a file with its replicas.
#[derive(Clone, Debug)]
pub struct ChunkReport {
    /// Position in the file.
    pub index: ChunkIndex,
    /// First byte of the file in it.
    pub offset: u64,
    /// Bytes of the file in it.
    pub len: u64,
    /// The chunk.
    pub chunk: ChunkId,
    /// Its replica group.
    pub group: GroupId,
    /// The group's configuration in the newest map.
    pub epoch: Epoch,
    /// The group's members, in order of preference.
    pub replicas: Vec<ReplicaReport>,
}

/// One replica of a chunk.
#[derive(Clone, Debug)]
pub struct ReplicaReport {
    /// The datanode.
    pub node: NodeId,
    /// Its address, empty if unknown.
    pub address: String,
    /// The map calls it the primary.
    pub primary: bool,
    /// The map counts it as in sync.
    pub in_sync: bool,
    /// What it says of itself, or why it did not answer.
    pub state: Result<ReplicaState, FsError>,
}

/// What a member says of itself and of the chunk.
#[derive(Clone, Debug)]
pub struct ReplicaState {
    /// primary, secondary, joining, out-of-sync, ...
    pub role: String,
    /// Its epoch.
    pub epoch: Epoch,
    /// Last operation on the chunk, `None` if it has nothing of it.
    pub version: Option<Version>,
    /// Bytes of the chunk that it has.
    pub len: u64,
    /// Time that its lease has left.
    pub lease_left: Duration,
}

impl Client {
    /// Where the chunks of a file are and how their replicas do.
    pub fn chunk_report(&self, cx: Context<'_>, ino: InodeId) -> FsResult<Vec<ChunkReport>> {
        let link = &self.link;
        let asker = link.asker(&cx);
        let inode = link.inodes.get(ino);
        let chunk_size = link.chunk_size();
        let step = chunk_size * u64::from(CHUNKS_PER_ALLOCATION_MAX);
        link.refresh_map(&asker.patience, 0);
        let mut reports = Vec::new();
        let mut at = 0;
        loop {
            let known = link.chunks(&asker, ino, &inode, &(at..at + step))?;
            for chunk in known.chunks.values() {
                reports.push(link.report_chunk(&asker, chunk, known.attr.size)?);
            }
            at += step;
            // Chunks may be allocated ahead of the size, but not further than one step.
            if at >= known.attr.size.saturating_add(step) || at >= FILE_SIZE_BYTES_MAX {
                return Ok(reports);
            }
        }
    }
}

impl Link {
    fn report_chunk(
        &self,
        asker: &Asker<'_>,
        chunk: &ChunkRef,
        size: u64,
    ) -> FsResult<ChunkReport> {
        let map = self.map();
        let offset = u64::from(chunk.index.get()) * map.chunk_size;
        let config = map.group(chunk.group);
        let mut replicas = Vec::new();
        for node in config.map(|config| &config.members[..]).unwrap_or_default() {
            asker.patience.check()?;
            let address = map
                .node(*node)
                .map(|info| info.address.clone())
                .unwrap_or_default();
            replicas.push(ReplicaReport {
                node: *node,
                primary: config.is_some_and(|config| config.primary == *node),
                in_sync: config.is_some_and(|config| config.is_in_sync(*node)),
                state: self.ask_replica(asker, &address, chunk),
                address,
            });
        }
        Ok(ChunkReport {
            index: chunk.index,
            offset,
            len: size.saturating_sub(offset).min(map.chunk_size),
            chunk: chunk.chunk,
            group: chunk.group,
            epoch: config.map(|config| config.epoch).unwrap_or_default(),
            replicas,
        })
    }

    fn ask_replica(
        &self,
        asker: &Asker<'_>,
        address: &str,
        chunk: &ChunkRef,
    ) -> FsResult<ReplicaState> {
        let header = GroupStateRequest {
            group: chunk.group.get(),
            with_chunks: true,
            chunk_after: chunk.chunk.get().checked_sub(1),
            chunks_max: 1,
        };
        let host = self.pool.host(address);
        let taken = host.take(&asker.patience, ASK_LIMIT, true)?;
        let taken = taken.expect("a waiting take gives a connection or an error");
        let pending = taken.send(Op::GroupState, 0, ASK_LIMIT, &header, &[])?;
        let frame = pending.wait(&asker.patience, ASK_LIMIT, &mut || Ok(()))?;
        let state: GroupState = frame.decode()?;
        let replica = state
            .chunks
            .iter()
            .find(|replica| replica.chunk == chunk.chunk.get());
        let version = replica.and_then(|replica| replica.version);
        Ok(ReplicaState {
            role: state.role,
            epoch: state.config.unwrap_or_default().epoch.into(),
            version: version.map(|version| Version {
                epoch: version.epoch.into(),
                sequence: version.sequence.into(),
            }),
            len: replica.map_or(0, |replica| replica.len),
            lease_left: Duration::from_millis(state.lease_left_ms),
        })
    }
}
