//! Signals of callers that wait for locks.
//!
//! The kernel says that a caller got one by a request of its own, which any thread may read: also before the thread that has read
//! the caller's request has said that it waits. Those of other requests mean nothing here.

use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Interrupts of requests that are not known to wait, so many of the last. Between a request's being read and its being known to
/// wait there are at most a few.
const EARLY_MAX: usize = 1024;

/// Those who wait.
#[derive(Debug, Default)]
pub(super) struct Interrupts(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<u64, Arc<AtomicBool>>,
    early: VecDeque<u64>,
}

/// Whether a caller got a signal, as long as this lives.
#[derive(Debug)]
pub(crate) struct Interrupt {
    unique: u64,
    raised: Arc<AtomicBool>,
    state: Arc<Mutex<State>>,
}

impl Interrupts {
    /// A request is going to wait.
    pub(super) fn wait(&self, unique: u64) -> Interrupt {
        let mut state = self.0.lock();
        let raised = Arc::new(AtomicBool::new(state.early.contains(&unique)));
        state.waiting.insert(unique, raised.clone());
        Interrupt {
            unique,
            raised,
            state: self.0.clone(),
        }
    }

    /// The caller of a request got a signal.
    pub(super) fn raise(&self, unique: u64) {
        let mut state = self.0.lock();
        if let Some(raised) = state.waiting.get(&unique) {
            raised.store(true, Ordering::Relaxed);
            return;
        }
        if state.early.len() == EARLY_MAX {
            state.early.pop_front();
        }
        state.early.push_back(unique);
    }
}

impl Interrupt {
    /// Whether it did.
    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Relaxed)
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.state.lock().waiting.remove(&self.unique);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_reaches_its_request_whichever_is_read_first() {
        let interrupts = Interrupts::default();
        let waits = interrupts.wait(2);
        interrupts.raise(4);
        assert!(!waits.is_raised());
        interrupts.raise(2);
        assert!(waits.is_raised());
        assert!(interrupts.wait(4).is_raised());
        assert!(!interrupts.wait(6).is_raised());
        drop(waits);
        for unique in 0..2 * EARLY_MAX as u64 {
            interrupts.raise(unique);
        }
        let state = interrupts.0.lock();
        assert_eq!((state.early.len(), state.waiting.len()), (EARLY_MAX, 0));
    }
}
