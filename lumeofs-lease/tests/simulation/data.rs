//! Where file data is: one datanode with a register per block, which knows fences and drops what was overtaken.

use lumeofs_base::{InodeId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// Blocks of a file.
pub(crate) const BLOCKS: u8 = 2;

#[derive(Debug, Default)]
pub(crate) struct Data {
    blocks: BTreeMap<(InodeId, u8), u64>,
    fenced: BTreeSet<SessionId>,
    /// The highest attempt of each session for each file: a lower one was repeated since.
    attempts: BTreeMap<(SessionId, InodeId), u64>,
}

impl Data {
    pub(crate) fn read(&self, ino: InodeId, block: u8) -> Option<u64> {
        self.blocks.get(&(ino, block)).copied()
    }

    /// False if the session is shut out; a write that was overtaken is answered and has no effect.
    pub(crate) fn write(
        &mut self,
        session: SessionId,
        ino: InodeId,
        attempt: u64,
        blocks: &[(u8, u64)],
    ) -> bool {
        if self.fenced.contains(&session) {
            return false;
        }
        let last = self.attempts.entry((session, ino)).or_default();
        if attempt > *last {
            *last = attempt;
            for (block, value) in blocks {
                self.blocks.insert((ino, *block), *value);
            }
        }
        true
    }

    pub(crate) fn is_fenced(&self, session: SessionId) -> bool {
        self.fenced.contains(&session)
    }

    pub(crate) fn fence(&mut self, session: SessionId) {
        self.fenced.insert(session);
    }
}
