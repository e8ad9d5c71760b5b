//! Whether what several threads saw of one register could come from a single copy (linearizability).
//!
//! The events are walked through in the order of time. A configuration is a value that the register may have now,
//! with the calls under way that have already had their effect. When a call returns, it must have had it in at least one
//! configuration. No more configurations are possible than subsets of the calls under way, times values: the window is
//! bounded by the number of threads.

use std::collections::BTreeSet;
use std::time::Instant;

/// Calls that may be under way at once; they are bits of a number.
const WINDOW: usize = 32;

/// What a call did or saw. The value 0 is that of a name that is absent, and of everything in the beginning.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// The register now has this value, whatever it had.
    Write(u64),
    /// It was seen to have this value.
    Read(u64),
    /// It gets this value if it was absent; `done` says whether it was.
    Create {
        /// The value.
        value: u64,
        /// Whether the call succeeded.
        done: bool,
    },
    /// It gets absent; `done` says whether it was not so already.
    Remove {
        /// Whether the call succeeded.
        done: bool,
    },
}

impl Action {
    /// The register after this, if it could have this outcome.
    fn apply(self, state: u64) -> Option<u64> {
        let absent = state == 0;
        match self {
            Self::Write(value) => Some(value),
            Self::Read(value) => (value == state).then_some(state),
            Self::Create { value, done } => {
                (done == absent).then_some(if done { value } else { state })
            }
            Self::Remove { done } => (done != absent).then_some(0),
        }
    }
}

/// A call of a history.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Just before it was made.
    pub begun: Instant,
    /// Just after it returned; a call that failed, whose effect may still come, has `None`.
    pub ended: Option<Instant>,
    /// What it did.
    pub action: Action,
    /// Who made it, for messages.
    pub by: usize,
}

/// A register that has had its effect of some of the calls under way.
type Configuration = (u64, u32);

/// Checks the calls of one register.
///
/// # Errors
///
/// The call that no order explains, with those before it.
pub fn check(events: &[Event]) -> Result<(), String> {
    let mut moments: Vec<(Instant, bool, usize)> = Vec::new();
    for (at, event) in events.iter().enumerate() {
        // Of two at the same instant the begin comes first: then more is allowed.
        moments.push((event.begun, false, at));
        moments.extend(event.ended.map(|ended| (ended, true, at)));
    }
    moments.sort_unstable();
    let mut window: [Option<usize>; WINDOW] = [None; WINDOW];
    let mut possible: BTreeSet<Configuration> = BTreeSet::from([(0, 0)]);
    for (_, ends, at) in moments {
        if !ends {
            let free = window.iter().position(Option::is_none);
            window[free.expect("no more calls at once than the window has")] = Some(at);
            continue;
        }
        let slot = window.iter().position(|entry| *entry == Some(at));
        let slot = slot.expect("a call ends after its begin");
        let bit = 1 << slot;
        let all = reachable(possible, &window, events, bit);
        let explained = all.into_iter().filter(|(_, had)| had & bit != 0);
        possible = explained.map(|(state, had)| (state, had & !bit)).collect();
        window[slot] = None;
        if possible.is_empty() {
            return Err(explain(events, at));
        }
    }
    Ok(())
}

/// All configurations to which calls under way can lead. One in which the call of `goal` has had its effect goes no
/// further: what comes after it can as well come later.
fn reachable(
    from: BTreeSet<Configuration>,
    window: &[Option<usize>; WINDOW],
    events: &[Event],
    goal: u32,
) -> BTreeSet<Configuration> {
    let mut left: Vec<_> = from.iter().copied().collect();
    let mut found = from;
    while let Some((state, had)) = left.pop() {
        if had & goal != 0 {
            continue;
        }
        for (slot, entry) in window.iter().enumerate() {
            let Some(at) = entry.filter(|_| had & (1 << slot) == 0) else {
                continue;
            };
            if let Some(state) = events[at].action.apply(state) {
                let next = (state, had | (1 << slot));
                if found.insert(next) {
                    left.push(next);
                }
            }
        }
    }
    found
}

/// The call and what was going on before it returned.
fn explain(events: &[Event], at: usize) -> String {
    let bad = &events[at];
    let first = events.iter().map(|event| event.begun).min();
    let since = |time: Instant| time - first.unwrap_or(time);
    let line = |event: &Event| {
        let (begun, ended) = (since(event.begun), event.ended.map(since));
        format!("{begun:?} to {ended:?} by {}: {:?}", event.by, event.action)
    };
    let mut before: Vec<_> = events
        .iter()
        .filter(|event| Some(event.begun) < bad.ended)
        .collect();
    before.sort_by_key(|event| event.begun);
    let recent = before[before.len().saturating_sub(24)..].iter();
    let recent: Vec<_> = recent.map(|event| line(event)).collect();
    format!(
        "nothing explains\n{}\namong\n{}",
        line(bad),
        recent.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::Action::{Create, Read, Remove, Write};
    use super::*;
    use std::time::Duration;

    /// Events with times in milliseconds; an end of 0 never comes.
    fn history(calls: &[(u64, u64, Action)]) -> Vec<Event> {
        let zero = Instant::now();
        let time = |milliseconds| zero + Duration::from_millis(milliseconds);
        let event = |(by, (begun, ended, action)): (usize, &(u64, u64, Action))| Event {
            begun: time(*begun),
            ended: (*ended > 0).then(|| time(*ended)),
            action: *action,
            by,
        };
        calls.iter().enumerate().map(event).collect()
    }

    fn holds(calls: &[(u64, u64, Action)]) -> bool {
        check(&history(calls)).is_ok()
    }

    #[test]
    fn reads_during_a_write_may_see_either_value_but_none_goes_back() {
        assert!(holds(&[
            (1, 2, Write(1)),
            (3, 9, Write(2)),
            (4, 5, Read(1)),
            (6, 7, Read(2))
        ]));
        assert!(holds(&[
            (1, 2, Write(1)),
            (3, 9, Write(2)),
            (4, 8, Read(2)),
            (4, 8, Read(1))
        ]));
        assert!(!holds(&[
            (1, 2, Write(1)),
            (3, 9, Write(2)),
            (4, 5, Read(2)),
            (6, 7, Read(1))
        ]));
    }

    #[test]
    fn a_stale_read_is_found() {
        assert!(!holds(&[
            (1, 2, Write(1)),
            (3, 4, Write(2)),
            (5, 6, Read(1))
        ]));
        assert!(!holds(&[(1, 2, Write(1)), (3, 4, Read(0))]));
        // Also when it is one of many, and much is under way.
        let mut calls: Vec<_> = (1..500)
            .map(|value| (value * 10, value * 10 + 14, Write(value)))
            .collect();
        calls.extend((1..500).map(|value| (value * 10 + 15, value * 10 + 16, Read(value))));
        assert!(!holds(&[&calls[..], &[(2500, 2501, Read(247))]].concat()));
    }

    #[test]
    fn a_value_that_nobody_wrote_and_a_lost_write_are_found() {
        assert!(!holds(&[(1, 2, Write(1)), (3, 4, Read(7))]));
        assert!(!holds(&[
            (1, 2, Write(1)),
            (3, 4, Write(2)),
            (5, 6, Read(2)),
            (7, 8, Read(1))
        ]));
    }

    #[test]
    fn overlapping_writes_take_effect_in_any_order_but_in_one() {
        let writes = [(1, 9, Write(1)), (1, 9, Write(2))];
        assert!(holds(
            &[&writes[..], &[(10, 11, Read(1)), (12, 13, Read(1))]].concat()
        ));
        assert!(holds(&[&writes[..], &[(10, 11, Read(2))]].concat()));
        assert!(!holds(
            &[&writes[..], &[(10, 11, Read(2)), (12, 13, Read(1))]].concat()
        ));
    }

    #[test]
    fn of_two_creates_one_succeeds_and_a_name_is_removed_once() {
        let create = |value, done| Create { value, done };
        assert!(holds(&[
            (1, 5, create(1, true)),
            (1, 5, create(2, false)),
            (6, 7, Read(1))
        ]));
        assert!(!holds(&[(1, 5, create(1, true)), (1, 5, create(2, true))]));
        assert!(!holds(&[
            (1, 5, create(1, false)),
            (1, 5, create(2, false))
        ]));
        let (removed, absent) = (Remove { done: true }, Remove { done: false });
        assert!(holds(&[
            (1, 2, Write(1)),
            (3, 6, removed),
            (3, 6, absent),
            (7, 8, Read(0))
        ]));
        assert!(!holds(&[
            (1, 2, Write(1)),
            (3, 6, removed),
            (3, 6, removed)
        ]));
        assert!(!holds(&[(1, 2, Write(1)), (3, 4, absent)]));
    }

    #[test]
    fn a_call_of_unknown_outcome_may_have_its_effect_late_or_never() {
        let doubt = [(1, 2, Write(1)), (3, 0, Write(2))];
        assert!(holds(
            &[&doubt[..], &[(5, 6, Read(1)), (7, 8, Read(2))]].concat()
        ));
        assert!(holds(
            &[&doubt[..], &[(5, 6, Read(1)), (7, 8, Read(1))]].concat()
        ));
        assert!(!holds(
            &[&doubt[..], &[(5, 6, Read(2)), (7, 8, Read(1))]].concat()
        ));
    }
}
