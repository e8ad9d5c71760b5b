//! Where the entries of a Raft log lie, and the newest of them in memory.
//!
//! Pure: it is fed with what is appended, or with what a replay finds, in the same order.

use super::log_record::{Record, State};
use super::types::{Entry, LeaderId, LogId};
use lumeofs_base::{Code, FsError, FsResult};
use lumeofs_wal::Lsn;
use std::collections::VecDeque;

/// Bytes of the newest entries that stay in memory: a follower that keeps up is served without the
/// disk.
const CACHE_BYTES: usize = 8 << 20;

/// Where an entry lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) lsn: Lsn,
    leader_id: LeaderId,
    /// Length of its record.
    pub(super) bytes: u32,
}

/// The log's entries and the state beside them.
#[derive(Debug, Default)]
pub(super) struct LogIndex {
    pub(super) state: State,
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    /// The last entries, in order.
    cache: VecDeque<(Entry, u32)>,
    cache_bytes: usize,
}

impl LogIndex {
    /// Index after the last entry.
    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// The last entry's id, or that of the last purged one.
    pub(super) fn last(&self) -> Option<LogId> {
        match self.slots.back() {
            Some(slot) => Some(LogId {
                leader_id: slot.leader_id,
                index: self.end() - 1,
            }),
            None => self.state.purged,
        }
    }

    /// The indices in `from .. to` that exist.
    pub(super) fn clamp(&self, from: u64, to: u64) -> std::ops::Range<u64> {
        let from = from.max(self.first);
        from..to.min(self.end()).max(from)
    }

    /// Where an existing entry lies.
    pub(super) fn slot(&self, index: u64) -> Slot {
        self.slots[(index - self.first) as usize]
    }

    /// An entry, if it is in memory.
    pub(super) fn cached(&self, index: u64) -> Option<&Entry> {
        let back = self.end().checked_sub(index)?;
        let at = (self.cache.len() as u64).checked_sub(back)?;
        self.cache.get(at as usize).map(|(entry, _)| entry)
    }

    /// Adds an entry behind the last one. A hole would be fatal later and is refused here.
    pub(super) fn push(&mut self, id: LogId, lsn: Lsn, bytes: u32) -> FsResult<()> {
        if self.slots.is_empty() {
            self.first = id.index;
        } else if id.index != self.end() {
            return Err(FsError::new(
                Code::Io,
                format!(
                    "Raft log entry {} where {} was expected",
                    id.index,
                    self.end()
                ),
            ));
        }
        self.slots.push_back(Slot {
            lsn,
            leader_id: id.leader_id,
            bytes,
        });
        Ok(())
    }

    /// Keeps the last entry, which was just pushed, in memory.
    pub(super) fn remember(&mut self, entry: Entry, bytes: u32) {
        self.cache.push_back((entry, bytes));
        self.cache_bytes += bytes as usize;
        while self.cache_bytes > CACHE_BYTES && self.cache.len() > 1 {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        if let Some((_, bytes)) = self.cache.pop_front() {
            self.cache_bytes -= bytes as usize;
        }
    }

    /// Removes the entries from `since` on.
    pub(super) fn truncate(&mut self, since: u64) {
        while self.end() > since && !self.slots.is_empty() {
            self.slots.pop_back();
            if let Some((_, bytes)) = self.cache.pop_back() {
                self.cache_bytes -= bytes as usize;
            }
        }
    }

    /// Whether a snapshot up to `upto` stands for entries that are not those of this log.
    pub(super) fn is_replaced_by(&self, upto: LogId) -> bool {
        let last = self.last().map(|id| id.index);
        last < Some(upto.index) || self.differs_at(upto)
    }

    fn differs_at(&self, id: LogId) -> bool {
        let at = id.index.checked_sub(self.first);
        at.and_then(|at| self.slots.get(at as usize))
            .is_some_and(|slot| slot.leader_id != id.leader_id)
    }

    /// Removes the entries up to `upto`, inclusive; all of them, if `upto` itself is another entry here: then
    /// what follows is of no use either.
    pub(super) fn purge(&mut self, upto: LogId) {
        if self.differs_at(upto) {
            self.truncate(self.first);
        }
        while self.first <= upto.index && !self.slots.is_empty() {
            self.slots.pop_front();
            self.first += 1;
        }
        while self.cache.len() > self.slots.len() {
            self.forget_first();
        }
        self.state.purged = self.state.purged.max(Some(upto));
    }

    /// The first position in the WAL that is still needed for entries.
    pub(super) fn first_lsn(&self) -> Option<Lsn> {
        self.slots.front().map(|slot| slot.lsn)
    }

    /// The position of the last entry up to `upto`, `None` if there is none.
    pub(super) fn lsn_upto(&self, upto: u64) -> Option<Lsn> {
        let last = upto.min(self.end().checked_sub(1)?);
        let at = last.checked_sub(self.first)?;
        self.slots.get(at as usize).map(|slot| slot.lsn)
    }

    /// Whether `leader` is the leadership of `me` that the saved vote stands for.
    pub(super) fn leads(&self, me: u64, leader: LeaderId) -> bool {
        leader.node_id == me
            && self
                .state
                .vote
                .is_some_and(|vote| vote.committed && vote.leader_id == leader)
    }

    /// After a restart: gives up the leadership of `me`, which then was only a candidate in that term. Says
    /// whether there was one.
    pub(super) fn resign(&mut self, me: u64) -> bool {
        match &mut self.state.vote {
            Some(vote) if vote.leader_id.node_id == me => std::mem::take(&mut vote.committed),
            _ => false,
        }
    }

    /// The highest index whose removal leaves at least `entries_min` entries or `bytes_min` bytes.
    pub(super) fn purgeable(&self, entries_min: u64, bytes_min: u64) -> Option<u64> {
        let mut kept = (0, 0);
        for (back, slot) in self.slots.iter().rev().enumerate() {
            kept = (kept.0 + 1, kept.1 + u64::from(slot.bytes));
            if kept.0 >= entries_min || kept.1 >= bytes_min {
                return (self.end() - 1 - back as u64)
                    .checked_sub(1)
                    .filter(|index| *index >= self.first);
            }
        }
        None
    }

    /// Takes a record of a replay.
    pub(super) fn replay(&mut self, lsn: Lsn, record: Record, bytes: u32) -> FsResult<()> {
        match record {
            Record::Entry(id) => {
                // The head of the log is cut off in whole segments: what remains of it may lack the
                // truncations and purges that explain a jump. The last state says what counts.
                if !self.slots.is_empty() && id.index > self.end() {
                    self.slots.clear();
                }
                self.truncate(id.index);
                if self.slots.is_empty() {
                    self.first = id.index;
                }
                self.push(id, lsn, bytes)?;
            }
            Record::Vote(vote) => self.state.vote = Some(vote),
            Record::Committed(id) => self.state.committed = Some(id),
            Record::Truncate { since } => self.truncate(since),
            Record::State(state) => {
                if let Some(purged) = state.purged {
                    self.purge(purged);
                }
                self.state = state;
            }
        }
        Ok(())
    }

    /// Ends a replay: what was purged stays so, and nothing may be missing behind it.
    pub(super) fn check(&mut self) -> FsResult<()> {
        if let Some(purged) = self.state.purged {
            self.purge(purged);
            if !self.slots.is_empty() && self.first != purged.index + 1 {
                return Err(FsError::new(
                    Code::Io,
                    format!(
                        "Raft log lacks entries {} to {}",
                        purged.index + 1,
                        self.first - 1
                    ),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::types::Vote;
    use super::*;

    fn id(index: u64) -> LogId {
        LogId {
            leader_id: LeaderId {
                term: 1,
                node_id: 1,
            },
            index,
        }
    }

    fn filled(range: std::ops::Range<u64>) -> LogIndex {
        let mut index = LogIndex::default();
        for at in range {
            index.push(id(at), Lsn(at * 10), 100).unwrap();
            let payload = openraft::EntryPayload::Blank;
            index.remember(
                Entry {
                    log_id: id(at),
                    payload,
                },
                100,
            );
        }
        index
    }

    #[test]
    fn truncation_and_purge_move_both_ends_and_the_cache() {
        let mut index = filled(5..20);
        index.truncate(18);
        assert_eq!(index.last(), Some(id(17)));
        assert!(index.cached(18).is_none());
        assert_eq!(index.cached(17).unwrap().log_id, id(17));
        index.purge(id(9));
        assert_eq!(index.clamp(0, 100), 10..18);
        assert!(index.cached(9).is_none());
        assert_eq!(index.cached(10).unwrap().log_id, id(10));
        assert_eq!(index.first_lsn(), Some(Lsn(100)));
        index.purge(id(30));
        assert_eq!((index.last(), index.first_lsn()), (Some(id(30)), None));
        assert!(index.push(id(31), Lsn(1), 1).is_ok());
        assert!(index.push(id(33), Lsn(2), 1).is_err());
    }

    #[test]
    fn a_purge_up_to_an_entry_of_another_leader_leaves_nothing() {
        let other = |index| LogId {
            leader_id: LeaderId {
                term: 2,
                node_id: 3,
            },
            index,
        };
        let mut index = filled(5..20);
        assert!(!index.is_replaced_by(id(12)) && index.is_replaced_by(id(20)));
        assert!(index.is_replaced_by(other(12)));
        index.purge(other(12));
        assert_eq!((index.last(), index.first_lsn()), (Some(other(12)), None));
        assert!(!index.is_replaced_by(other(12)));
        index.push(other(13), Lsn(1), 1).unwrap();
    }

    #[test]
    fn positions_are_known_as_far_as_there_are_entries() {
        let mut index = filled(5..20);
        assert_eq!(index.lsn_upto(7), Some(Lsn(70)));
        assert_eq!(index.lsn_upto(99), Some(Lsn(190)));
        assert_eq!(index.lsn_upto(4), None);
        index.purge(id(19));
        assert_eq!(index.lsn_upto(19), None);
        assert_eq!(LogIndex::default().lsn_upto(3), None);
    }

    #[test]
    fn a_restarted_leader_leads_no_more() {
        let mut index = filled(5..6);
        let leader = id(5).leader_id;
        index.state.vote = Some(Vote::new_committed(1, 1));
        assert!(index.leads(1, leader) && !index.leads(2, leader));
        assert!(!index.resign(2) && index.leads(1, leader));
        assert!(index.resign(1) && !index.leads(1, leader));
        assert_eq!(index.state.vote, Some(Vote::new(1, 1)));
    }

    #[test]
    fn what_may_be_purged_leaves_enough_entries_or_bytes() {
        let index = filled(0..100);
        assert_eq!(index.purgeable(10, u64::MAX), Some(89));
        assert_eq!(index.purgeable(u64::MAX, 500), Some(94));
        assert_eq!(index.purgeable(100, u64::MAX), None);
        assert_eq!(index.purgeable(1000, u64::MAX), None);
    }

    #[test]
    fn a_replay_ends_where_the_writer_was() {
        let mut index = LogIndex::default();
        for at in 0..10 {
            index.replay(Lsn(at), Record::Entry(id(at)), 1).unwrap();
        }
        index
            .replay(Lsn(20), Record::Truncate { since: 7 }, 1)
            .unwrap();
        index.replay(Lsn(21), Record::Entry(id(7)), 1).unwrap();
        let state = State {
            purged: Some(id(3)),
            ..State::default()
        };
        index.replay(Lsn(22), Record::State(state), 1).unwrap();
        index.check().unwrap();
        assert_eq!(index.clamp(0, 99), 4..8);
        assert_eq!(index.slot(7).lsn, Lsn(21));
    }
}
