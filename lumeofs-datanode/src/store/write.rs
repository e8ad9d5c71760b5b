//! Operations of a group: whether they are refused, and how their changes are made.

use super::chunk::{Chunk, Image};
use super::era::{is_mark, stored_id};
use super::journal::Entry;
use super::plan::Plan;
use super::record::{Edit, Head, Record};
use super::space::Allocation;
use super::{Applied, Core, Lsn};
use lumeofs_base::checksum::verify_blocks;
use lumeofs_base::limits::{BLOCK_SIZE, CHUNK_SIZE_BYTES};
use lumeofs_base::{
    AlignedBuf, ChunkId, ChunkOp, Code, FsError, FsResult, GroupId, Past, Verdict, Version,
};
use parking_lot::MutexGuard;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes that may wait for the log before an operation waits.
const PENDING_BYTES_MAX: usize = 16 << 20;

/// How often an operation that finds no space waits for what others are giving back.
const ALLOCATION_RETRIES_MAX: usize = 8;

impl Core {
    /// See [`super::ChunkStore::apply`].
    pub(super) fn apply(
        &self,
        group: GroupId,
        version: Version,
        op: &ChunkOp,
        data: &AlignedBuf,
    ) -> FsResult<Applied> {
        self.health.check()?;
        validate(op, data)?;
        self.make_room()?;
        let id = stored_id(group, op.chunk());
        let _order = self.order_of(id);
        let is_missing = self.catalog.chunk(id).is_none();
        let chunk = self.chunk_of(group, id)?;
        let head = chunk.content.read().head;
        let (past, era) = match is_missing {
            true => (None, self.era(group)),
            false => (Some(head.past()), 0),
        };
        match op.verdict(past, era) {
            Verdict::Change => self.change(&chunk, &head, version, op, data),
            Verdict::Nothing => Ok(self.leave(group, version, None)),
            Verdict::Refuse(code) => {
                Ok(self.leave(group, version, Some(refusal(chunk.id, past, code))))
            }
        }
    }

    fn change(
        &self,
        chunk: &Arc<Chunk>,
        head: &Head,
        version: Version,
        op: &ChunkOp,
        data: &AlignedBuf,
    ) -> FsResult<Applied> {
        let plan = match op {
            ChunkOp::Write {
                offset, checksums, ..
            } => Plan::write(self, chunk, *offset, data, checksums)?,
            ChunkOp::Zero { offset, len, .. } => {
                let end = offset.saturating_add(*len).min(CHUNK_SIZE_BYTES);
                Plan::zero(self, chunk, *offset, end)?
            }
            ChunkOp::Truncate { len, .. } => Plan::zero(self, chunk, *len, CHUNK_SIZE_BYTES)?,
            ChunkOp::Delete { .. } => Plan::wipe(),
            ChunkOp::Fence { .. } => unreachable!("a fence changes no chunk"),
        };
        let mut edit = Edit::of_head(chunk.id, chunk.group, head_after(head, op, version));
        edit.part = op.part().filter(|_| chunk.content.read().part.is_none());
        let images = plan.commit(&mut edit);
        let record = Record::Operation {
            group: chunk.group,
            version,
            wall: self.clock.wall(),
            edit: Some(edit),
        };
        Ok(Applied {
            lsn: self.publish(chunk, record, images),
            refused: None,
        })
    }

    /// An operation takes its place in the group's order without changing anything.
    fn leave(&self, group: GroupId, version: Version, refused: Option<FsError>) -> Applied {
        let record = Record::Operation {
            group,
            version,
            wall: self.clock.wall(),
            edit: None,
        };
        let entry = Entry::new(&record, Vec::new());
        let lsn = self
            .journal
            .push(entry, |catalog| catalog.set_last(group, version));
        Applied { lsn, refused }
    }

    /// Makes a change visible and queues its record, in one step for the chunk, so that the order in
    /// memory is the order in the log.
    pub(super) fn publish(
        &self,
        chunk: &Arc<Chunk>,
        record: Record,
        images: Vec<Arc<Image>>,
    ) -> Lsn {
        let edit = record.edit();
        let edit = edit.expect("only changes of a chunk are published");
        let entry = Entry::new(&record, images.clone());
        let mut content = chunk.content.write();
        let (overlay_before, deleted_before) = (content.overlay.len(), content.head.deleted);
        let freed = content.apply(edit, &images);
        self.count_overlay(overlay_before, content.overlay.len());
        // Before the record can be in the log: a checkpoint looks at the log's end first and at the
        // chunks with images second.
        if content.overlay.is_empty() {
            self.dirty.lock().remove(&chunk.id);
        } else if !images.is_empty() {
            self.dirty.lock().insert(chunk.id);
        }
        if self.catalog.chunk(chunk.id).is_none() {
            self.catalog.insert(chunk.clone());
        }
        if content.head.deleted != deleted_before {
            self.catalog
                .set_deleted(chunk.group, chunk.id, content.head.deleted);
        }
        if let Record::Operation { group, .. } = record
            && is_mark(chunk.id)
        {
            // Also before the record can be in the log, and after readers can see the new era.
            self.catalog.remove_tombstones(group);
        }
        let lsn = self.journal.push(entry.freeing(freed), |catalog| {
            if let Record::Operation { group, version, .. } = record {
                catalog.set_last(group, version);
            }
        });
        content.last_entry = lsn.0;
        lsn
    }

    /// Drops a chunk, tombstone and all.
    pub(super) fn forget(&self, chunk: &Chunk) -> Lsn {
        let mut content = chunk.content.write();
        let overlay_before = content.overlay.len();
        let freed = content.wipe();
        self.count_overlay(overlay_before, 0);
        self.dirty.lock().remove(&chunk.id);
        let entry = Entry::new(&Record::Forgotten { chunk: chunk.id }, Vec::new());
        // A checkpoint that began when the record was in the log must not find the chunk.
        self.catalog.remove(chunk.id);
        let lsn = self.journal.push(entry.freeing(freed), |_| ());
        content.last_entry = lsn.0;
        lsn
    }

    /// Keeps two changes of a chunk from being planned at once.
    pub(super) fn order_of(&self, chunk: ChunkId) -> MutexGuard<'_, ()> {
        self.order[chunk.get() as usize % self.order.len()].lock()
    }

    /// The chunk, or a new one that is not in the catalog yet.
    pub(super) fn chunk_of(&self, group: GroupId, id: ChunkId) -> FsResult<Arc<Chunk>> {
        match self.catalog.chunk(id) {
            Some(chunk) if chunk.group != group => {
                let context = format!("chunk {id} belongs to group {}, not {group}", chunk.group);
                Err(FsError::new(Code::Invalid, context))
            }
            Some(chunk) => Ok(chunk),
            None => Ok(Arc::new(Chunk::new(id, group))),
        }
    }

    /// Takes space; if there is none, first waits for places whose release is on its way to the log.
    pub(super) fn allocate(&self, count: u32, hint: Option<u64>) -> FsResult<Allocation<'_>> {
        let mut attempts = 0;
        loop {
            let allocated = self.health.note(self.space.allocate(count, hint));
            let full = allocated
                .as_ref()
                .is_err_and(|error| error.code == Code::NoSpace);
            if !full || attempts == ALLOCATION_RETRIES_MAX || !self.journal.has_unsettled() {
                return allocated;
            }
            // Others may be quicker to take what this brings.
            self.journal.sync(self.journal.last())?;
            attempts += 1;
        }
    }

    /// Makes whoever fills the queue, the memory for images or the log help to empty them.
    pub(super) fn make_room(&self) -> FsResult<()> {
        if self.journal.pending_bytes() > PENDING_BYTES_MAX {
            self.journal.sync(self.journal.last())?;
        }
        while self.is_overfull() {
            if !self.maintain()? {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn count_overlay(&self, before: usize, after: usize) {
        if after >= before {
            self.overlay_blocks
                .fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.overlay_blocks
                .fetch_sub(before - after, Ordering::Relaxed);
        }
    }

    /// All places that chunks use.
    #[cfg(test)]
    pub(super) fn used_runs(&self) -> Vec<super::block_map::Run> {
        let mut runs = Vec::new();
        for chunk in self.catalog.chunks_after(None, usize::MAX) {
            runs.extend(chunk.content.read().map.iter().map(|mapped| mapped.run));
        }
        runs.sort();
        runs
    }
}

/// What is wrong with a request in itself. It takes no place in the order.
fn validate(op: &ChunkOp, data: &AlignedBuf) -> FsResult<()> {
    let ChunkOp::Write {
        chunk,
        offset,
        checksums,
        ..
    } = op
    else {
        return Ok(());
    };
    verify_data(*chunk, *offset, data, checksums)
}

/// Whether data may be stored at `offset`: it fits in a chunk and matches its checksums.
pub(super) fn verify_data(
    chunk: ChunkId,
    offset: u64,
    data: &AlignedBuf,
    checksums: &[u32],
) -> FsResult<()> {
    let end = offset.checked_add(data.len() as u64);
    if end.is_none_or(|end| end > CHUNK_SIZE_BYTES) {
        let context = format!(
            "write {} bytes at {offset} of chunk {chunk}: past its end",
            data.len()
        );
        return Err(FsError::new(Code::Invalid, context));
    }
    // Every inlined block is in one log record.
    const _: () = assert!(
        lumeofs_base::limits::FRAME_PAYLOAD_BYTES_MAX + 2 * BLOCK_SIZE
            < lumeofs_base::limits::WAL_RECORD_BYTES_MAX / 2
    );
    if data.len() > lumeofs_base::limits::FRAME_PAYLOAD_BYTES_MAX {
        let context = format!(
            "write {} bytes to chunk {chunk}: too many at once",
            data.len()
        );
        return Err(FsError::new(Code::Invalid, context));
    }
    if verify_blocks(offset, data, checksums) {
        return Ok(());
    }
    let context = format!("write at {offset} of chunk {chunk}: data does not match its checksums");
    Err(FsError::new(Code::Io, context))
}

fn refusal(chunk: ChunkId, past: Option<Past>, code: Code) -> FsError {
    let why = match past {
        None => "it is not there, and the request is of an era that is over".to_owned(),
        Some(past) if past.deleted => "it was deleted".to_owned(),
        Some(past) => format!("it has truncation {}", past.truncations),
    };
    FsError::new(code, format!("chunk {chunk}: {why}"))
}

fn head_after(head: &Head, op: &ChunkOp, version: Version) -> Head {
    Head {
        version,
        truncations: op.truncations_after(head.truncations),
        deleted: head.deleted || matches!(op, ChunkOp::Delete { .. }),
    }
}
