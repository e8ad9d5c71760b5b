//! Setting attributes, and with a smaller size the cut of the last chunk: rule D11.
//!
//! The leader frees the chunks past the new size and marks the tail as unclean; whoever truncated, or
//! wants to grow the file next, has the last chunk cut at its group and then clears the mark.
//!
//! Growing over a gap is refused as well while a session that ended may have left bytes past the size; to the
//! leader and to the groups what ends that is a truncation to the present size.

use crate::data::primaries::{GroupOp, first_error};
use crate::data::write::{again, note_unsynced};
use crate::inodes::Inode;
use crate::link::{Asker, Link};
use lumeofs_base::limits::FILE_SIZE_BYTES_MAX;
use lumeofs_base::{Attr, Code, FsError, FsResult, InodeId};
use lumeofs_meta::op::{Mutation, SetAttr};
use lumeofs_proto::data::ChunkRequest;
use lumeofs_proto::frame::Op;
use std::sync::Arc;

impl Link {
    /// Sets attributes.
    pub(crate) fn set_attr(&self, asker: &Asker<'_>, ino: InodeId, set: SetAttr) -> FsResult<Attr> {
        match set.size {
            Some(size) => self.resize(asker, ino, size, set),
            None if set.mtime.is_some() => self.set_times(asker, ino, set),
            None => {
                let attr = self.mutate_attr(asker, ino, &Mutation::SetAttr { ino, set })?;
                self.fresh(asker, attr)
            }
        }
    }

    /// A time that is set overtakes one that is not published yet.
    fn set_times(&self, asker: &Asker<'_>, ino: InodeId, set: SetAttr) -> FsResult<Attr> {
        let mutation = Mutation::SetAttr { ino, set };
        let Some(inode) = self.inodes.find(ino) else {
            return self.mutate_attr(asker, ino, &mutation);
        };
        self.overtake_mtime(asker, ino, &inode, &mutation, &mut |_| {})
    }

    /// Sets an mtime, and calls `told` with the attributes before another one can be published.
    pub(crate) fn overtake_mtime(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        mutation: &Mutation,
        told: &mut dyn FnMut(&Attr),
    ) -> FsResult<Attr> {
        let _times = self.own_times(asker, ino, inode)?;
        let dirty = self.inodes.take_dirty(ino, inode);
        let result = self.mutate_attr(asker, ino, mutation);
        match &result {
            Ok(attr) => told(attr),
            Err(_) if dirty => self.inodes.mark_dirty(ino, inode),
            Err(_) => {}
        }
        result
    }

    fn resize(&self, asker: &Asker<'_>, ino: InodeId, size: u64, set: SetAttr) -> FsResult<Attr> {
        let inode: Arc<Inode> = self.inodes.get(ino);
        let _held = inode.ranges.own(size..u64::MAX, &asker.patience)?;
        self.resize_held(asker, ino, &inode, size, set)
    }

    /// Sets the size, and what else there is to set, where the caller owns the range past it.
    pub(crate) fn resize_held(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        size: u64,
        set: SetAttr,
    ) -> FsResult<Attr> {
        if size > FILE_SIZE_BYTES_MAX {
            let what = format!("size {size}: a file has at most {FILE_SIZE_BYTES_MAX} bytes");
            return Err(FsError::new(Code::FileTooBig, what));
        }
        let mutation = Mutation::SetAttr { ino, set };
        let attr = again(asker, ino, || {
            match self.overtake_mtime(asker, ino, inode, &mutation, &mut |_| {}) {
                Ok(attr) => Ok(Some(attr)),
                // It grows, and past its end there may be something.
                Err(error) if error.code == Code::StaleWrite => {
                    self.clean_tail_if_needed(asker, ino, inode)?;
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        })?;
        inode.learn(&attr);
        if !attr.tail_unclean {
            return Ok(attr);
        }
        match self.clean_tail(asker, ino, inode, attr.clone()) {
            // Somebody truncated again, or a later connection of ours wrote.
            Err(error) if error.code == Code::StaleWrite => {
                self.clean_tail_if_needed(asker, ino, inode)?;
                Ok(attr)
            }
            cleaned => cleaned,
        }
    }

    /// Has the tail cut off if it is unclean, or may be since some session ended.
    pub(crate) fn clean_tail_if_needed(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
    ) -> FsResult<()> {
        let attr = self.mutate_attr(asker, ino, &Mutation::CutTail { ino })?;
        inode.learn(&attr);
        if !attr.tail_unclean {
            return Ok(());
        }
        match self.clean_tail(asker, ino, inode, attr) {
            Err(error) if error.code == Code::StaleWrite => Ok(()),
            cleaned => cleaned.map(drop),
        }
    }

    /// Cuts the last chunk at the size and clears the mark. `StaleWrite` if the file was truncated
    /// once more.
    pub(crate) fn clean_tail(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        attr: Attr,
    ) -> FsResult<Attr> {
        let within = attr.size % self.chunk_size();
        if within != 0 {
            let known = self.chunks(asker, ino, inode, &(attr.size - 1..attr.size))?;
            if known.attr.truncations != attr.truncations {
                return Err(FsError::new(
                    Code::StaleWrite,
                    format!("{ino} was truncated again"),
                ));
            }
            if let Some(chunk) = known.chunks.values().next() {
                let header = ChunkRequest {
                    chunk: chunk.chunk.get(),
                    offset: within,
                    truncations: attr.truncations,
                    era: known.era,
                    // The mark that is cleared next is durable; what was cut off must not come back.
                    durable: true,
                    ..Default::default()
                };
                let mut ops = [GroupOp::new(chunk.group, Op::Truncate, header, &[])];
                self.bind(asker)?;
                self.at_primaries(&asker.patience, &mut ops, &mut || {})?;
                note_unsynced(inode, &ops);
                let cut = first_error(&ops).map_err(|error| self.shut_out(asker, error));
                if cut
                    .as_ref()
                    .is_err_and(|error| error.code == Code::StaleWrite)
                {
                    self.generations.raise(chunk.group, ops[0].generation);
                }
                cut?;
            }
        }
        let clean = Mutation::TailClean {
            ino,
            truncations: attr.truncations,
        };
        let attr = self.mutate_attr(asker, ino, &clean)?;
        inode.learn(&attr);
        Ok(attr)
    }
}
