//! Locks on byte ranges of one inode within this client: writes exclude everything that overlaps
//! them, reads only writes. So two writes of overlapping ranges are never under way together (rule D3), and a read
//! never sees half of this client's own write. First come, first served.

use crate::wait::Patience;
use lumeofs_base::FsResult;
use parking_lot::{Condvar, Mutex};
use std::ops::Range;

/// The ranges of one inode that are held or waited for, in order of arrival.
#[derive(Debug, Default)]
pub(crate) struct Ranges {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next_ticket: u64,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    ticket: u64,
    range: Range<u64>,
    exclusive: bool,
}

impl State {
    /// Whether an earlier arrival stands in the way.
    fn is_blocked(&self, ticket: u64) -> bool {
        let Some(at) = self.entries.iter().position(|entry| entry.ticket == ticket) else {
            return false;
        };
        let mine = &self.entries[at];
        self.entries[..at].iter().any(|other| {
            (mine.exclusive || other.exclusive)
                && mine.range.start < other.range.end
                && other.range.start < mine.range.end
        })
    }
}

/// A held range.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    ranges: &'a Ranges,
    ticket: u64,
}

impl Ranges {
    /// For a read.
    pub(crate) fn share(&self, range: Range<u64>, patience: &Patience<'_>) -> FsResult<Held<'_>> {
        self.hold(range, false, patience)
    }

    /// For a change.
    pub(crate) fn own(&self, range: Range<u64>, patience: &Patience<'_>) -> FsResult<Held<'_>> {
        self.hold(range, true, patience)
    }

    fn hold(
        &self,
        range: Range<u64>,
        exclusive: bool,
        patience: &Patience<'_>,
    ) -> FsResult<Held<'_>> {
        let mut state = self.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.entries.push(Entry {
            ticket,
            range,
            exclusive,
        });
        while state.is_blocked(ticket) {
            if let Err(error) = patience.wait(&self.changed, &mut state) {
                drop(state);
                drop(Held {
                    ranges: self,
                    ticket,
                });
                return Err(error);
            }
        }
        Ok(Held {
            ranges: self,
            ticket,
        })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.ranges.state.lock();
        state.entries.retain(|entry| entry.ticket != self.ticket);
        if !state.entries.is_empty() {
            self.ranges.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::Halt;
    use std::time::Duration;

    #[test]
    fn overlapping_writes_exclude_each_other_and_reads_share() {
        let (ranges, halt) = (Ranges::default(), Halt::default());
        let short = Patience::background(&halt, Some(Duration::from_millis(10)));
        let write = ranges.own(100..200, &short).unwrap();
        assert!(ranges.own(199..300, &short).is_err());
        assert!(ranges.share(0..101, &short).is_err());
        let beside = ranges.own(200..300, &short).unwrap();
        drop((write, beside));
        let read = ranges.share(0..1000, &short).unwrap();
        let other = ranges.share(5..6, &short).unwrap();
        assert!(ranges.own(5..6, &short).is_err());
        drop((read, other));
        ranges.own(5..6, &short).unwrap();
    }
}
