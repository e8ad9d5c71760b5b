//! Reading ahead: what a sequential reader will ask for next is on its way from the disk before it does.

use super::block_map::Block;
use super::chunk::BLOCKS_MAX;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Shortest read that is taken for part of a stream, in blocks.
const STREAM_BLOCKS_MIN: Block = 16;
/// How far the disk is ahead of the reader, in blocks.
const AHEAD_BLOCKS: Block = 512;
/// Requests of one reader that are under way together overtake each other by less, in blocks.
const NEAR_BLOCKS: Block = 256;

/// What is known of the reader of a chunk: up to which block it has come, and up to which one the disk was
/// asked. Several readers at different places get in each other's way, which costs them the speed only.
#[derive(Debug, Default)]
pub(super) struct ReadAhead(AtomicU64);

impl ReadAhead {
    /// Takes note of a read. Returns the blocks that the disk should begin with now.
    pub(super) fn note(&self, read: &Range<Block>) -> Range<Block> {
        if read.len() < STREAM_BLOCKS_MIN as usize {
            return 0..0;
        }
        let known = self.0.load(Ordering::Relaxed);
        let (mut next, mut asked) = ((known >> 32) as Block, known as Block);
        let mut wanted = 0..0;
        if read.start.abs_diff(next) > NEAR_BLOCKS {
            (next, asked) = (read.end, read.end);
        } else {
            next = next.max(read.end);
            if asked < next + AHEAD_BLOCKS / 2 {
                wanted = asked.max(next)..(next + AHEAD_BLOCKS).min(BLOCKS_MAX);
                asked = wanted.end;
            }
        }
        // A lost update of another thread costs a hint.
        self.0
            .store(u64::from(next) << 32 | u64::from(asked), Ordering::Relaxed);
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_kept_ahead_of_although_its_requests_overtake_each_other() {
        let ahead = ReadAhead::default();
        assert_eq!(ahead.note(&(64..128)), 128..640);
        assert_eq!(ahead.note(&(0..64)), 0..0);
        assert_eq!(ahead.note(&(128..384)), 0..0);
        assert_eq!(ahead.note(&(384..448)), 640..960);
        let end = BLOCKS_MAX - 64;
        assert_eq!(ahead.note(&(end - 64..end)), 0..0);
        assert_eq!(ahead.note(&(end..BLOCKS_MAX)), BLOCKS_MAX..BLOCKS_MAX);
    }

    #[test]
    fn reads_here_and_there_and_small_ones_are_no_stream() {
        let ahead = ReadAhead::default();
        for start in [5000, 1000, 9000, 2000] {
            assert!(ahead.note(&(start..start + 64)).is_empty());
        }
        for start in 0..100 {
            assert!(ahead.note(&(start..start + 1)).is_empty());
        }
    }
}
