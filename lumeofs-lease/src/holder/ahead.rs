//! What else is asked for beside what a caller needs: inodes that follow in a listing.
//!
//! A walk through a directory needs the attributes of all its entries, a single path those of one. Which of both it is
//! shows by what becomes of what was asked for ahead: there is a credit for that, which use fills and waste empties.

use super::Holder;
use lumeofs_base::InodeId;
use lumeofs_base::limits::READDIR_INODES_MAX;

/// Names of a directory that nobody has listed and that were asked for one by one, before others are asked for ahead.
const MISSES_MIN: u8 = 3;
/// How many inodes that are asked for ahead earn themselves by the use of one.
const PER_USE: usize = 4;
/// So many are asked for although none was of use yet.
const CREDIT_MAX: usize = 4 * READDIR_INODES_MAX;
/// Fewer are not worth a question that is a longer one.
const COUNT_MIN: usize = 16;

/// How many inodes may be asked for ahead.
#[derive(Debug)]
pub(super) struct Credit(usize);

impl Default for Credit {
    fn default() -> Self {
        Self(CREDIT_MAX)
    }
}

impl Credit {
    fn add(&mut self, count: usize) {
        self.0 = (self.0 + count).min(CREDIT_MAX);
    }

    /// One that was asked for ahead is used.
    pub(super) fn is_used(&mut self) {
        self.add(PER_USE);
    }

    fn take(&mut self) -> usize {
        let count = self.0.min(READDIR_INODES_MAX);
        if count < COUNT_MIN {
            return 0;
        }
        self.0 -= count;
        count
    }
}

/// A part of a listing to be asked for, with inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// The entries after this cookie.
    pub after: u64,
    /// So many.
    pub count: usize,
}

impl Holder {
    /// A listing is about to be asked for from its start: with how many inodes.
    pub fn listed_ahead(&mut self) -> usize {
        self.credit.take()
    }

    /// So many of those inodes there were not.
    pub fn not_listed(&mut self, count: usize) {
        self.credit.add(count);
    }

    /// A name is about to be asked for: what to ask for before, as it may answer that too.
    pub fn look_ahead(&mut self, parent: InodeId, name: &[u8]) -> Option<Ahead> {
        // So waste ends, and yet is tried again.
        self.credit.add(1);
        let dir = self.entries.get_mut(&parent)?;
        let after = dir.contents.missed(name, MISSES_MIN)?;
        let count = self.credit.take();
        (count > 0).then_some(Ahead { after, count })
    }
}
