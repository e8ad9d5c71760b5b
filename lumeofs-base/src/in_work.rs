//! Which requests a server has in work, and since when: what people ask when something hangs.
//!
//! Each connection has a place of its own and serves one request at a time, so that noting one down costs a lock that
//! nobody else holds. Whoever asks looks at all places.

use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The places of all connections.
#[derive(Debug)]
pub struct Board<T>(Mutex<Vec<Weak<Place<T>>>>);

/// Where one connection notes what it works on.
#[derive(Debug)]
pub struct Place<T>(Mutex<Option<Noted<T>>>);

/// A request in work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted<T> {
    /// When it came, on a monotonic clock.
    pub since: Duration,
    /// What it is.
    pub what: T,
}

/// Clears the place when it is dropped: the request is answered, or given up.
#[derive(Debug)]
pub struct InWork<'a, T>(&'a Place<T>);

impl<T> Default for Board<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Board<T> {
    /// A place for a new connection. It goes with the connection.
    pub fn place(&self) -> Arc<Place<T>> {
        let place = Arc::new(Place(Mutex::new(None)));
        let mut places = self.0.lock();
        // Those of connections that have ended are dropped now and then.
        if places.len() == places.capacity() {
            places.retain(|place| place.strong_count() > 0);
        }
        places.push(Arc::downgrade(&place));
        place
    }

    /// Requests that have been in work for at least `age`, the oldest first.
    pub fn older_than(&self, age: Duration, now: Duration) -> Vec<Noted<T>> {
        let places: Vec<_> = self.0.lock().iter().filter_map(Weak::upgrade).collect();
        let noted = places.iter().filter_map(|place| place.0.lock().clone());
        let mut old: Vec<_> = noted.filter(|noted| noted.since + age <= now).collect();
        old.sort_by_key(|noted| noted.since);
        old
    }
}

impl<T> Place<T> {
    /// Notes a request down until the guard is dropped.
    pub fn begin(&self, what: T, since: Duration) -> InWork<'_, T> {
        *self.0.lock() = Some(Noted { since, what });
        InWork(self)
    }
}

impl<T> Drop for InWork<'_, T> {
    fn drop(&mut self) {
        *self.0.0.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_work_is_seen_from_its_age_on_and_the_oldest_comes_first() {
        let board = Board::default();
        let second = Duration::from_secs;
        let (one, two, three) = (board.place(), board.place(), board.place());
        let first = one.begin("first", second(10));
        let _second = two.begin("second", second(5));
        let _young = three.begin("young", second(19));
        let seen = |board: &Board<&'static str>| {
            let old = board.older_than(second(2), second(20));
            old.into_iter().map(|noted| noted.what).collect::<Vec<_>>()
        };
        assert_eq!(seen(&board), ["second", "first"]);
        drop(first);
        assert_eq!(seen(&board), ["second"]);
        let _next = one.begin("next", second(1));
        assert_eq!(seen(&board), ["next", "second"]);
    }

    #[test]
    fn places_of_connections_that_have_ended_do_not_pile_up() {
        let board: Board<()> = Board::default();
        for _ in 0..10_000 {
            drop(board.place());
        }
        assert!(board.0.lock().len() < 100);
    }
}
