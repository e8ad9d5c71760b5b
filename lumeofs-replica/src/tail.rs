//! Operations above the committed sequence: what a new primary may have to ask for or send again.

use crate::message::{Entry, Payload};
use lumeofs_base::{ChunkId, Sequence};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// A contiguous run of operations up to the end of the history.
#[derive(Debug)]
pub struct Tail<P> {
    entries: VecDeque<Arc<Entry<P>>>,
    chunks: BTreeMap<ChunkId, Sequence>,
    bytes: usize,
}

impl<P> Default for Tail<P> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            chunks: BTreeMap::new(),
            bytes: 0,
        }
    }
}

impl<P: Payload> Tail<P> {
    /// Adds the next operation.
    pub fn push(&mut self, entry: Arc<Entry<P>>) {
        self.bytes += entry.data.len();
        self.chunks.insert(entry.op.chunk(), entry.version.sequence);
        self.entries.push_back(entry);
    }

    /// Forgets everything up to `committed`. True if anything went.
    pub fn trim(&mut self, committed: Sequence) -> bool {
        let before = self.entries.len();
        while self
            .entries
            .front()
            .is_some_and(|entry| entry.version.sequence <= committed)
        {
            let entry = self.entries.pop_front().expect("front is there");
            self.bytes -= entry.data.len();
            if self.chunks.get(&entry.op.chunk()) == Some(&entry.version.sequence) {
                self.chunks.remove(&entry.op.chunk());
            }
        }
        self.entries.len() != before
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The first operation that is kept.
    pub fn first(&self) -> Option<Sequence> {
        self.entries.front().map(|entry| entry.version.sequence)
    }

    /// Operations after `sequence`, in order.
    pub fn after(&self, sequence: Sequence) -> impl Iterator<Item = &Arc<Entry<P>>> {
        self.entries
            .iter()
            .filter(move |entry| entry.version.sequence > sequence)
    }

    /// The last kept operation on a chunk.
    pub fn last_of(&self, chunk: ChunkId) -> Option<Sequence> {
        self.chunks.get(&chunk).copied()
    }

    /// Bytes of data that are kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
