//! Modification times that no change of size carries along: published within a second in the
//! background, and before anybody on this client can see the old one.

use crate::client::Context;
use crate::data::write::again;
use crate::inodes::Inode;
use crate::link::{Asker, Link};
use crate::wait::Patience;
use lumeofs_base::{Attr, Code, FsResult, InodeId};
use lumeofs_meta::op::{Mutation, Query};
use std::collections::VecDeque;
use std::time::Duration;

/// Time between two rounds of the background thread.
const ROUND: Duration = Duration::from_millis(500);
/// So many rounds old the known space of the datanodes may be: they tell of it about once a second, and so often it is
/// asked for.
const SPACE_ROUNDS: usize = 6;

impl Link {
    /// Publishes the mtime of an inode, if this client changed it. Says what it is then.
    pub(crate) fn publish(&self, asker: &Asker<'_>, ino: InodeId) -> FsResult<Option<Attr>> {
        let Some(inode) = self.inodes.find(ino).filter(|inode| inode.is_dirty()) else {
            return Ok(None);
        };
        let _times = self.own_times(asker, ino, &inode)?;
        if !self.inodes.take_dirty(ino, &inode) {
            return Ok(None);
        }
        // Who looks need not be who wrote; and who wrote had the right to.
        match self.publish_taken(&asker.trusted(), ino, &inode) {
            Err(error) if is_removed(error.code) => Ok(None),
            Err(error) => {
                self.inodes.mark_dirty(ino, &inode);
                Err(error)
            }
            Ok(attr) => Ok(Some(attr)),
        }
    }

    fn publish_taken(&self, asker: &Asker<'_>, ino: InodeId, inode: &Inode) -> FsResult<Attr> {
        let mut truncations = inode.truncations();
        again(asker, ino, || {
            let known = match truncations.take() {
                Some(known) => known,
                None => {
                    self.query_attr(asker, ino, &Query::GetAttr { ino })?
                        .truncations
                }
            };
            let publish = Mutation::Publish {
                ino,
                size: 0,
                truncations: known,
                clear_suid: false,
            };
            match self.mutate_attr(asker, ino, &publish) {
                // Truncated since: ask for the number.
                Err(error) if error.code == Code::StaleWrite => Ok(None),
                other => other.map(Some),
            }
        })
    }

    /// Attributes as the caller must see them: with the mtime of this client's own writes.
    pub(crate) fn fresh(&self, asker: &Asker<'_>, attr: Attr) -> FsResult<Attr> {
        let attr = self.publish(asker, attr.ino)?.unwrap_or(attr);
        Ok(self.with_own_writes(attr))
    }

    /// The background thread.
    pub(crate) fn keep_publishing(&self) {
        let mut written = VecDeque::from([0; SPACE_ROUNDS]);
        while !self.halt.is_halted() {
            self.halt.sleep(ROUND);
            if self.pages.shared.dirty() > 0 {
                let patience = Patience::background(&self.halt, None);
                self.maps.refresh_space(&self.masters, &patience);
            }
            written.push_back(self.pages.shared.written());
            let before = written.pop_front().unwrap_or_default();
            self.pages.shared.note_written_since(before);
            for ino in self.inodes.all_dirty() {
                // An outage is not the end: the next round tries again.
                self.publish_in_background(ino, None).ok();
            }
        }
    }

    /// Fails if the cluster does not answer.
    pub(crate) fn publish_in_background(
        &self,
        ino: InodeId,
        limit: Option<Duration>,
    ) -> FsResult<()> {
        let asker = Asker::background(Patience::background(&self.halt, limit));
        let Err(error) = self.publish(&asker, ino) else {
            return Ok(());
        };
        if !self.halt.is_halted() {
            tracing::warn!(%ino, %error, "modification time not published");
        }
        if error.code == Code::Unavailable {
            return Err(error);
        }
        // It will not succeed later either: the next flush or fsync tells.
        if let Some(inode) = self.inodes.find(ino) {
            self.inodes.take_dirty(ino, &inode);
            inode.fail(error);
        }
        Ok(())
    }

    /// close(2): publishes, and tells an error of the background once.
    pub(crate) fn flush(&self, cx: &Context<'_>, ino: InodeId) -> FsResult<()> {
        let asker = self.asker(cx);
        let Some(inode) = self.inodes.find(ino) else {
            return Ok(());
        };
        if let Some(error) = inode.take_error() {
            return Err(error);
        }
        self.publish(&asker, ino).map(drop)
    }
}

fn is_removed(code: Code) -> bool {
    matches!(code, Code::NotFound | Code::Stale)
}
