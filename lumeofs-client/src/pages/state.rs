//! The cached data of one file: what is there, what is being fetched, and what the primaries do not have yet. Pure: no
//! lock, clock or I/O, so that tests can drive it step by step.
//!
//! Bytes are *clean* unless they are dirty or claimed. A write makes them dirty; a claim takes dirty ranges to send them,
//! and what is written again meanwhile is dirty again. Ranges of two claims never overlap (rule D3). A fetch only
//! fills in what is not there, and nothing at all if something in its way was written or dropped since it began.

pub(crate) mod sending;

use crate::pages::intervals::{Intervals, without};
use crate::pages::local::Local;
use crate::pages::slot::{SLOT_BYTES, Slot};
use crate::pages::state::sending::Claim;
use lumeofs_base::Timestamp;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

/// What a file costs that has any data.
const FILE_OVERHEAD_BYTES: usize = 1024;
/// What one range of dirty bytes costs to remember.
const RANGE_OVERHEAD_BYTES: usize = 64;

/// The cached data of one file.
#[derive(Debug, Default)]
pub(crate) struct State {
    slots: BTreeMap<u32, Slot>,
    dirty: Intervals,
    claims: Vec<Claim>,
    /// Past the published size: what the primaries have, in this or an older version.
    sent: Intervals,
    fills: Vec<Fill>,
    next_number: u64,
    /// Flushes that have begun: the number of what is dirty from here on.
    flushes: u64,
    /// Slots that no clock knows yet.
    new_slots: Vec<(u32, u64)>,
    memory: usize,
    pub(crate) ahead: Ahead,
    /// Size and times under the lease; `None` until somebody said them.
    pub(crate) local: Option<Local>,
    /// How often all data was dropped.
    pub(crate) drops: u64,
    /// It is in the queue of files that have much to send, or in that of those that wait for their time.
    pub(crate) is_ready: bool,
    pub(crate) is_aging: bool,
    /// Since when nothing of it could be sent or published, in spite of attempts.
    pub(crate) stuck_since: Option<Duration>,
}

/// Bytes that were read ahead: in all, and those that were dropped before anybody asked for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub(crate) fetched: u64,
    pub(crate) wasted: u64,
}

/// What a file contributes to what all files hold together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Bytes of memory.
    pub(crate) memory: usize,
    /// Bytes that the primaries do not have.
    pub(crate) dirty: u64,
    pub(crate) slots: usize,
    pub(crate) ahead: Ahead,
}

#[derive(Debug)]
struct Fill {
    id: u64,
    ranges: Vec<Range<u64>>,
    is_ahead: bool,
    spoiled: bool,
}

/// What a read found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Read {
    /// What is not there, in order.
    pub(crate) missing: Vec<Range<u64>>,
    /// Bytes that had been read ahead and are of use now.
    pub(crate) ahead: u64,
}

/// What became of a slot that was to be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Evicted {
    /// There is nothing left of it.
    Gone,
    /// It stays, or part of it does.
    Kept,
}

fn slot_range(index: u32) -> Range<u64> {
    let start = u64::from(index) * SLOT_BYTES;
    start..start + SLOT_BYTES
}

/// A range in the slots that it touches: slot, and the range within it.
fn split(range: &Range<u64>) -> impl Iterator<Item = (u32, Range<usize>)> + use<> {
    let range = range.clone();
    let slots = match range.is_empty() {
        true => 0..0,
        false => range.start / SLOT_BYTES..range.end.div_ceil(SLOT_BYTES),
    };
    slots.map(move |index| {
        let slot = slot_range(index as u32);
        let from = range.start.max(slot.start) - slot.start;
        let until = range.end.min(slot.end) - slot.start;
        (index as u32, from as usize..until as usize)
    })
}

fn touch(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl State {
    pub(crate) fn load(&self) -> Load {
        let claimed = self.claims.iter().flat_map(|claim| &claim.parts);
        let claimed: u64 = claimed.map(|part| part.end - part.start).sum();
        Load {
            memory: self.memory + self.overhead(),
            dirty: self.dirty.bytes() + claimed,
            slots: self.slots.len(),
            ahead: self.ahead,
        }
    }

    fn overhead(&self) -> usize {
        let file = if self.slots.is_empty() {
            0
        } else {
            FILE_OVERHEAD_BYTES
        };
        file + (self.dirty.count() + self.sent.count()) * RANGE_OVERHEAD_BYTES
    }

    /// Slots that came into being since this was asked last, with their tags.
    pub(crate) fn take_new_slots(&mut self) -> Vec<(u32, u64)> {
        std::mem::take(&mut self.new_slots)
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Changes one slot; one that is empty afterwards goes.
    fn in_slot<T>(&mut self, index: u32, act: impl FnOnce(&mut Slot) -> T) -> T {
        let tag = self.next_number + 1;
        let slot = self.slots.entry(index).or_insert_with(|| {
            self.next_number += 1;
            self.new_slots.push((index, tag));
            self.memory += Slot::new(tag).memory();
            Slot::new(tag)
        });
        let before = slot.memory();
        let result = act(slot);
        self.memory = self.memory - before + slot.memory();
        if slot.is_empty() {
            self.ahead.wasted += u64::from(slot.unused());
            self.memory -= slot.memory();
            self.slots.remove(&index);
        }
        result
    }

    /// Copies what is there of `range`, whose first byte goes to the first of `out`.
    pub(crate) fn read(&self, range: &Range<u64>, out: &mut [u8]) -> Read {
        let slots = split(range).filter_map(|(index, _)| self.slots.get(&index));
        let ahead = slots.map(|slot| u64::from(slot.note_use())).sum();
        Read {
            missing: self.copy(range, out),
            ahead,
        }
    }

    /// As [`State::read`], but not for a reader. Says what is missing.
    fn copy(&self, range: &Range<u64>, out: &mut [u8]) -> Vec<Range<u64>> {
        let mut missing: Vec<Range<u64>> = Vec::new();
        for (index, within) in split(range) {
            let base = slot_range(index).start;
            let at = (base + within.start as u64 - range.start) as usize;
            let gaps = match self.slots.get(&index) {
                Some(slot) => slot.read(within.start, &mut out[at..at + within.len()]),
                None => vec![within],
            };
            for gap in gaps {
                let gap = base + gap.start as u64..base + gap.end as u64;
                match missing.last_mut() {
                    Some(last) if last.end == gap.start => last.end = gap.end,
                    _ => missing.push(gap),
                }
            }
        }
        missing
    }

    /// Whether all of a range is there.
    pub(crate) fn has(&self, range: &Range<u64>) -> bool {
        self.gaps(range).is_empty()
    }

    fn gaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut gaps: Vec<Range<u64>> = Vec::new();
        for (index, within) in split(range) {
            let base = slot_range(index).start;
            let missing = match self.slots.get(&index) {
                Some(slot) => slot.gaps(within),
                None => vec![within],
            };
            gaps.extend(
                missing
                    .iter()
                    .map(|gap| base + gap.start as u64..base + gap.end as u64),
            );
        }
        gaps
    }

    /// Bytes are written by this client, where the size is known.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], now: Timestamp, clear_suid: bool) {
        let range = offset..offset + data.len() as u64;
        self.spoil(&range);
        self.put(&range, data);
        self.dirty.insert(range.clone(), self.flushes);
        if let Some(local) = &mut self.local {
            local.wrote(range.end, now, clear_suid);
        }
    }

    fn put(&mut self, range: &Range<u64>, data: &[u8]) {
        for (index, within) in split(range) {
            let at = (slot_range(index).start + within.start as u64 - range.start) as usize;
            let bytes = &data[at..at + within.len()];
            self.in_slot(index, |slot| slot.write(within.start, bytes));
        }
    }

    fn spoil(&mut self, range: &Range<u64>) {
        for fill in &mut self.fills {
            fill.spoiled |= fill.ranges.iter().any(|part| touch(part, range));
        }
    }

    /// Announces a fetch of what is missing in `ranges` and not under way yet: which ranges, and the number of the fetch.
    /// No range if others fetch all of it.
    pub(crate) fn begin_fill(
        &mut self,
        ranges: &[Range<u64>],
        is_ahead: bool,
    ) -> (u64, Vec<Range<u64>>) {
        let under_way = self.fills.iter().filter(|fill| !fill.spoiled);
        let mut under_way: Vec<_> = under_way
            .flat_map(|fill| fill.ranges.iter().cloned())
            .collect();
        under_way.sort_unstable_by_key(|range| range.start);
        let mut mine: Vec<Range<u64>> = Vec::new();
        for gap in ranges.iter().flat_map(|range| self.gaps(range)) {
            for part in without(&gap, &under_way) {
                match mine.last_mut() {
                    Some(last) if last.end >= part.start => last.end = last.end.max(part.end),
                    _ => mine.push(part),
                }
            }
        }
        let id = self.number();
        if !mine.is_empty() {
            self.fills.push(Fill {
                id,
                ranges: mine.clone(),
                is_ahead,
                spoiled: false,
            });
        }
        (id, mine)
    }

    /// The fetch is over; `data` has the bytes of all its ranges one after the other, if it succeeded.
    pub(crate) fn end_fill(&mut self, id: u64, data: Option<&[u8]>) {
        let Some(at) = self.fills.iter().position(|fill| fill.id == id) else {
            return;
        };
        let fill = self.fills.swap_remove(at);
        let Some(data) = data.filter(|_| !fill.spoiled) else {
            return;
        };
        let mut start = 0;
        for range in &fill.ranges {
            for (index, within) in split(range) {
                let bytes = &data[start..start + within.len()];
                start += within.len();
                let filled = self.in_slot(index, |slot| {
                    let filled = slot.fill(within.start, bytes);
                    if fill.is_ahead {
                        slot.note_ahead(filled);
                    }
                    filled
                });
                if fill.is_ahead {
                    self.ahead.fetched += filled as u64;
                }
            }
        }
    }

    /// Drops the data of a range, dirty or not.
    pub(crate) fn drop_range(&mut self, range: Range<u64>) {
        self.spoil(&range);
        self.remove(range);
    }

    fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.dirty.remove(range.clone());
        self.sent.remove(range.clone());
        let (hit, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.claims)
            .into_iter()
            .partition(|claim| claim.parts.iter().any(|part| touch(part, &range)));
        self.claims = kept;
        for claim in hit {
            for part in claim.parts.iter().flat_map(|part| without(part, [&range])) {
                self.dirty.insert(part, claim.number);
            }
        }
        let first = (range.start / SLOT_BYTES) as u32;
        let last = u32::try_from((range.end - 1) / SLOT_BYTES).unwrap_or(u32::MAX);
        let slots: Vec<u32> = self
            .slots
            .range(first..=last)
            .map(|(index, _)| *index)
            .collect();
        for index in slots {
            let slot = slot_range(index);
            let from = range.start.max(slot.start) - slot.start;
            let until = range.end.min(slot.end) - slot.start;
            self.in_slot(index, |slot| slot.remove(from as usize..until as usize));
        }
    }

    /// Drops everything: the lease is gone, or the session.
    pub(crate) fn drop_all(&mut self) {
        self.drop_range(0..u64::MAX);
        self.local = None;
        self.stuck_since = None;
        self.drops += 1;
    }

    /// Takes the clean bytes of a slot out, unless it was read since the last time.
    pub(crate) fn evict(&mut self, index: u32, tag: u64) -> Evicted {
        let Some(slot) = self.slots.get(&index).filter(|slot| slot.tag == tag) else {
            return Evicted::Gone;
        };
        if slot.take_use() {
            return Evicted::Kept;
        }
        let range = slot_range(index);
        let mut kept = self.dirty.within(&range);
        let claimed = self.claims.iter().flat_map(|claim| &claim.parts);
        kept.extend(claimed.filter(|part| touch(part, &range)).cloned());
        // It may have to be sent once more.
        let local = self.local.as_ref();
        kept.extend(local.map(|local| local.published_size()..local.size()));
        kept.retain(|part| !part.is_empty());
        kept.sort_unstable_by_key(|part| part.start);
        let out = without(&range, &kept);
        self.in_slot(index, |slot| {
            for part in out {
                slot.remove((part.start - range.start) as usize..(part.end - range.start) as usize);
            }
        });
        match self.slots.contains_key(&index) {
            true => Evicted::Kept,
            false => Evicted::Gone,
        }
    }

    /// Whether the clock's entry still stands for something.
    pub(crate) fn has_slot(&self, index: u32, tag: u64) -> bool {
        self.slots.get(&index).is_some_and(|slot| slot.tag == tag)
    }
}
