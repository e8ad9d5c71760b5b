//! Fences: which sessions may still change data (rule S3).
//!
//! A list of those that may, not of those that may not: so it does not grow with the sessions that ever were, and
//! a group that missed some fences needs only the last.

use crate::SessionId;
use serde::{Deserialize, Serialize};

/// Which sessions may change the data of a replica group. Counted by the metadata group whenever it ends a session, so
/// that a higher number shuts out all that a lower one does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// Which of two fences is newer; 0 = none was ever needed.
    pub number: u64,
    /// Sessions from this one on are younger than the fence, and may.
    pub below: u64,
    /// Of the older ones those that may, in order.
    pub live: Vec<SessionId>,
}

impl Fence {
    /// Whether a session may change data. The masters' own, session 0, always may.
    pub fn admits(&self, session: SessionId) -> bool {
        session == SessionId(0)
            || session.get() >= self.below
            || self.live.binary_search(&session).is_ok()
    }

    /// Takes a newer fence's place for this one. False if it is not newer.
    pub fn supersede(&mut self, newer: &Fence) -> bool {
        let is_newer = newer.number > self.number;
        if is_newer {
            self.clone_from(newer);
        }
        is_newer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(number: u64, below: u64, live: &[u64]) -> Fence {
        let live = live.iter().copied().map(SessionId).collect();
        Fence {
            number,
            below,
            live,
        }
    }

    #[test]
    fn only_listed_and_younger_sessions_are_admitted() {
        let open = Fence::default();
        assert!(open.admits(SessionId(0)) && open.admits(SessionId(1)));
        let shut = fence(1, 5, &[2, 4]);
        let admitted = (0..8).filter(|id| shut.admits(SessionId(*id)));
        assert_eq!(admitted.collect::<Vec<_>>(), [0, 2, 4, 5, 6, 7]);
    }

    #[test]
    fn an_older_fence_changes_nothing() {
        let mut fences = Fence::default();
        assert!(fences.supersede(&fence(2, 5, &[4])));
        assert!(!fences.supersede(&fence(1, 4, &[2, 3])));
        assert!(!fences.supersede(&fence(2, 9, &[])));
        assert_eq!(fences, fence(2, 5, &[4]));
    }
}
