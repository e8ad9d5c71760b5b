//! Recognizes sequential reads of a file, and says what to read ahead.
//!
//! A few streams are followed per file, so that several readers of one file do not hide each other. A stream's window
//! doubles as long as it is used, so what is fetched in vain stays in proportion to what was read.

use std::ops::Range;

/// Bytes that are read ahead of a reader that may be sequential.
const WINDOW_MIN: u64 = 128 << 10;
/// Bytes that are read ahead of one that has long been.
pub(crate) const WINDOW_MAX: u64 = 4 << 20;
/// Streams that are followed in one file.
const STREAMS_MAX: usize = 4;
/// How far requests of one reader may overtake each other: the kernel cuts long ones in parts.
const DISORDER_MAX: u64 = 256 << 10;

/// The readers of one file.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    /// The latest last.
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    /// Where the next read is expected.
    next: u64,
    /// Up to where was asked ahead.
    until: u64,
    window: u64,
}

impl Stream {
    fn is_continued_by(&self, range: &Range<u64>) -> bool {
        let is_proven = self.window > WINDOW_MIN;
        let slack = if is_proven { DISORDER_MAX } else { 0 };
        range.start <= self.next.saturating_add(slack)
            && range.start.saturating_add(slack) >= self.next
    }
}

impl Streams {
    /// After a read of `range` of a file of this size: what to fetch now, with a window of at most `most` bytes.
    pub(crate) fn advance(
        &mut self,
        range: &Range<u64>,
        size: u64,
        most: u64,
    ) -> Option<Range<u64>> {
        let known = self
            .streams
            .iter()
            .rposition(|stream| stream.is_continued_by(range));
        let mut stream = match known {
            Some(at) => self.streams.remove(at),
            // Who begins at the beginning often goes on.
            None if range.start == 0 => Stream {
                next: 0,
                until: 0,
                window: WINDOW_MIN / 2,
            },
            None => {
                self.follow(Stream {
                    next: range.end,
                    until: range.end,
                    window: 0,
                });
                return None;
            }
        };
        stream.next = stream.next.max(range.end);
        stream.until = stream.until.max(stream.next);
        let left = stream.until - stream.next;
        let mut ahead = None;
        if left <= stream.window / 2 {
            stream.window = (stream.window * 2).clamp(WINDOW_MIN, WINDOW_MAX).min(most);
            let until = stream.next.saturating_add(stream.window).min(size);
            if stream.until < until && stream.window > 0 {
                ahead = Some(stream.until..until);
                stream.until = until;
            }
        }
        self.follow(stream);
        ahead
    }

    fn follow(&mut self, stream: Stream) {
        if self.streams.len() == STREAMS_MAX {
            self.streams.remove(0);
        }
        self.streams.push(stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;

    #[test]
    fn the_window_grows_with_a_sequential_reader_and_covers_all_once() {
        let mut streams = Streams::default();
        let (mut until, mut largest) = (0, 0);
        for at in (0..64 << 20).step_by(128 << 10) {
            let range = at..at + (128 << 10);
            if let Some(ahead) = streams.advance(&range, SIZE, WINDOW_MAX) {
                assert_eq!(ahead.start, until.max(range.end));
                largest = largest.max(ahead.end - range.end);
                until = ahead.end;
            }
            assert!(until >= range.end);
        }
        assert_eq!(largest, WINDOW_MAX);
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let mut streams = Streams::default();
        let mut random = crate::pages::testing::Random(5);
        for _ in 0..1000 {
            let at = 4096 * (1 + random.below(200_000));
            let ahead = streams.advance(&(at..at + 4096), SIZE, WINDOW_MAX);
            assert_eq!(ahead, None, "{at}");
        }
    }

    #[test]
    fn two_readers_and_swapped_requests_are_streams_all_the_same() {
        let mut streams = Streams::default();
        let step = 128 << 10;
        let mut fetched = 0;
        for round in 0..100 {
            for base in [SIZE / 4, SIZE / 2] {
                for part in [1, 0] {
                    let part = if round < 8 { 1 - part } else { part };
                    let at = base + (2 * round + part) * step;
                    let ahead = streams.advance(&(at..at + step), SIZE, WINDOW_MAX);
                    fetched += ahead.map_or(0, |ahead| ahead.end - ahead.start);
                }
            }
        }
        assert!(fetched >= 2 * 195 * step, "{fetched}");
    }

    #[test]
    fn nothing_is_fetched_past_the_end_or_without_room() {
        let mut streams = Streams::default();
        assert_eq!(
            streams.advance(&(0..100), 1000, WINDOW_MAX),
            Some(100..1000)
        );
        assert_eq!(streams.advance(&(100..1000), 1000, WINDOW_MAX), None);
        assert_eq!(Streams::default().advance(&(0..100), SIZE, 0), None);
    }
}
