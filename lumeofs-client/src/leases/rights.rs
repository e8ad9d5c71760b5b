//! The right to write to a file, held for one operation.

use super::answers::Want;
use crate::data::{Reading, Tenure};
use crate::link::{Asker, Link};
use crate::wait::now;
use lumeofs_base::{Attr, FsResult, InodeId, Timestamp};
use lumeofs_lease::{Cached, WriteRight};
use std::ops::Range;
use std::time::Duration;

/// Pause before the leader is asked once more, when its answer brought no right.
const ASK_PAUSE: Duration = Duration::from_millis(10);

/// How an operation writes.
#[derive(Debug)]
pub(crate) enum Right {
    /// Nobody else has anything of the file: what is written may stay in memory, in this.
    Buffered(Tenure),
    /// To the datanodes, and others may do so at the same time.
    Through,
}

/// A right in use. It is not given back before this is dropped.
pub(crate) struct Writing<'a> {
    link: &'a Link,
    ino: InodeId,
    epoch: u64,
    /// Which it is.
    pub(crate) right: Right,
}

impl Link {
    /// Begins to write to a file. Not to be called with a range of it locked: who gives the right back may need that.
    pub(crate) fn begin_write<'a>(
        &'a self,
        asker: &Asker<'_>,
        ino: InodeId,
        range: &Range<u64>,
    ) -> FsResult<Writing<'a>> {
        let mut asked = false;
        loop {
            let (right, epoch, is_valid) = self.with_leases(|state| {
                let now = now();
                let right = match state.holder.begin_write(now, ino) {
                    WriteRight::Buffered => Ok(Right::Buffered(self.tenure(ino))),
                    WriteRight::Through => Ok(Right::Through),
                    other => Err(other),
                };
                (right, state.epoch, state.holder.is_valid(now))
            });
            let right = match right {
                Ok(right) => right,
                Err(WriteRight::Wait) => {
                    self.wait_for_leases(asker)?;
                    continue;
                }
                Err(_) => {
                    if !is_valid {
                        // The leader gives nothing to who does not poll.
                        self.wait_for_leases(asker)?;
                    } else if std::mem::replace(&mut asked, true) {
                        asker.patience.pause(ASK_PAUSE)?;
                    }
                    let inode = self.inodes.get(ino);
                    self.chunks_wanting(asker, ino, &inode, range, Want::Write)?;
                    continue;
                }
            };
            return Ok(Writing {
                link: self,
                ino,
                epoch,
                right,
            });
        }
    }

    pub(crate) fn wait_for_leases(&self, asker: &Asker<'_>) -> FsResult<()> {
        let mut state = self.leases.state.lock();
        asker.patience.wait(&self.leases.changed, &mut state)
    }

    /// How a file may be read.
    pub(crate) fn reading(&self, ino: InodeId) -> Reading {
        self.with_leases(|state| match state.holder.caches_data(now(), ino) {
            // With the lease at hand, so that its end finds the file.
            Some(_) => Reading::Cached(self.pages.file(ino)),
            None if state.holder.is_writer(ino) => Reading::Wait,
            None => Reading::Through,
        })
    }

    /// Whether a change of a file's data by others would be heard of.
    pub(crate) fn keeps_data(&self, ino: InodeId) -> bool {
        let holder = &mut self.leases.state.lock().holder;
        holder.caches_data(now(), ino).is_some()
    }

    /// The truncation number of a file, if its attributes are in memory.
    pub(crate) fn truncations_under_lease(&self, ino: InodeId) -> Option<u32> {
        match self.attr_under_lease(ino) {
            Cached::Is(attr) => Some(attr.truncations),
            Cached::Absent | Cached::Unknown => None,
        }
    }

    /// Attributes that are in memory.
    pub(crate) fn attr_under_lease(&self, ino: InodeId) -> Cached<Attr> {
        self.leases.state.lock().holder.attr(now(), ino)
    }

    /// Whether leases count now.
    pub(crate) fn leases_count(&self) -> bool {
        self.leases.state.lock().holder.is_valid(now())
    }

    /// Whether the datanodes have all that others have written to a file: if not, the leader has to be asked first.
    pub(crate) fn is_covered(&self, ino: InodeId) -> bool {
        self.leases.state.lock().holder.is_covered(now(), ino)
    }

    /// Whether there may be writes to a file in memory.
    pub(crate) fn is_writer(&self, ino: InodeId) -> bool {
        self.leases.state.lock().holder.is_writer(ino)
    }

    /// Enters how far the servers have what was written under a lease: its size and times are shown, and as long as
    /// anything is missing the lease is neither given up nor forgotten when another leader comes.
    pub(crate) fn note_local(&self, ino: InodeId) {
        self.with_leases(|state| {
            let holder = &mut state.holder;
            let is_settled = match self.local_state(ino) {
                Some((local, false)) => {
                    holder.wrote(ino, |attr| *attr = local.with_changes(attr));
                    true
                }
                Some((local, true)) => {
                    let attr = local.attr();
                    holder.published(ino, attr.size, attr.mtime)
                }
                None => holder.published(ino, u64::MAX, Timestamp::default()),
            };
            if !is_settled {
                holder.abandoned(ino);
            }
        });
    }

    /// What was written and is not published is not shown any more.
    pub(crate) fn forget_local(&self, ino: InodeId) {
        self.with_leases(|state| state.holder.abandoned(ino));
    }
}

impl Writing<'_> {
    /// Whether the session under which it began has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.link.leases.state.lock().epoch != self.epoch
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let is_awaited = self.link.with_leases(|state| {
            if state.epoch == self.epoch {
                state.holder.end_write(self.ino);
            }
            state.waiting > 0
        });
        if is_awaited {
            self.link.leases.changed.notify_all();
        }
    }
}
