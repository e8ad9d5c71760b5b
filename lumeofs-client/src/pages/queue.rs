//! Which file's changes are sent next: those that have gathered enough for large requests first, then those whose time
//! has come. Each file is at most once in each queue.

use std::collections::VecDeque;
use std::time::Duration;

/// Age at which changes are sent.
pub(crate) const AGE_MAX: Duration = Duration::from_secs(1);

/// How long nobody looks where there is nothing; whoever brings something wakes somebody.
const IDLE: Duration = Duration::from_secs(60);

/// What there is to do for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work<F> {
    /// Sends one batch.
    Batch(F),
    /// Sends everything and publishes it.
    Settle(F),
    /// Nothing for so long.
    Wait(Duration),
}

/// Files with changes.
#[derive(Debug)]
pub(crate) struct Queue<F> {
    ready: VecDeque<F>,
    /// In the order of their time.
    aging: VecDeque<(Duration, F)>,
}

impl<F> Default for Queue<F> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            aging: VecDeque::new(),
        }
    }
}

impl<F> Queue<F> {
    /// It has much to send.
    pub(crate) fn push_ready(&mut self, file: F) {
        self.ready.push_back(file);
    }

    /// It has been changed now. Says whether nothing else waits for its time.
    pub(crate) fn push_aging(&mut self, file: F, now: Duration) -> bool {
        let is_first = self.aging.is_empty();
        self.aging.push_back((now + AGE_MAX, file));
        is_first
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.aging.is_empty()
    }

    /// What is to be done now. `is_pressed`: room is wanted, so nothing waits for its time.
    pub(crate) fn next(&mut self, now: Duration, is_pressed: bool) -> Work<F> {
        if let Some(file) = self.ready.pop_front() {
            return Work::Batch(file);
        }
        match self.aging.front() {
            Some((due, _)) if !is_pressed && *due > now => Work::Wait(*due - now),
            Some(_) => {
                let (_, file) = self.aging.pop_front().expect("it has a front");
                Work::Settle(file)
            }
            None => Work::Wait(IDLE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_go_first_and_others_when_their_time_has_come_or_room_is_wanted() {
        let mut queue = Queue::default();
        let ms = Duration::from_millis;
        assert!(queue.push_aging("a", ms(0)));
        assert!(!queue.push_aging("b", ms(600)));
        queue.push_ready("c");
        assert_eq!(queue.next(ms(0), false), Work::Batch("c"));
        assert_eq!(queue.next(ms(700), false), Work::Wait(ms(300)));
        assert_eq!(queue.next(ms(1000), false), Work::Settle("a"));
        assert_eq!(queue.next(ms(1100), false), Work::Wait(ms(500)));
        assert_eq!(queue.next(ms(1100), true), Work::Settle("b"));
        assert_eq!(queue.next(ms(1100), true), Work::Wait(IDLE));
        assert!(queue.is_empty());
    }
}
