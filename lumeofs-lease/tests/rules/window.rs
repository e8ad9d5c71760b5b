//! L6: the first time of a leadership.

use crate::fixture::{DIR, FILE, LINK, World, ms, session, touched};
use lumeofs_base::Timestamp;
use lumeofs_lease::{Blocked, Effect, Kind, TERM, Table, Want};

fn may_change(world: &mut World) -> bool {
    let now = world.now;
    world.table.before_change(now, session(0), &[], &[]).is_ok()
}

#[test]
fn a_table_of_no_leadership_lets_nothing_pass() {
    let mut table = Table::default();
    let shown = [(DIR, crate::fixture::kind(DIR))];
    assert_eq!(
        table.read(ms(0), session(0), &shown, Want::Nothing),
        Err(Blocked)
    );
    assert_eq!(
        table.before_change(ms(0), session(0), &[], &[]),
        Err(Blocked)
    );
    table.lead(ms(0), 1, []);
    assert!(
        table.before_change(ms(0), session(0), &[], &[]).is_ok(),
        "there is nobody to wait for"
    );
}

#[test]
fn nothing_is_changed_until_every_session_has_said_what_it_has() {
    let mut world = World::new(2);
    world.elect();
    assert_eq!(world.table.awaited(), 2);
    assert!(!may_change(&mut world));
    world.begin(0);
    assert!(!may_change(&mut world));
    assert!(world.poll(1).restate);
    assert!(!may_change(&mut world), "mount 1 has not asserted anything");
    world.poll(1);
    assert!(may_change(&mut world));
    assert_eq!(world.table.awaited(), 0);
}

#[test]
fn a_term_alone_does_not_let_changes_pass_while_somebody_is_silent() {
    let mut world = World::new(1);
    world.elect();
    world.pass(TERM * 2);
    assert!(!may_change(&mut world));
}

#[test]
fn those_who_are_silent_for_a_term_are_ended() {
    let mut world = World::new(2);
    world.elect();
    world.begin(0);
    world.pass(TERM - ms(1));
    let now = world.now;
    assert_eq!(world.table.tick(now), []);
    let now = now + ms(1);
    let end = [Effect::End(session(1))];
    assert_eq!(world.table.tick(now), end);
    assert_eq!(world.table.tick(now + ms(999)), []);
    assert_eq!(
        world.table.tick(now + ms(1000)),
        end,
        "the driver may have failed"
    );
}

#[test]
fn names_go_on_after_silent_sessions_were_ended_and_data_waits_for_their_fences() {
    let mut world = World::new(2);
    world.elect();
    world.begin(0);
    world.table.session_ended(session(1));
    assert_eq!(world.table.awaited(), 0);
    assert!(!may_change(&mut world), "it may still answer from memory");
    world.pass(TERM);
    assert!(may_change(&mut world));
    world.poll(0);
    assert_eq!(world.get(0, DIR, Want::Shared), Some(Kind::Shared));
    assert_eq!(
        world.get(0, FILE, Want::Shared),
        None,
        "there may be a writer"
    );
    for want in [Want::Data(FILE), Want::Write(FILE)] {
        assert_eq!(world.ask(0, &[FILE], want).unwrap_err(), Blocked);
    }
    world.table.session_closed(session(1));
    assert_eq!(world.get(0, FILE, Want::Shared), Some(Kind::Shared));
    assert_eq!(world.get(0, FILE, Want::Write(FILE)), Some(Kind::Exclusive));
}

#[test]
fn who_has_asserted_a_write_lease_uses_it_while_others_wait_for_fences() {
    let mut world = World::new(2);
    world.get(0, FILE, Want::Write(FILE));
    world.holder(0).wrote(FILE, |attr| {
        (attr.size, attr.mtime) = (1, Timestamp::default())
    });
    world.elect();
    world.begin(0);
    world.table.session_ended(session(1));
    world.pass(TERM);
    world.poll(0);
    assert!(world.ask(0, &[FILE], Want::Data(FILE)).is_ok());
    assert_eq!(world.get(0, FILE, Want::Write(FILE)), Some(Kind::Exclusive));
}

#[test]
fn who_has_asserted_that_it_writes_through_is_not_alone_until_others_are_shut_out() {
    let mut world = World::new(2);
    let now = world.now;
    world.get(0, FILE, Want::Write(FILE));
    world.ask(1, &[FILE], Want::Write(FILE)).unwrap_err();
    world.give_back(0, FILE);
    for mount in [1, 0] {
        assert_eq!(
            world.get(mount, FILE, Want::Write(FILE)),
            Some(Kind::Through)
        );
    }
    world.holder(0).begin_write(now, FILE);
    world.elect();
    world.begin(0);
    world.table.session_ended(session(1));
    world.pass(TERM);
    world.poll(0);
    assert_eq!(world.get(0, FILE, Want::Write(FILE)), Some(Kind::Through));
    world.table.session_closed(session(1));
    world.pass(ms(10_000));
    world.poll(0);
    assert_eq!(world.get(0, FILE, Want::Write(FILE)), Some(Kind::Exclusive));
}

#[test]
fn a_reader_waits_for_a_writer_that_the_new_leader_learned_of() {
    let mut world = World::new(2);
    world.get(0, FILE, Want::Write(FILE));
    world.holder(0).wrote(FILE, |attr| {
        (attr.size, attr.mtime) = (1, Timestamp::default())
    });
    world.elect();
    world.begin(0);
    world.begin(1);
    world.holder(0).take_acts();
    assert_eq!(world.ask(1, &[FILE], Want::Shared).unwrap_err(), Blocked);
    world.give_back(0, FILE);
    assert!(world.ask(1, &[FILE], Want::Shared).is_ok());
}

#[test]
fn meanwhile_only_what_has_not_changed_lately_and_is_neither_file_nor_directory_is_shown() {
    let shows = |world: &mut World, ino, want| world.ask(0, &[ino], want).is_ok();
    // A leader that has been told for long what was applied.
    let mut world = World::new(1);
    let now = world.now;
    world.table.note(now, &[]);
    world.pass(ms(60_000));
    let now = world.now;
    world.table.note(now, &[touched(LINK, 1)]);
    world.pass(TERM + ms(1000));
    world.elect();
    assert!(
        !shows(&mut world, LINK, Want::Nothing),
        "it may be otherwise in somebody's memory"
    );
    world.pass(ms(1));
    world.elect();
    assert!(shows(&mut world, LINK, Want::Nothing));
    assert!(shows(&mut world, LINK, Want::Shared));
    assert!(!shows(&mut world, LINK, Want::Write(LINK)));
    for ino in [FILE, DIR] {
        let shown = shows(&mut world, ino, Want::Nothing);
        assert!(
            !shown,
            "something of {ino} may be in somebody's memory only"
        );
    }
}

#[test]
fn a_master_that_does_not_know_what_was_applied_shows_nothing_meanwhile() {
    let mut world = World::new(1);
    world.pass(ms(60_000));
    let now = world.now;
    world.table.note_anything(now);
    world.elect();
    assert_eq!(world.ask(0, &[LINK], Want::Nothing).unwrap_err(), Blocked);
    world.pass(ms(7000));
    world.elect();
    assert!(world.ask(0, &[LINK], Want::Nothing).is_ok());
}

#[test]
fn more_changes_than_are_remembered_by_inode_make_everything_doubtful() {
    let mut world = World::new(1);
    let now = world.now;
    world.table.note(now, &[]);
    world.pass(ms(60_000));
    let now = world.now;
    for ino in 0..65_537 {
        let change = touched(lumeofs_base::InodeId(10_000 + ino), 0);
        world.table.note(now, &[change]);
    }
    world.elect();
    assert_eq!(world.ask(0, &[DIR], Want::Nothing).unwrap_err(), Blocked);
}
