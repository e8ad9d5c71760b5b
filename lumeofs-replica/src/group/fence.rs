//! Shutting out sessions that have ended (rule S3).
//!
//! A fence is an operation like a write: so whatever an ended session had ordered before it is settled when the fence
//! is, and every later primary has it. It is kept in the note, which is in the log before the operation.

use super::Group;
use crate::message::{Payload, Writer};
use lumeofs_base::{ChunkOp, Code, FsError, SessionId};

impl<P: Payload> Group<P> {
    /// Takes note of the fence that an operation tells. True if the note changed.
    pub(super) fn learn_fence(&mut self, op: &ChunkOp) -> bool {
        match op {
            ChunkOp::Fence { fence } => self.note.fence.supersede(fence),
            ChunkOp::Write { .. }
            | ChunkOp::Zero { .. }
            | ChunkOp::Truncate { .. }
            | ChunkOp::Delete { .. } => false,
        }
    }

    /// Why this writer may not change anything.
    pub(super) fn fenced(&self, writer: Writer) -> Option<FsError> {
        let fence = &self.note.fence;
        (!fence.admits(SessionId(writer.session))).then(|| {
            let context = format!(
                "session {} has ended: fence {} of the group shuts it out",
                SessionId(writer.session),
                fence.number
            );
            FsError::new(Code::SessionExpired, context)
        })
    }
}
