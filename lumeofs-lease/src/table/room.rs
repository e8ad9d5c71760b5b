//! How many leases there are and may be, and how sessions share that.
//!
//! Every session is told with each answer to a poll how many it may keep, and gives up what it used least beyond that; it
//! alone knows what that is. While leases run short all are told one number, at which those that have less keep what they
//! have and the others together fill the [goal](GOAL_PERCENT). Who has a quarter more than it was told gets none until it has
//! given some up; so those who had most cannot take what is left for those who have less.

use super::Table;
use crate::wire::Kind;
use lumeofs_base::SessionId;

/// How full the table is kept. What sessions take beyond what they were told is on top, at most a quarter of this.
const GOAL_PERCENT: usize = 75;
const _: () = assert!(GOAL_PERCENT + GOAL_PERCENT / 4 < 100);

/// How many leases there may be. Those that sessions ask for to write are counted but never refused.
#[derive(Clone, Copy, Debug)]
pub struct TableLimits {
    /// Of all sessions.
    pub leases_max: usize,
    /// What one session is told to keep while there is room for more.
    pub leases_per_session_max: usize,
}

impl Default for TableLimits {
    /// About 270 MB when full, as `tests/memory.rs` measures it; less if sessions have leases on the same inodes.
    fn default() -> Self {
        Self {
            leases_max: 1_000_000,
            leases_per_session_max: 160_000,
        }
    }
}

/// How many leases there are.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// By kind.
    counts: [usize; 3],
    /// What sessions are told to keep, while leases run short.
    share: Option<usize>,
}

impl Tally {
    pub(super) fn add(&mut self, kind: Kind) {
        self.counts[kind as usize] += 1;
    }

    pub(super) fn take(&mut self, kind: Kind) {
        self.counts[kind as usize] -= 1;
    }

    fn sum(&self) -> usize {
        self.counts.iter().sum()
    }
}

impl Table {
    /// Leases by kind: shared, exclusive, through.
    pub fn counts(&self) -> [usize; 3] {
        self.tally.counts
    }

    /// How many leases a session may keep.
    pub(super) fn told(&self) -> usize {
        let most = self.limits.leases_per_session_max;
        self.tally.share.map_or(most, |share| share.min(most))
    }

    pub(super) fn has_room(&self, session: SessionId) -> bool {
        let has = self.sessions[&session].inodes.len();
        let told = self.told();
        has < told + told / 4 && self.tally.sum() < self.limits.leases_max
    }

    /// Whether sessions have to give leases up for others.
    pub(super) fn runs_short(&self) -> bool {
        self.tally.share.is_some()
    }

    fn goal(&self) -> usize {
        self.limits.leases_max * GOAL_PERCENT / 100
    }

    /// A lease was entered of which there was none. To be seen at once: before the next tick others could take all.
    pub(super) fn has_grown(&mut self) {
        if self.tally.share.is_none() && self.tally.sum() > self.goal() {
            self.share_room();
        }
    }

    /// Sees whether leases run short.
    pub(super) fn share_room(&mut self) {
        let goal = self.goal();
        self.tally.share = (self.tally.sum() > goal).then(|| {
            let standings = self.sessions.values();
            fair_share(goal, standings.map(|own| own.inodes.len()).collect())
        });
    }
}

/// The number such that what everyone has up to it fits in `room`, and that is used up if anybody has more.
fn fair_share(mut room: usize, mut counts: Vec<usize>) -> usize {
    counts.sort_unstable();
    for (at, count) in counts.iter().enumerate() {
        let share = room / (counts.len() - at);
        if *count > share {
            return share;
        }
        room -= count;
    }
    usize::MAX
}
