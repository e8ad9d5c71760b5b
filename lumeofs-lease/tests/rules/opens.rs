//! S4 with leases: who hears that a file is open, and when.

use crate::fixture::{FILE, OTHER, World, attr, session, touched, unlinked};
use lumeofs_lease::{Act, Want};

#[test]
fn a_lease_opens_a_file_that_has_a_name_without_a_word() {
    let mut world = World::new(1);
    world.get(0, FILE, Want::Shared);
    let now = world.now;
    assert!(world.holder(0).open(now, FILE));
    assert!(!world.holder(0).open(now, OTHER));
    assert!(world.poll(0).opened.is_empty());
    let answer = world.ask(0, &[OTHER], Want::Shared).unwrap();
    let nameless = lumeofs_base::Attr {
        nlink: 0,
        ..attr(OTHER, 0)
    };
    world.learn(0, &answer, &nameless);
    assert!(
        !world.holder(0).open(now, OTHER),
        "nothing more would be heard of it"
    );
}

#[test]
fn a_file_that_loses_its_last_name_elsewhere_is_reported_open_with_the_acknowledgement() {
    let mut world = World::new(2);
    world.get(1, FILE, Want::Shared);
    let now = world.now;
    world.holder(1).open(now, FILE);
    world.change(0, &[unlinked(FILE)]);
    world.poll(1);
    assert!(world.holder(1).take_acts().contains(&Act::Reported(FILE)));
    assert_eq!(world.poll(1).opened, [FILE]);
}

#[test]
fn a_file_that_was_closed_is_not_reported() {
    let mut world = World::new(2);
    world.get(1, FILE, Want::Shared);
    let now = world.now;
    world.holder(1).open(now, FILE);
    world.holder(1).close(FILE);
    world.change(0, &[unlinked(FILE)]);
    world.poll(1);
    assert!(!world.holder(1).take_acts().contains(&Act::Reported(FILE)));
    assert!(world.poll(1).opened.is_empty());
}

#[test]
fn a_lease_that_is_dropped_reports_the_open_file() {
    let mut world = World::new(2);
    world.get(1, FILE, Want::Shared);
    let now = world.now;
    world.holder(1).open(now, FILE);
    world.ask(0, &[FILE], Want::Write(FILE)).unwrap_err();
    world.poll(1);
    assert!(world.holder(1).take_acts().contains(&Act::Reported(FILE)));
    assert_eq!(world.poll(1).opened, [FILE]);
}

#[test]
fn a_write_lease_reports_the_open_file_when_it_ends_but_not_when_it_is_downgraded() {
    for (want, expected) in [(Want::Shared, vec![]), (Want::Write(FILE), vec![FILE])] {
        let mut world = World::new(2);
        world.get(1, FILE, Want::Write(FILE));
        let now = world.now;
        world.holder(1).open(now, FILE);
        world.ask(0, &[FILE], want).unwrap_err();
        world.poll(1);
        let holder = world.holder(1);
        holder.gave_back(holder.generation(), FILE);
        assert_eq!(world.poll(1).opened, expected);
    }
}

#[test]
fn an_own_change_that_takes_the_last_name_counts_as_open_until_it_is_said() {
    let mut world = World::new(1);
    world.get(0, FILE, Want::Shared);
    let now = world.now;
    world.holder(0).open(now, FILE);
    for (ino, presumed, act) in [
        (FILE, vec![FILE], Act::Reported(FILE)),
        (OTHER, vec![], Act::StateOpen(OTHER)),
    ] {
        let changes = [unlinked(ino)];
        let changed = world.change(0, &changes);
        assert_eq!(changed.opened, presumed);
        world.did(0, &changed, &changes);
        assert!(world.holder(0).take_acts().contains(&act), "{act:?}");
    }
}

#[test]
fn a_changer_with_a_lease_on_a_closed_file_says_that_it_is_closed() {
    let mut world = World::new(1);
    world.get(0, FILE, Want::Shared);
    let changes = [unlinked(FILE)];
    let changed = world.change(0, &changes);
    assert_eq!(changed.opened, [FILE], "the leader does not know");
    world.did(0, &changed, &changes);
    assert!(world.holder(0).take_acts().contains(&Act::StateOpen(FILE)));
}

#[test]
fn what_was_made_without_a_name_is_open_and_nothing_is_stated_of_it() {
    let mut world = World::new(1);
    let changes = [unlinked(FILE)];
    let changed = world.change(0, &changes);
    assert_eq!(changed.opened, [], "whoever makes a file says so at once");
    world.did(0, &changed, &changes);
    world.holder(0).made(FILE);
    assert!(!world.holder(0).take_acts().contains(&Act::StateOpen(FILE)));
}

#[test]
fn a_change_whose_outcome_is_not_known_has_opens_stated_and_answers_asked_anew() {
    let mut world = World::new(1);
    world.get(0, FILE, Want::Shared);
    let old = world.ask(0, &[FILE], Want::Nothing).unwrap();
    let changed = world.change(0, &[touched(FILE, 1)]);
    world
        .holder(0)
        .doubt(old.generation, changed.number, &[FILE]);
    assert!(world.holder(0).take_acts().contains(&Act::StateOpen(FILE)));
    assert_eq!(world.mode(0, FILE), None);
    assert!(
        world
            .holder(0)
            .is_overtaken(old.generation, old.number, FILE)
    );
    assert_eq!(world.table.counts(), [1, 0, 0], "of {}", session(0));
}
