//! Free space of the extent files as ranges. In memory only: it is what the index leaves over.
//!
//! Large requests take the smallest range that fits, so that long ranges stay long. Small ones
//! continue where the chunk's previous block lies; if they cannot, they start on a 256 KiB boundary of
//! the longest range, which leaves room for the chunk's next small writes. Otherwise chunks that grow
//! side by side would shred each other.

use super::block_map::{Place, Run};
use std::collections::{BTreeMap, BTreeSet};

/// Blocks from which a request is large; also the boundary on which small ones start.
const LARGE_BLOCKS: u64 = 64;

/// Shortest range that is worth using before the store grows.
const PIECE_BLOCKS_MIN: u64 = 16;

/// Ranges of free blocks. Adjacent ranges are always one.
#[derive(Debug, Default)]
pub(super) struct FreeMap {
    by_start: BTreeMap<Place, u64>,
    by_count: BTreeSet<(u64, Place)>,
    total: u64,
}

impl FreeMap {
    /// Blocks that are free.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Whether `count` blocks can be had without falling to shreds.
    pub(super) fn serves(&self, count: u64) -> bool {
        let longest = self.by_count.last().map_or(0, |&(count, _)| count);
        self.total >= count && (longest >= count || longest >= PIECE_BLOCKS_MIN)
    }

    /// Takes `count` blocks, at `hint` if they are free. `None` if there are not enough.
    pub(super) fn take(&mut self, count: u32, hint: Option<Place>) -> Option<Vec<Run>> {
        if self.total < u64::from(count) {
            return None;
        }
        let mut runs = Vec::new();
        let mut missing = u64::from(count);
        while missing > 0 {
            let (start, taken) = self.choose(missing, hint)?;
            self.cut(start, taken);
            runs.push(Run {
                place: start,
                count: taken as u32,
            });
            missing -= taken;
        }
        Some(runs)
    }

    /// Gives blocks back.
    ///
    /// # Panics
    /// If one of them is free already: two chunks would come to share it.
    pub(super) fn give(&mut self, run: Run) {
        let (mut start, mut end) = (run.place, run.place + u64::from(run.count));
        self.total += end - start;
        if let Some((&before, &count)) = self.by_start.range(..end).next_back() {
            assert!(before + count <= start, "block {start} is freed twice");
            if before + count == start {
                self.forget(before, count);
                start = before;
            }
        }
        if let Some(&count) = self.by_start.get(&end) {
            self.forget(end, count);
            end += count;
        }
        self.remember(start, end - start);
    }

    /// Marks blocks as used; whether all of them were free.
    pub(super) fn mark_used(&mut self, run: Run) -> bool {
        let end = run.place + u64::from(run.count);
        let found = self.by_start.range(..=run.place).next_back();
        let free = found.is_some_and(|(&start, &count)| start + count >= end);
        if free {
            self.cut(run.place, u64::from(run.count));
        }
        free
    }

    /// Where to take up to `count` blocks, and how many.
    fn choose(&self, count: u64, hint: Option<Place>) -> Option<(Place, u64)> {
        if let Some(hint) = hint
            && let Some((&start, &free)) = self.by_start.range(..=hint).next_back()
            && start + free >= hint + count
        {
            return Some((hint, count));
        }
        if count >= LARGE_BLOCKS
            && let Some(&(_, start)) = self.by_count.range((count, 0)..).next()
        {
            return Some((start, count));
        }
        let &(free, start) = self.by_count.last()?;
        if free < count + LARGE_BLOCKS {
            return Some((start, free.min(count)));
        }
        Some((start.next_multiple_of(LARGE_BLOCKS), count))
    }

    /// Takes blocks out of the range that holds all of them.
    fn cut(&mut self, start: Place, count: u64) {
        let (&before, &free) = self
            .by_start
            .range(..=start)
            .next_back()
            .expect("the range was found to be free");
        self.forget(before, free);
        self.total -= count;
        if before < start {
            self.remember(before, start - before);
        }
        if start + count < before + free {
            self.remember(start + count, before + free - start - count);
        }
    }

    fn remember(&mut self, start: Place, count: u64) {
        self.by_start.insert(start, count);
        self.by_count.insert((count, start));
    }

    fn forget(&mut self, start: Place, count: u64) {
        self.by_start.remove(&start);
        self.by_count.remove(&(count, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::rng::SplitMix64;

    fn fresh(count: u32) -> FreeMap {
        let mut map = FreeMap::default();
        map.give(Run { place: 0, count });
        map
    }

    #[test]
    fn small_requests_leave_room_and_use_it() {
        let mut map = fresh(4096);
        let first = map.take(4, None).unwrap()[0];
        let second = map.take(4, None).unwrap()[0];
        assert!(second.place >= first.place + LARGE_BLOCKS);
        let next = map.take(4, Some(first.place + 4)).unwrap()[0];
        assert_eq!(next.place, first.place + 4);
    }

    #[test]
    fn no_block_is_given_out_twice_and_all_come_back() {
        let mut rng = SplitMix64::new(5);
        let mut map = fresh(1000);
        let mut used = [false; 1000];
        let mut held: Vec<Run> = Vec::new();
        for _ in 0..5000 {
            if rng.percent(55) {
                let count = 1 + rng.below(100) as u32;
                let free = used.iter().filter(|used| !**used).count();
                let hint = rng.percent(50).then(|| rng.below(1000));
                let Some(runs) = map.take(count, hint) else {
                    assert!(free < count as usize);
                    continue;
                };
                for run in runs {
                    for place in run.place..run.place + u64::from(run.count) {
                        assert!(!std::mem::replace(&mut used[place as usize], true));
                    }
                    held.push(run);
                }
            } else if !held.is_empty() {
                let run = held.swap_remove(rng.below(held.len() as u64) as usize);
                used[run.place as usize..][..run.count as usize].fill(false);
                map.give(run);
            }
            assert_eq!(
                map.total() as usize,
                used.iter().filter(|used| !**used).count()
            );
        }
        held.into_iter().for_each(|run| map.give(run));
        assert_eq!(map.by_start.len(), 1);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_found() {
        let mut map = fresh(10);
        map.give(Run { place: 3, count: 1 });
    }
}
