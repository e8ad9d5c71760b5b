//! Both cores, the state machine and data that is cached and written behind, from one seed: messages that are late, lost
//! and out of order, mounts that stop and crash, clocks that drift, leaders that change, sessions that are ended and fenced.
//!
//! `LUMEOFS_SEED=n cargo test -p lumeofs-lease --test simulation` repeats one run; with `LUMEOFS_TRACE=1` it tells what
//! happens. `LUMEOFS_SEEDS=n` tries that many, from `LUMEOFS_SEED_FIRST`.

mod bugs;
mod calls;
mod data;
mod faults;
mod history;
mod masters;
mod mounts;
mod queries;
mod world;

use bugs::Bug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::World;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(seed: u64, bug: Option<Bug>) -> World {
    let mut world = World::new(seed, bug);
    world.run();
    world.check_end();
    world
}

#[test]
fn no_read_is_older_than_what_was_acknowledged_or_seen() {
    let seeds = match number("LUMEOFS_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("LUMEOFS_SEED_FIRST").unwrap_or(0);
            first..first + number("LUMEOFS_SEEDS").unwrap_or(100)
        }
    };
    let mut failed = Vec::new();
    let mut sum = world::Counts::default();
    let all = seeds.end - seeds.start;
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| run(seed, None))) {
            Ok(world) => sum.add(&world.counts),
            Err(_) => {
                eprintln!(
                    "repeat with: LUMEOFS_SEED={seed} cargo test -p lumeofs-lease --test simulation no_read"
                );
                failed.push(seed);
            }
        }
    }
    eprintln!("{sum:?}");
    assert!(failed.is_empty(), "seeds that failed: {failed:?}");
    if all >= 100 {
        sum.check_enough();
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [7, 8] {
        let (a, b) = (run(seed, None), run(seed, None));
        assert_eq!(a.log_hash, b.log_hash);
        assert_eq!(a.counts, b.counts);
    }
}

/// The number of seeds within which a planted bug must show itself.
const BUG_SEEDS: u64 = 1000;

fn is_found(bug: Bug) -> Option<u64> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = (0..BUG_SEEDS)
        .find(|seed| catch_unwind(AssertUnwindSafe(|| run(*seed, Some(bug)))).is_err());
    std::panic::set_hook(hook);
    found
}

macro_rules! planted {
    ($($name:ident: $bug:ident,)*) => {$(
        #[test]
        fn $name() {
            assert!(is_found(Bug::$bug).is_some(), "not within {BUG_SEEDS} seeds");
        }
    )*};
}

planted! {
    an_acknowledgement_before_everyone_has_heard_is_found: RecallsNotAwaited,
    a_term_that_counts_from_the_answer_is_found: TermFromTheAnswer,
    a_grant_that_was_overtaken_by_a_recall_is_found: OldGrantsCount,
    a_lease_given_back_without_its_data_is_found: DirtyDataGivenBack,
    own_changes_that_are_not_busy_are_found: OwnChangesNotBusy,
    a_void_that_is_not_heeded_is_found: VoidNotHeeded,
    a_leader_that_serves_at_once_is_found: NoWindow,
    a_release_that_takes_a_later_grant_is_found: ReleaseOfLaterGrants,
    a_session_that_is_closed_without_a_fence_is_found: NoFence,
    a_session_that_is_closed_within_its_term_is_found: TermOfEndedNotAwaited,
    a_grant_after_the_reading_is_found: GrantAfterReading,
    own_changes_that_are_forgotten_are_found: OwnChangesForgotten,
    a_reader_that_does_not_ask_the_writer_is_found: WritersNotAsked,
    a_question_about_what_was_made_and_not_told_is_found: MadeNotAwaited,
    a_directory_given_back_without_what_was_made_is_found: MadeNotTold,
    a_directory_that_is_removed_under_its_maker_is_found: MovedNotAsked,
    leases_on_what_was_made_that_are_not_asserted_are_found: MadeNotAsserted,
}
