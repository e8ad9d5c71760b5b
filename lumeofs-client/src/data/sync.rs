//! fsync: every group that acknowledged writes of this client to the inode puts them on the disks
//! of its in-sync members. A group that lost them says so, and the caller gets EIO once: rule D2.

use crate::client::Context;
use crate::data::primaries::GroupOp;
use crate::inodes::Inode;
use crate::link::{Asker, Link};
use lumeofs_base::{Code, FsError, FsResult, InodeId};
use lumeofs_proto::data::ChunkRequest;
use lumeofs_proto::frame::Op;

impl Link {
    /// Makes all acknowledged writes of this client to an inode durable.
    pub(crate) fn fsync(&self, cx: &Context<'_>, ino: InodeId, data_only: bool) -> FsResult<()> {
        let asker = self.asker(cx);
        let inode = self.inodes.get(ino);
        self.sync(&asker, ino, &inode, &mut || match data_only {
            true => Ok(()),
            false => self.publish(&asker, ino).map(drop),
        })
    }

    /// Makes all acknowledged writes durable, and calls `publish` meanwhile.
    pub(crate) fn sync(
        &self,
        asker: &Asker<'_>,
        ino: InodeId,
        inode: &Inode,
        publish: &mut dyn FnMut() -> FsResult<()>,
    ) -> FsResult<()> {
        let pending = inode.take_error();
        let unsynced: Vec<_> = self.inodes.unsynced(inode).into_iter().collect();
        let mut ops: Vec<_> = unsynced
            .iter()
            .map(|((group, _), version)| {
                let header = ChunkRequest {
                    after_epoch: version.epoch.get(),
                    after_sequence: version.sequence.get(),
                    ..Default::default()
                };
                GroupOp::new(*group, Op::Sync, header, &[])
            })
            .collect();
        let mut published = Ok(());
        let mut meanwhile = || published = publish();
        let synced = self.at_primaries(&asker.patience, &mut ops, &mut meanwhile);
        let mut result = pending.map_or(Ok(()), Err);
        for (op, ((group, _), version)) in ops.iter().zip(&unsynced) {
            match &op.outcome {
                Some(Ok(_)) => self.inodes.synced(inode, *group, *version),
                Some(Err(error)) => {
                    if error.code == Code::LostTail {
                        tracing::error!(%ino, %group, %error, "acknowledged writes were lost before fsync");
                        self.inodes.synced(inode, *group, *version);
                    }
                    result = Err(FsError::new(
                        Code::Io,
                        format!("sync {ino} in {group}: {error}"),
                    ));
                }
                None => {}
            }
        }
        result.and(synced).and(published)
    }
}
