//! What a group does about damage on the disk that its own work comes upon, instead of failing.

use crate::data::Data;
use crate::fetch;
use crate::group::{Caller, GroupDriver};
use crate::node::Node;
use crate::scrub::others;
use crate::store::Applied;
use lumeofs_base::checksum::block_checksums;
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::{AlignedBuf, ChunkId, ChunkOp, Code, FsError, FsResult};
use lumeofs_replica::Entry;

const BLOCK: u64 = BLOCK_SIZE as u64;

impl GroupDriver {
    /// Reads what the store has; damage is repaired first, if that can be done at once.
    pub(crate) fn read(
        &self,
        chunk: ChunkId,
        offset: u64,
        len: usize,
    ) -> FsResult<(AlignedBuf, Vec<u32>)> {
        match self.store.read(chunk, offset, len) {
            Err(error) if self.mend(&error, chunk, offset, len as u64) => {
                self.store.read(chunk, offset, len)
            }
            read => read,
        }
    }

    /// An operation could not be applied. If that is for damage to a block of which it changes a part, and other members
    /// have the block, applies it all the same.
    pub(crate) fn apply_over_damage(
        &self,
        entry: &Entry<Data>,
        error: FsError,
    ) -> FsResult<Applied> {
        if error.code != Code::Io || self.store.check().is_err() {
            return Err(error);
        }
        let (version, data) = (entry.version, entry.data.whole());
        if self.mend_ends(&error, &entry.op, data.len()) {
            return self.store.apply(self.id, version, &entry.op, &data);
        }
        let node = self.node.upgrade();
        match node.and_then(|node| self.widened(&node, entry)) {
            Some((op, data)) => self.store.apply(self.id, version, &op, &data),
            None => Err(error),
        }
    }

    /// Repairs the blocks of which an operation changes a part, from members that have not applied it yet. Whether they
    /// are whole.
    fn mend_ends(&self, error: &FsError, op: &ChunkOp, len: usize) -> bool {
        let (chunk, start, end) = match op {
            ChunkOp::Write { chunk, offset, .. } => (*chunk, *offset, *offset + len as u64),
            ChunkOp::Zero {
                chunk, offset, len, ..
            } => (*chunk, *offset, offset.saturating_add(*len)),
            ChunkOp::Truncate { chunk, len, .. } => (*chunk, *len, *len),
            ChunkOp::Delete { .. } | ChunkOp::Fence { .. } => return false,
        };
        self.mend(error, chunk, start, 1) && self.mend(error, chunk, end, 1)
    }

    /// The store failed to read a range of a chunk: if that is for damage, repairs it. Whether it is whole.
    fn mend(&self, error: &FsError, chunk: ChunkId, offset: u64, len: u64) -> bool {
        let node = self.node.upgrade().filter(|_| error.code == Code::Io);
        node.is_some_and(|node| node.mend(&self.store, chunk, offset, len))
    }

    /// A write that has the same effect on the chunk but changes whole blocks only: their rest is that of members for
    /// which this operation was the last on the chunk.
    fn widened(&self, node: &Node, entry: &Entry<Data>) -> Option<(ChunkOp, AlignedBuf)> {
        let ChunkOp::Write {
            chunk,
            offset,
            truncations,
            era,
            part,
            ..
        } = &entry.op
        else {
            return None;
        };
        let (data, end) = (entry.data.whole(), offset + entry.data.len() as u64);
        let (from, to) = (offset / BLOCK * BLOCK, end.next_multiple_of(BLOCK));
        let config = self.with(Caller::Quick, |core, _| core.config().clone());
        let members = others(&config, node.identity.node);
        let block = |at: u64| {
            members.iter().find_map(|member| {
                let good = fetch::block(node, *member, self.id, *chunk, at).ok()?;
                (good.version == entry.version).then_some(good.data)
            })
        };
        let mut wide = AlignedBuf::zeroed((to - from) as usize);
        if *offset > from {
            wide[..BLOCK_SIZE].copy_from_slice(&block(from)?);
        }
        if end < to {
            let last = wide.len() - BLOCK_SIZE;
            wide[last..].copy_from_slice(&block(to - BLOCK)?);
        }
        wide[(offset - from) as usize..][..data.len()].copy_from_slice(&data);
        let op = ChunkOp::Write {
            chunk: *chunk,
            offset: from,
            truncations: *truncations,
            era: *era,
            checksums: block_checksums(from, &wide),
            part: *part,
        };
        Some((op, wide))
    }
}
