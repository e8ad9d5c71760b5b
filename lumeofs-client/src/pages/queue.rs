//! Which file's changes are sent next: those that have gathered enough for large requests, and those whose time has come,
//! by turns, so that neither a stream nor many small files stop the others. Each file is at most once in each queue.

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
    /// What could not be sent, in the order of its time: nothing makes that come sooner.
    resting: VecDeque<(Duration, F)>,
    /// The last one came from there.
    was_aging: bool,
}

impl<F> Default for Queue<F> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            aging: VecDeque::new(),
            resting: VecDeque::new(),
            was_aging: false,
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

    /// It could not be sent now. Says whether nothing else waits for its time.
    pub(crate) fn push_resting(&mut self, file: F, now: Duration) -> bool {
        let is_first = self.aging.is_empty() && self.resting.is_empty();
        self.resting.push_back((now + AGE_MAX, file));
        is_first
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.aging.is_empty() && self.resting.is_empty()
    }

    /// What is to be done now. `is_pressed`: room is wanted, so nothing waits for its time.
    pub(crate) fn next(&mut self, now: Duration, is_pressed: bool) -> Work<F> {
        while let Some(rested) = self.resting.pop_front_if(|(due, _)| *due <= now) {
            self.aging.push_front(rested);
        }
        let due = self.aging.front().map(|(due, _)| *due);
        let is_overdue = due.is_some_and(|due| due <= now);
        if (!is_overdue || self.was_aging)
            && let Some(file) = self.ready.pop_front()
        {
            self.was_aging = false;
            return Work::Batch(file);
        }
        if (is_overdue || is_pressed)
            && let Some((_, file)) = self.aging.pop_front()
        {
            self.was_aging = true;
            return Work::Settle(file);
        }
        let rested = self.resting.front().map(|(due, _)| *due);
        let next = due.into_iter().chain(rested).min();
        Work::Wait(next.map_or(IDLE, |next| next - now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_go_at_once_and_others_when_their_time_has_come_or_room_is_wanted() {
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

    #[test]
    fn files_that_are_always_full_and_files_whose_time_has_come_take_turns() {
        let mut queue = Queue::default();
        let second = Duration::from_secs(1);
        queue.push_aging("small", Duration::ZERO);
        queue.push_aging("other", Duration::ZERO);
        let mut order = Vec::new();
        for _ in 0..5 {
            queue.push_ready("stream");
            order.push(queue.next(second, true));
        }
        let (batch, settle) = (Work::Batch, Work::Settle);
        let stream = || batch("stream");
        let want = [
            settle("small"),
            stream(),
            settle("other"),
            stream(),
            stream(),
        ];
        assert_eq!(order, want);
    }

    #[test]
    fn what_could_not_be_sent_rests_whatever_room_is_wanted() {
        let mut queue = Queue::default();
        let ms = Duration::from_millis;
        assert!(queue.push_resting("stuck", ms(0)));
        queue.push_aging("new", ms(200));
        assert_eq!(queue.next(ms(300), true), Work::Settle("new"));
        assert_eq!(queue.next(ms(300), true), Work::Wait(ms(700)));
        assert_eq!(queue.next(ms(1000), false), Work::Settle("stuck"));
    }
}
