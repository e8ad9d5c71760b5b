//! Disjoint byte ranges of a file, each with a number: when it was written, counted in flushes.
//!
//! What a write-behind has to send, and how a flush knows that all it was asked for is gone: it waits for the numbers
//! up to that moment, whatever is written later beside it or over what it has sent.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of bytes. Ranges of one number that touch are one.
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

    /// Adds a range. What is there already keeps its number if that is lower.
    pub(crate) fn insert(&mut self, range: Range<u64>, number: u64) {
        let there = self.since(range.start);
        let there = there.take_while(|(part, _)| part.start < range.end);
        let older: Vec<_> = there.filter(|(_, of)| *of < number).collect();
        self.remove(range.clone());
        let mut at = range.start;
        for (part, of) in older {
            let part = part.start.max(range.start)..part.end.min(range.end);
            self.put(at..part.start, number);
            at = part.end;
            self.put(part, of);
        }
        self.put(at..range.end, number);
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

    /// Adds a range of which nothing is there.
    fn put(&mut self, range: Range<u64>, number: u64) {
        if range.is_empty() {
            return;
        }
        self.bytes += range.end - range.start;
        let (mut start, mut end) = (range.start, range.end);
        if let Some((&before, &(until, of))) = self.ranges.range(..start).next_back()
            && (until, of) == (start, number)
        {
            start = before;
        }
        if let Some(&(until, of)) = self.ranges.get(&end)
            && of == number
        {
            self.ranges.remove(&end);
            end = until;
        }
        self.ranges.insert(start, (end, number));
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
    fn touching_ranges_of_one_number_are_one_and_the_older_number_stays() {
        let mut set = Intervals::default();
        set.insert(10..20, 3);
        set.insert(30..40, 3);
        set.insert(20..30, 3);
        let all: Vec<_> = set.since(15).collect();
        assert_eq!((all, set.bytes()), (vec![(10..40, 3)], 30));
        set.remove(15..35);
        set.insert(5..38, 9);
        let all: Vec<_> = set.since(0).collect();
        let want = [(5..10, 9), (10..15, 3), (15..35, 9), (35..40, 3)];
        assert_eq!((&all[..], set.bytes()), (&want[..], 35));
        assert_eq!(set.within(&(14..36)), [14..15, 15..35, 35..36]);
        set.insert(0..40, 1);
        assert_eq!(set.since(0).collect::<Vec<_>>(), [(0..40, 1)]);
        assert_eq!(
            without(&(0..50), &[10..15, 35..40]),
            [0..10, 15..35, 40..50]
        );
    }

    #[test]
    fn random_changes_agree_with_a_set_of_bytes() {
        let mut random = Random(7);
        for _ in 0..50 {
            let (mut set, mut model) = (Intervals::default(), [None; 200]);
            for _ in 0..60 {
                let number = random.below(5);
                let start = random.below(190);
                let range = start..start + random.below(200 - start) + 1;
                let is_insert = random.below(3) > 0;
                if is_insert {
                    set.insert(range.clone(), number);
                } else {
                    set.remove(range.clone());
                }
                for byte in &mut model[range.start as usize..range.end as usize] {
                    *byte = is_insert.then(|| byte.map_or(number, |old: u64| old.min(number)));
                }
                let mut shown = [None; 200];
                let all: Vec<_> = set.since(0).collect();
                for (part, of) in &all {
                    shown[part.start as usize..part.end as usize].fill(Some(*of));
                }
                assert_eq!(shown, model);
                let is_one = |pair: &[(Range<u64>, u64)]| {
                    pair[0].0.end == pair[1].0.start && pair[0].1 == pair[1].1
                };
                assert!(!all.windows(2).any(is_one));
                assert_eq!(set.bytes(), model.iter().flatten().count() as u64);
                let inside: u64 = set.within(&range).iter().map(|r| r.end - r.start).sum();
                let wanted = &model[range.start as usize..range.end as usize];
                assert_eq!(inside, wanted.iter().flatten().count() as u64);
            }
        }
    }
}
