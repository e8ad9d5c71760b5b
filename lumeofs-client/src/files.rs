//! Open files and their data, as the caller sees them.

use crate::client::{Client, Context, Range, WriteMode, Written};
use crate::data::write::How;
use crate::link::{Asker, Link};
use crate::meta::unexpected;
use crate::opens::Entered;
use lumeofs_base::{Attr, FsResult, InodeId};
use lumeofs_meta::op::{CreateMode, Mutation, Reply, SetAttr};

impl Link {
    /// Counts an open, known to the leader when this returns, or it will hear of it before the file can go.
    pub(crate) fn open(&self, asker: &Asker<'_>, ino: InodeId) -> FsResult<()> {
        if asker.caller.trusted && self.open_silently(ino) {
            return Ok(());
        }
        self.report_new_open(asker, ino)
    }

    /// Counts an open, known to the leader when this returns.
    pub(crate) fn report_new_open(&self, asker: &Asker<'_>, ino: InodeId) -> FsResult<()> {
        self.wait_told(asker, ino)?;
        if self.opens.enter(ino, &asker.patience)? == Entered::MustReport {
            let result = self.report_open(ino, &asker.patience);
            self.opens.reported(ino, result.is_ok());
            if result.is_err() {
                self.session.release_soon();
            }
            result?;
        }
        Ok(())
    }
}

impl Client {
    /// Counts one more open of a regular file, so that it outlives its last name: the first one is known to the leader before
    /// this returns, unless a lease makes the leader ask before the file goes. With `truncate` it is empty then.
    pub fn open(&self, cx: Context<'_>, ino: InodeId, truncate: bool) -> FsResult<()> {
        let asker = self.link.asker(&cx);
        self.link.open(&asker, ino)?;
        if !truncate {
            return Ok(());
        }
        let set = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        let result = self.link.set_attr_leased(&asker, ino, set);
        if result.is_err() {
            self.release(ino);
        }
        result.map(drop)
    }

    /// Makes a regular file without a name, with what it inherits from `parent`. It counts as one [`Client::open`] and is gone
    /// with the last one, unless [`Client::link`] has given it a name.
    pub fn create_unnamed(
        &self,
        cx: Context<'_>,
        parent: InodeId,
        mode: CreateMode,
    ) -> FsResult<Attr> {
        let link = &self.link;
        let asker = link.asker(&cx);
        let restatements = link.opens.restatements(&asker.patience)?;
        let era = link.era();
        let reply = link.mutate(&asker, parent, &Mutation::CreateUnnamed { parent, mode })?;
        let Reply::Created {
            attr, first_chunk, ..
        } = reply
        else {
            return Err(unexpected(&reply));
        };
        if let Some(chunk) = first_chunk {
            let inode = link.inodes.get(attr.ino);
            inode.learn_chunks(&attr, &[chunk], era);
        }
        if !link.opens.created(attr.ino, restatements) {
            link.open(&asker, attr.ino)?;
        }
        Ok(attr)
    }

    /// Counts one open less. Never waits: the last one is reported in the background.
    pub fn release(&self, ino: InodeId) {
        if self.link.leave_open(ino) {
            self.link.session.release_soon();
        }
    }

    /// Reads into `buf`; short only at the end of the file.
    pub fn read(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        offset: u64,
        buf: &mut [u8],
    ) -> FsResult<usize> {
        self.link
            .read_leased(&self.link.asker(&cx), ino, offset, buf)
    }

    /// A file, directory or symlink was read by a caller whose mount keeps access times as `strictatime` does, or else as
    /// `relatime`. Never waits: the leader is told in the background, within seconds.
    pub fn accessed(&self, ino: InodeId, is_strict: bool) {
        self.link.accessed(ino, is_strict);
    }

    /// Writes all of `data` at `offset`, or at the end.
    pub fn write(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        offset: u64,
        data: &[u8],
        mode: WriteMode,
    ) -> FsResult<Written> {
        let asker = self.link.asker(&cx);
        let how = How {
            durable: mode.durable,
            direct: mode.direct,
            clear_suid: mode.clear_suid,
        };
        let offset = (!mode.append).then_some(offset);
        self.link.write_leased(&asker, ino, offset, data, how)
    }

    /// Whether [`Client::flush`] has nothing to do. Never waits.
    pub fn is_flushed(&self, ino: InodeId) -> bool {
        let inode = self.link.inodes.find(ino);
        inode.is_none_or(|inode| inode.is_flushed())
    }

    /// close(2): publishes a pending modification time, reports an error of background work once.
    pub fn flush(&self, cx: Context<'_>, ino: InodeId) -> FsResult<()> {
        self.link.flush(&cx, ino)
    }

    /// All acknowledged writes of this client to this inode are on the disks of all in-sync
    /// replicas, and what is pending of its attributes is published, unless `data_only`. It, and what was made in it, is
    /// with a quorum of masters.
    ///
    /// # Errors
    /// `Io` once if a replica group lost writes that had been acknowledged but not synced.
    pub fn fsync(&self, cx: Context<'_>, ino: InodeId, data_only: bool) -> FsResult<()> {
        self.link.fsync_leased(&cx, ino, data_only)
    }

    /// `fallocate(2)`.
    pub fn allocate(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        offset: u64,
        len: u64,
        range: Range,
    ) -> FsResult<()> {
        self.link.allocate_leased(&cx, ino, offset, len, range)
    }

    /// `SEEK_DATA`, or `SEEK_HOLE` with `hole`; `NoSuchOffset` past the end.
    pub fn seek(&self, cx: Context<'_>, ino: InodeId, offset: u64, hole: bool) -> FsResult<u64> {
        self.link.seek_leased(&cx, ino, offset, hole)
    }
}
