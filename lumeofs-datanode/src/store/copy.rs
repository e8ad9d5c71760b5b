//! Catching up (D7): contents are replaced as a whole, outside the group's order.
//!
//! A chunk whose copy was cut short has the default version, which no operation has, so comparing
//! states finds it again.

use super::Core;
use super::chunk::Chunk;
use super::era::stored_id;
use super::journal::Entry;
use super::plan::Plan;
use super::record::{Edit, Head, Record};
use super::write::verify_data;
use lumeofs_base::limits::SESSIONS_MAX;
use lumeofs_base::{
    AlignedBuf, ChunkId, ChunkState, Code, FilePart, FsError, FsResult, GroupId, Version,
};
use std::sync::Arc;

/// Longest note of a group: the fence in it names every live session.
const NOTE_BYTES_MAX: usize = 256 << 10;

const _: () = assert!(NOTE_BYTES_MAX >= SESSIONS_MAX * 10 + (4 << 10));

impl Core {
    pub(super) fn copy_begin(&self, group: GroupId, id: ChunkId) -> FsResult<()> {
        self.health.check()?;
        self.make_room()?;
        let id = stored_id(group, id);
        let _order = self.order_of(id);
        let chunk = self.chunk_of(group, id)?;
        self.publish_copy(&chunk, Plan::wipe(), Head::default(), None);
        Ok(())
    }

    pub(super) fn copy_piece(
        &self,
        group: GroupId,
        id: ChunkId,
        offset: u64,
        data: &AlignedBuf,
        checksums: &[u32],
    ) -> FsResult<()> {
        self.health.check()?;
        verify_data(id, offset, data, checksums)?;
        self.make_room()?;
        let _order = self.order_of(id);
        let chunk = self.chunk_of(group, id)?;
        let plan = Plan::write(self, &chunk, offset, data, checksums)?;
        let head = chunk.content.read().head;
        self.publish_copy(&chunk, plan, head, None);
        Ok(())
    }

    pub(super) fn copy_end(&self, group: GroupId, state: &ChunkState) -> FsResult<()> {
        self.health.check()?;
        let id = stored_id(group, state.chunk);
        let _order = self.order_of(id);
        let chunk = self.chunk_of(group, id)?;
        let (version, truncations, deleted) = (state.version, state.truncations, state.deleted);
        let plan = if deleted {
            Plan::wipe()
        } else {
            Plan::default()
        };
        self.publish_copy(
            &chunk,
            plan,
            Head {
                version,
                truncations,
                deleted,
            },
            state.part,
        );
        Ok(())
    }

    /// Makes a change outside the group's order; `part` is news about the chunk.
    pub(super) fn publish_copy(
        &self,
        chunk: &Arc<Chunk>,
        plan: Plan<'_>,
        head: Head,
        part: Option<FilePart>,
    ) {
        let mut edit = Edit::of_head(chunk.id, chunk.group, head);
        edit.part = part;
        let images = plan.commit(&mut edit);
        self.publish(chunk, Record::Copied { edit }, images);
    }

    pub(super) fn set_last(&self, group: GroupId, version: Version) -> FsResult<()> {
        self.health.check()?;
        let entry = Entry::new(&Record::Last { group, version }, Vec::new());
        let lsn = self
            .journal
            .push(entry, |catalog| catalog.set_last(group, version));
        self.journal.sync(lsn)
    }

    pub(super) fn drop_chunk(&self, group: GroupId, id: ChunkId) -> FsResult<()> {
        self.health.check()?;
        let id = stored_id(group, id);
        let _order = self.order_of(id);
        let chunk = self.chunk_of(group, id)?;
        self.forget(&chunk);
        Ok(())
    }

    pub(super) fn set_group_note(&self, group: GroupId, note: &[u8]) -> FsResult<()> {
        self.health.check()?;
        if note.len() > NOTE_BYTES_MAX {
            let context = format!(
                "note of group {group}: {} bytes, at most {NOTE_BYTES_MAX}",
                note.len()
            );
            return Err(FsError::new(Code::Invalid, context));
        }
        let record = Record::Note {
            group,
            note: note.to_vec(),
        };
        let lsn = self
            .journal
            .push(Entry::new(&record, Vec::new()), |catalog| {
                catalog.set_note(group, note.to_vec());
            });
        self.journal.sync(lsn)
    }
}
