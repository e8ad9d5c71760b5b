//! A leader whose disk is nearly full gives its office to a member that has room: what makes the namespace grow then
//! goes on there, instead of failing while a majority could take it.
//!
//! Each member says in every answer whether it is short of space. A leader that is, while another voter is there, level and
//! not short, sends no more appends and says so instead. The others then elect as if its process were gone (rule R2), after
//! the same silence, so that no read lease is in force any more. If they do not, it leads on.

use super::Group;
use lumeofs_base::clock::{Clock as _, SystemClock};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long the own disk must have been short: others that share it, or fill up too, have said so by then.
const SURE_AFTER: Duration = Duration::from_secs(1);
/// Time for the others to elect.
const PATIENCE: Duration = Duration::from_secs(4);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_secs(30);
/// A successor lacks no more entries than that.
const LEVEL_ENTRIES: u64 = 200;

/// Who is short of space, and whether this member gives its office away for it.
#[derive(Debug, Default)]
pub(super) struct Handover(Mutex<State>);

/// Times are of the monotonic clock.
#[derive(Debug, Default)]
struct State {
    /// Since when this member is short.
    short_since: Option<Duration>,
    /// Others that are.
    others: BTreeSet<u64>,
    /// When the office was given away last.
    resigned: Option<Duration>,
}

impl Handover {
    /// Whether this member is short of space.
    pub(super) fn is_short(&self) -> bool {
        self.0.lock().short_since.is_some()
    }

    /// Another member has said whether it is short of space.
    pub(super) fn note(&self, node: u64, short: bool) {
        let others = &mut self.0.lock().others;
        if short {
            others.insert(node);
        } else {
            others.remove(&node);
        }
    }

    /// Whether this member sends no appends, because another one is to lead.
    pub(super) fn resigns(&self, now: Duration) -> bool {
        let resigned = self.0.lock().resigned;
        resigned.is_some_and(|at| now < at + PATIENCE)
    }
}

impl Group {
    /// Says whether the disk of this member is nearly full. To be called every now and then: if it is and this member leads,
    /// it gives its office away where it can.
    pub(crate) fn set_short(&self, short: bool) {
        let now = SystemClock.monotonic();
        let succeeds = short && self.has_successor();
        let mut state = self.handover().0.lock();
        state.short_since = short.then(|| state.short_since.unwrap_or(now));
        let sure = state
            .short_since
            .is_some_and(|since| now >= since + SURE_AFTER);
        if succeeds && sure && state.resigned.is_none_or(|at| now >= at + PAUSE) {
            state.resigned = Some(now);
            tracing::warn!(
                group = self.name,
                "the disk is nearly full: another master is to lead"
            );
        }
    }

    /// Whether another member will lead soon, because the disk of this one is nearly full.
    pub(crate) fn hands_over(&self) -> bool {
        let now = SystemClock.monotonic();
        let resigned = self.handover().0.lock().resigned;
        let tries = resigned.is_none_or(|at| now < at + PATIENCE || now >= at + PAUSE);
        tries && self.handover().is_short() && self.has_successor()
    }

    /// Whether this member leads and another voter could as well, which has room.
    fn has_successor(&self) -> bool {
        let others = self.handover().0.lock().others.clone();
        let could = |node: u64| {
            node != self.me()
                && !others.contains(&node)
                && self.answers(node)
                && self.lag(node).is_some_and(|lag| lag <= LEVEL_ENTRIES)
        };
        self.leadership().is_some() && self.members().voters.into_iter().any(could)
    }
}
