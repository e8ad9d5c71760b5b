//! Reads: who may answer, and when what was read may be shown (D5).

use super::Group;
use crate::effect::Effect;
use crate::message::Payload;
use lumeofs_base::{ChunkId, Code, Epoch, FsError, Sequence};
use std::time::Duration;

/// Whether a read may start here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadStart {
    /// Read, then ask [`Group::read_end`] with this.
    Read(Reader),
    /// Not now: ask again after [`Effect::Changed`].
    Wait,
    /// No.
    Refused(FsError),
}

/// As what a member answers a read, and in which of its histories: what was read of one that was
/// replaced since may contain operations that never were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// As primary.
    Primary {
        /// Number of the history.
        history: u64,
    },
    /// As secondary under a read lease.
    Secondary {
        /// Number of the history.
        history: u64,
    },
}

/// Whether what was read may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadEnd {
    /// Yes.
    Answer,
    /// Not yet: ask again after [`Effect::Changed`].
    Wait,
    /// No.
    Refused(FsError),
}

impl<P: Payload> Group<P> {
    /// A read of a chunk is about to start.
    pub fn read_start(&mut self, epoch: Epoch, chunk: ChunkId, now: Duration) -> ReadStart {
        if epoch < self.config.epoch {
            let context = format!(
                "the group is at epoch {}, the request at {epoch}",
                self.config.epoch
            );
            return ReadStart::Refused(FsError::new(Code::StaleEpoch, context));
        }
        if epoch > self.config.epoch {
            self.effects.push(Effect::Refresh);
            return ReadStart::Wait;
        }
        let history = self.history;
        if self.config.primary == self.me {
            let ready = self.takes_requests() && now < self.lease_until();
            return if ready {
                ReadStart::Read(Reader::Primary { history })
            } else {
                ReadStart::Wait
            };
        }
        match self.may_read(now) && self.tail.last_of(chunk).is_none() {
            true => ReadStart::Read(Reader::Secondary { history }),
            false => ReadStart::Refused(self.ask_primary()),
        }
    }

    /// The last operation on the chunk that is not committed: what was just read may contain it.
    pub fn read_barrier(&self, chunk: ChunkId) -> Sequence {
        self.tail.last_of(chunk).unwrap_or(Sequence(0))
    }

    /// What was read may be shown when `barrier` is committed and the lease still holds.
    pub fn read_end(&self, reader: Reader, barrier: Sequence, now: Duration) -> ReadEnd {
        match reader {
            Reader::Primary { history } if !self.is_serving() || history != self.history => {
                ReadEnd::Refused(FsError::new(
                    Code::StaleEpoch,
                    "the group was reconfigured during a read",
                ))
            }
            Reader::Primary { .. } => {
                let shown = self.committed >= barrier && now < self.lease_until();
                if shown {
                    ReadEnd::Answer
                } else {
                    ReadEnd::Wait
                }
            }
            Reader::Secondary { history }
                if self.may_read(now) && history == self.history && barrier == Sequence(0) =>
            {
                ReadEnd::Answer
            }
            Reader::Secondary { .. } => ReadEnd::Refused(self.ask_primary()),
        }
    }

    fn may_read(&self, now: Duration) -> bool {
        self.primary.is_none()
            && self.complete
            && self.config.is_in_sync(self.me)
            && self.committed >= self.follower.readable_from
            && now < self.follower.read_until
    }

    fn ask_primary(&self) -> FsError {
        FsError::new(
            Code::Again,
            format!("ask the primary, datanode {}", self.config.primary),
        )
    }
}
