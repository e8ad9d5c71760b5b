//! When datanodes may forget which chunks were deleted: a new era, at most every [`ERA_MIN`].
//!
//! A group hears of the era before it is asked to delete anything that was freed in it, and drops the
//! tombstones of what was freed before. The order is what makes it safe: so it is kept for each group,
//! and a leadership trusts nothing that it has not told the group itself.

use lumeofs_base::GroupId;
use lumeofs_base::limits::{ERA_DELETED_MAX, ERA_MIN};
use std::collections::HashMap;
use std::time::Duration;

/// What a leader remembers of eras.
pub(super) struct Eras {
    /// When the era or this leadership began.
    since: Duration,
    /// Chunks deleted since then.
    deleted: usize,
    told: HashMap<GroupId, u32>,
}

impl Eras {
    /// At the beginning of a leadership.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            since: now,
            deleted: 0,
            told: HashMap::new(),
        }
    }

    /// Whether a new era is worth the second attempts that it costs clients.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        let is_old = now.saturating_sub(self.since) >= ERA_MIN;
        self.deleted >= ERA_DELETED_MAX || (is_old && self.deleted > 0)
    }

    /// A new era has begun.
    pub(super) fn begun(&mut self, now: Duration) {
        (self.since, self.deleted) = (now, 0);
    }

    /// Chunks were deleted.
    pub(super) fn deleted(&mut self, count: usize) {
        self.deleted += count;
    }

    /// The era that a group must hear of before it deletes what was freed in `era`.
    pub(super) fn to_tell(&self, group: GroupId, era: u32) -> Option<u32> {
        (era > 0 && self.told.get(&group) != Some(&era)).then_some(era)
    }

    /// A group is in that era, and will be after a power cut.
    pub(super) fn told(&mut self, group: GroupId, era: u32) {
        self.told.insert(group, era);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_era_ends_after_its_time_if_anything_was_deleted_and_sooner_after_much() {
        let start = Duration::from_secs(1000);
        let mut eras = Eras::new(start);
        assert!(!eras.is_due(start + ERA_MIN * 2));
        eras.deleted(1);
        assert!(!eras.is_due(start + ERA_MIN / 2));
        assert!(eras.is_due(start + ERA_MIN));
        eras.deleted(ERA_DELETED_MAX);
        assert!(eras.is_due(start));
        eras.begun(start);
        assert!(!eras.is_due(start + ERA_MIN));
    }

    #[test]
    fn each_group_is_told_of_each_era_once_by_each_leadership() {
        let mut eras = Eras::new(Duration::ZERO);
        let (one, two) = (GroupId(1), GroupId(2));
        assert_eq!(eras.to_tell(one, 0), None);
        assert_eq!(eras.to_tell(one, 1), Some(1));
        eras.told(one, 1);
        assert_eq!(
            (eras.to_tell(one, 1), eras.to_tell(two, 1)),
            (None, Some(1))
        );
        assert_eq!(eras.to_tell(one, 2), Some(2));
        assert_eq!(Eras::new(Duration::ZERO).to_tell(one, 1), Some(1));
    }
}
