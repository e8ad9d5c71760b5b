//! One aligned piece of a cached file: the bytes of it that are there, in as few buffers as possible.
//!
//! A buffer is as large as what it holds, so that a small file costs what it is long; one that grows at its end
//! doubles, up to the slot.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Bytes of a file that one slot covers.
pub(crate) const SLOT_BYTES: u64 = 64 << 10;
/// What a slot costs besides its bytes.
const SLOT_OVERHEAD_BYTES: usize = 64;
/// What a further run costs besides its bytes.
const RUN_OVERHEAD_BYTES: usize = 48;

/// The bytes that are there, as runs that do not touch each other, in order.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    runs: Vec<Run>,
    /// Tells this slot from an earlier one of the same place.
    pub(crate) tag: u64,
    /// It was read since the hand of the clock came by.
    used: AtomicBool,
    /// Bytes that were read ahead and that nobody has asked for yet.
    ahead: AtomicU32,
}

#[derive(Debug)]
struct Run {
    start: usize,
    data: Vec<u8>,
}

impl Run {
    fn end(&self) -> usize {
        self.start + self.data.len()
    }

    /// Appends, growing the buffer as a whole at most to the slot.
    fn extend(&mut self, bytes: &[u8]) {
        let need = self.data.len() + bytes.len();
        if need > self.data.capacity() {
            let room = (SLOT_BYTES as usize - self.start).min(self.data.capacity() * 2);
            self.data.reserve_exact(room.max(need) - self.data.len());
        }
        self.data.extend_from_slice(bytes);
    }
}

impl Slot {
    pub(crate) fn new(tag: u64) -> Self {
        Self {
            tag,
            ..Self::default()
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// What it costs.
    pub(crate) fn memory(&self) -> usize {
        let runs = self.runs.iter();
        let runs = runs.map(|run| run.data.capacity() + RUN_OVERHEAD_BYTES);
        SLOT_OVERHEAD_BYTES + runs.sum::<usize>()
    }

    /// Puts bytes in, over what is there.
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        let first = self.runs.partition_point(|run| run.end() < at);
        let until = self.runs.partition_point(|run| run.start <= end);
        let mut touched = self.runs.splice(first..until, []).peekable();
        let mut run = match touched.next_if(|run| run.start <= at) {
            Some(run) => run,
            None => Run {
                start: at,
                data: Vec::with_capacity(bytes.len()),
            },
        };
        let from = at - run.start;
        let over = bytes.len().min(run.data.len() - from);
        run.data[from..from + over].copy_from_slice(&bytes[..over]);
        run.extend(&bytes[over..]);
        for right in touched {
            if let Some(rest) = run.end().checked_sub(right.start)
                && rest < right.data.len()
            {
                run.extend(&right.data[rest..]);
            }
        }
        self.runs.insert(first, run);
    }

    /// Puts bytes in where there are none. Says how many.
    pub(crate) fn fill(&mut self, at: usize, bytes: &[u8]) -> usize {
        let gaps = self.gaps(at..at + bytes.len());
        for gap in &gaps {
            self.write(gap.start, &bytes[gap.start - at..gap.end - at]);
        }
        gaps.iter().map(Range::len).sum()
    }

    /// The parts of a range where there is nothing.
    pub(crate) fn gaps(&self, range: Range<usize>) -> Vec<Range<usize>> {
        let (mut gaps, mut at) = (Vec::new(), range.start);
        for run in &self.runs[self.runs.partition_point(|run| run.end() <= range.start)..] {
            if run.start >= range.end {
                break;
            }
            if run.start > at {
                gaps.push(at..run.start);
            }
            at = run.end();
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// Copies what is there of the range that begins at `at`, and says what is not there.
    pub(crate) fn read(&self, at: usize, out: &mut [u8]) -> Vec<Range<usize>> {
        let range = at..at + out.len();
        for run in &self.runs[self.runs.partition_point(|run| run.end() <= at)..] {
            if run.start >= range.end {
                break;
            }
            let (from, until) = (run.start.max(at), run.end().min(range.end));
            let data = &run.data[from - run.start..until - run.start];
            out[from - at..until - at].copy_from_slice(data);
        }
        self.gaps(range)
    }

    /// Takes bytes out.
    pub(crate) fn remove(&mut self, range: Range<usize>) {
        let touched = |run: &Run| run.start < range.end && run.end() > range.start;
        if !self.runs.iter().any(touched) {
            return;
        }
        let mut left = Vec::with_capacity(self.runs.len() + 1);
        for mut run in self.runs.drain(..) {
            if !touched(&run) {
                left.push(run);
                continue;
            }
            let right = (run.end() > range.end).then(|| Run {
                start: range.end,
                data: run.data[range.end - run.start..].to_vec(),
            });
            if run.start < range.start {
                run.data.truncate(range.start - run.start);
                run.data.shrink_to_fit();
                left.push(run);
            }
            left.extend(right);
        }
        self.runs = left;
    }

    /// It was read. Says how many bytes of it had been read ahead and are of use now.
    pub(crate) fn note_use(&self) -> u32 {
        self.used.store(true, Ordering::Relaxed);
        match self.ahead.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.ahead.swap(0, Ordering::Relaxed),
        }
    }

    /// Whether it was read since this was asked last.
    pub(crate) fn take_use(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    /// Bytes that came without being asked for.
    pub(crate) fn note_ahead(&self, bytes: usize) {
        self.ahead.fetch_add(bytes as u32, Ordering::Relaxed);
    }

    /// Bytes that came ahead and were of no use.
    pub(crate) fn unused(&self) -> u32 {
        self.ahead.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::testing::Random;

    #[test]
    fn random_changes_agree_with_bytes_in_a_row() {
        let mut random = Random(3);
        for _ in 0..100 {
            let (mut slot, mut model) = (Slot::new(1), [None::<u8>; 128]);
            for step in 0..60_u8 {
                let start = random.below(127) as usize;
                let end = start + 1 + random.below(127 - start as u64) as usize;
                let bytes = vec![step; end - start];
                match random.below(3) {
                    0 => {
                        slot.write(start, &bytes);
                        model[start..end].fill(Some(step));
                    }
                    1 => {
                        slot.fill(start, &bytes);
                        for byte in &mut model[start..end] {
                            byte.get_or_insert(step);
                        }
                    }
                    _ => {
                        slot.remove(start..end);
                        model[start..end].fill(None);
                    }
                }
                let mut out = [0xEE; 128];
                let missing = slot.read(0, &mut out);
                let mut shown: Vec<_> = out.iter().map(|byte| Some(*byte)).collect();
                for gap in missing {
                    shown[gap].fill(None);
                }
                assert_eq!(shown, model);
            }
            assert!(
                slot.runs
                    .windows(2)
                    .all(|pair| pair[0].end() < pair[1].start)
            );
        }
    }

    #[test]
    fn a_small_file_costs_its_length() {
        let mut slot = Slot::new(1);
        slot.write(0, &[1; 1000]);
        assert!(slot.memory() <= 1000 + 256);
        for at in (1000..SLOT_BYTES as usize).step_by(100) {
            let end = (at + 100).min(SLOT_BYTES as usize);
            slot.write(at, &[2; 100][..end - at]);
        }
        assert!(slot.memory() <= SLOT_BYTES as usize + 256);
    }
}
