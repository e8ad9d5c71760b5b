//! Disjoint byte ranges of a file, each with the number of the oldest write in it.
//!
//! What a write-behind has to send, and how a flush knows that all it was asked for is gone: it waits for the numbers
//! up to that moment, whatever is written later.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of bytes. Ranges that touch are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Intervals {
    /// End and number by start.
    ranges: BTreeMap<u64, (u64, u64)>,
    bytes: u64,
}

impl Intervals {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Bytes in the set.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Ranges in the set.
    pub(crate) fn count(&self) -> usize {
        self.ranges.len()
    }

    /// Adds a range. Where it touches others, the lowest number counts for all of it.
    pub(crate) fn insert(&mut self, range: Range<u64>, number: u64) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end, mut oldest) = (range.start, range.end, number);
        while let Some((&other, &(other_end, other_number))) = self.ranges.range(..=end).next_back()
            && other_end >= start
        {
            self.ranges.remove(&other);
            self.bytes -= other_end - other;
            (start, end) = (start.min(other), end.max(other_end));
            oldest = oldest.min(other_number);
        }
        self.put(start..end, oldest);
    }

    /// Takes a range out.
    pub(crate) fn remove(&mut self, range: Range<u64>) {
        while let Some((&start, &(end, number))) = self.ranges.range(..range.end).next_back()
            && end > range.start
        {
            self.ranges.remove(&start);
            self.bytes -= end - start;
            self.put(start..range.start.max(start), number);
            self.put(range.end.min(end)..end, number);
        }
    }

    fn put(&mut self, range: Range<u64>, number: u64) {
        if !range.is_empty() {
            self.bytes += range.end - range.start;
            self.ranges.insert(range.start, (range.end, number));
        }
    }

    /// The ranges with their numbers, from the one on that begins at `from` or contains it.
    pub(crate) fn since(&self, from: u64) -> impl Iterator<Item = (Range<u64>, u64)> {
        let around = self.ranges.range(..from).next_back();
        let first = around.filter(|(_, (end, _))| *end > from);
        let first = first.map_or(from, |(start, _)| *start);
        let ranges = self.ranges.range(first..);
        ranges.map(|(start, (end, number))| (*start..*end, *number))
    }

    /// What is in the set of a range.
    pub(crate) fn within(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        self.since(range.start)
            .take_while(|(part, _)| part.start < range.end)
            .map(|(part, _)| part.start.max(range.start)..part.end.min(range.end))
            .collect()
    }
}

/// What is left of `range` without `taken`, which is in order and does not overlap itself.
pub(crate) fn without<'a>(
    range: &Range<u64>,
    taken: impl IntoIterator<Item = &'a Range<u64>>,
) -> Vec<Range<u64>> {
    let (mut left, mut at) = (Vec::new(), range.start);
    for part in taken {
        if part.start > at {
            left.push(at..part.start.min(range.end));
        }
        at = at.max(part.end);
        if at >= range.end {
            return left;
        }
    }
    left.push(at..range.end);
    left.retain(|part| !part.is_empty());
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::testing::Random;

    #[test]
    fn touching_ranges_become_one_with_the_oldest_number() {
        let mut set = Intervals::default();
        set.insert(10..20, 5);
        set.insert(30..40, 3);
        set.insert(20..30, 9);
        let all: Vec<_> = set.since(15).collect();
        assert_eq!((all, set.bytes()), (vec![(10..40, 3)], 30));
        set.remove(15..35);
        let all: Vec<_> = set.since(0).collect();
        assert_eq!(all, [(10..15, 3), (35..40, 3)]);
        assert_eq!(set.within(&(14..36)), [14..15, 35..36]);
        assert_eq!(
            without(&(0..50), &[10..15, 35..40]),
            [0..10, 15..35, 40..50]
        );
    }

    #[test]
    fn random_changes_agree_with_a_set_of_bytes() {
        let mut random = Random(7);
        for _ in 0..50 {
            let (mut set, mut model) = (Intervals::default(), [false; 200]);
            for number in 0..60 {
                let start = random.below(190);
                let range = start..start + random.below(200 - start) + 1;
                let is_insert = random.below(3) > 0;
                if is_insert {
                    set.insert(range.clone(), number);
                } else {
                    set.remove(range.clone());
                }
                model[range.start as usize..range.end as usize].fill(is_insert);
                let mut shown = [false; 200];
                for (part, _) in set.since(0) {
                    shown[part.start as usize..part.end as usize].fill(true);
                }
                assert_eq!(shown, model);
                assert_eq!(
                    set.bytes(),
                    model.iter().filter(|byte| **byte).count() as u64
                );
                let inside: u64 = set.within(&range).iter().map(|r| r.end - r.start).sum();
                let wanted = &model[range.start as usize..range.end as usize];
                assert_eq!(inside, wanted.iter().filter(|byte| **byte).count() as u64);
            }
        }
    }
}
