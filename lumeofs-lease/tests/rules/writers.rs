//! L1, L4 and L5: rights to write, how they are given back and shared.

use crate::fixture::{FILE, OTHER, World, attr, ms, session, touched};
use lumeofs_base::Timestamp;
use lumeofs_lease::{
    ASK_AGAIN, Blocked, Cached, Effect, GIVE_BACK_MAX, Kind, Want, What, WriteRight,
};

const WRITE: Want = Want::Write(FILE);

fn time(secs: i64) -> Timestamp {
    Timestamp { secs, nanos: 0 }
}

#[test]
fn who_writes_alone_gets_the_file_for_itself() {
    let mut world = World::new(1);
    let now = world.now;
    assert_eq!(world.holder(0).begin_write(now, FILE), WriteRight::Ask);
    assert_eq!(world.get(0, FILE, WRITE), Some(Kind::Exclusive));
    assert_eq!(world.holder(0).begin_write(now, FILE), WriteRight::Buffered);
    assert_eq!(world.table.counts(), [0, 1, 0]);
}

#[test]
fn a_reader_waits_until_the_writer_has_published_and_both_share_then() {
    let mut world = World::new(2);
    world.get(0, FILE, WRITE);
    assert_eq!(world.ask(1, &[FILE], Want::Shared).unwrap_err(), Blocked);
    let recalls = world.poll(0).recalls;
    assert_eq!(recalls[0].what, What::Downgrade);
    assert_eq!(world.ask(1, &[FILE], Want::Shared).unwrap_err(), Blocked);
    assert_eq!(world.asked_back(0), [FILE]);
    let (now, generation) = (world.now, world.holder(0).generation());
    assert_eq!(world.holder(0).begin_write(now, FILE), WriteRight::Wait);
    world.holder(0).gave_back(generation, FILE);
    world.poll(0);
    assert_eq!(world.get(1, FILE, Want::Shared), Some(Kind::Shared));
    assert_eq!(world.table.counts(), [2, 0, 0]);
    assert_eq!(world.mode(0, FILE), Some(0), "it goes on caching");
}

#[test]
fn a_query_asks_the_writer_once() {
    let mut world = World::new(2);
    world.get(0, FILE, WRITE);
    for _ in 0..3 {
        world.ask(1, &[FILE], Want::Shared).unwrap_err();
    }
    assert_eq!(world.table.unacknowledged(), 1);
    world.ask(1, &[FILE], WRITE).unwrap_err();
    let recalls = world.poll(0).recalls;
    let asked: Vec<&What> = recalls.iter().map(|recall| &recall.what).collect();
    assert_eq!(
        asked,
        [&What::Downgrade, &What::Drop],
        "a writer wants more"
    );
    world.ask(1, &[FILE], Want::Shared).unwrap_err();
    assert_eq!(
        world.table.unacknowledged(),
        2,
        "what is asked includes that"
    );
}

#[test]
fn who_is_to_give_a_lease_up_is_not_asked_to_share_it_too() {
    let mut world = World::new(3);
    world.get(0, FILE, WRITE);
    world.ask(1, &[FILE], WRITE).unwrap_err();
    world.ask(2, &[FILE], Want::Shared).unwrap_err();
    assert_eq!(world.table.unacknowledged(), 1);
}

#[test]
fn the_last_of_several_recalls_of_a_lease_ends_them_all() {
    let mut world = World::new(2);
    world.get(0, FILE, WRITE);
    world.ask(1, &[FILE], Want::Shared).unwrap_err();
    world.ask(1, &[FILE], WRITE).unwrap_err();
    world.poll(0);
    let holder = world.holder(0);
    holder.gave_back(holder.generation(), FILE);
    world.poll(0);
    assert_eq!(world.table.unacknowledged(), 0);
    assert_eq!(world.table.counts(), [0, 0, 0]);
}

#[test]
fn a_writer_has_the_leases_of_readers_dropped() {
    let mut world = World::new(3);
    for mount in 1..3 {
        world.get(mount, FILE, Want::Shared);
    }
    assert_eq!(world.ask(0, &[FILE], WRITE).unwrap_err(), Blocked);
    world.hear(1);
    assert_eq!(world.mode(1, FILE), None);
    assert_eq!(world.ask(0, &[FILE], WRITE).unwrap_err(), Blocked);
    world.hear(2);
    assert_eq!(world.get(0, FILE, WRITE), Some(Kind::Exclusive));
}

#[test]
fn readers_that_come_while_a_writer_waits_get_no_lease() {
    let mut world = World::new(3);
    world.get(1, FILE, Want::Shared);
    world.ask(0, &[FILE], WRITE).unwrap_err();
    assert_eq!(world.get(2, FILE, Want::Shared), None);
    assert_eq!(
        world.get(1, FILE, Want::Shared),
        None,
        "its own is being taken"
    );
    world.hear(1);
    assert_eq!(world.get(0, FILE, WRITE), Some(Kind::Exclusive));
}

#[test]
fn a_reader_becomes_a_writer_without_losing_what_it_remembers() {
    let mut world = World::new(1);
    world.get(0, FILE, Want::Shared);
    let answer = world.ask(0, &[FILE], WRITE).unwrap();
    assert_eq!(answer.grants[0].kind, Kind::Exclusive);
    assert_eq!(world.mode(0, FILE), Some(0));
    world.learn(0, &answer, &attr(FILE, 0));
    assert!(world.holder(0).is_writer(FILE));
}

#[test]
fn two_that_write_within_a_second_share_the_right() {
    for (gap, kind) in [(ms(999), Kind::Through), (ms(1000), Kind::Exclusive)] {
        let mut world = World::new(2);
        world.get(0, FILE, WRITE);
        world.pass(gap);
        world.ask(1, &[FILE], WRITE).unwrap_err();
        world.give_back(0, FILE);
        assert_eq!(world.get(1, FILE, WRITE), Some(kind), "after {gap:?}");
    }
}

/// Both mounts write through to [`FILE`].
fn contended() -> World {
    let mut world = World::new(2);
    world.get(0, FILE, WRITE);
    world.ask(1, &[FILE], WRITE).unwrap_err();
    world.give_back(0, FILE);
    for mount in 0..2 {
        assert_eq!(world.get(mount, FILE, WRITE), Some(Kind::Through));
    }
    assert_eq!(world.table.counts(), [0, 0, 2]);
    world
}

#[test]
fn who_shares_the_right_keeps_nothing_and_asks_every_second() {
    let mut world = contended();
    let now = world.now;
    assert_eq!(world.mode(0, FILE), None);
    assert_eq!(world.holder(0).caches_data(now, FILE), None);
    let late = now + ASK_AGAIN;
    assert_eq!(
        world.holder(0).begin_write(late - ms(1), FILE),
        WriteRight::Through
    );
    assert_eq!(world.holder(0).begin_write(late, FILE), WriteRight::Ask);
}

#[test]
fn who_has_written_alone_for_two_seconds_gets_the_file_for_itself() {
    let mut world = contended();
    world.live(ms(1999));
    assert_eq!(
        world.get(1, FILE, WRITE),
        Some(Kind::Through),
        "mount 0 may still write"
    );
    world.live(ms(1000));
    assert_eq!(world.ask(1, &[FILE], WRITE).unwrap_err(), Blocked);
    world.give_back(0, FILE);
    assert_eq!(world.get(1, FILE, WRITE), Some(Kind::Through));
    world.live(ms(1000));
    assert_eq!(world.get(1, FILE, WRITE), Some(Kind::Exclusive));
    assert_eq!(world.table.counts(), [0, 1, 0]);
}

#[test]
fn a_reader_beside_writers_gets_no_lease_until_they_are_idle() {
    let mut world = contended();
    world.mounts.push(crate::fixture::Mount {
        session: session(2),
        holder: lumeofs_lease::Holder::new(Default::default()),
    });
    world.begin(2);
    assert_eq!(world.get(2, FILE, Want::Shared), None);
    assert_eq!(world.table.unacknowledged(), 0);
    world.live(ms(2000));
    assert_eq!(world.get(2, FILE, Want::Shared), None);
    for mount in 0..2 {
        world.give_back(mount, FILE);
    }
    assert_eq!(world.get(2, FILE, Want::Shared), Some(Kind::Shared));
}

#[test]
fn a_change_that_names_a_file_waits_until_its_writer_has_published() {
    let mut world = World::new(2);
    world.get(0, FILE, WRITE);
    let (now, changer) = (world.now, session(1));
    let blocked = world.table.before_change(now, changer, &[FILE], &[]);
    assert_eq!(blocked, Err(Blocked));
    assert!(
        world
            .table
            .before_change(now, changer, &[OTHER], &[])
            .is_ok()
    );
    world.give_back(0, FILE);
    assert!(
        world
            .table
            .before_change(now, changer, &[FILE], &[])
            .is_ok()
    );
}

#[test]
fn nobody_begins_to_write_while_a_change_of_the_file_is_under_way() {
    let mut world = World::new(2);
    let now = world.now;
    for _ in 0..2 {
        world
            .table
            .before_change(now, session(1), &[FILE], &[])
            .unwrap();
    }
    assert_eq!(world.ask(0, &[FILE], WRITE).unwrap_err(), Blocked);
    assert!(world.ask(1, &[FILE], Want::Nothing).is_ok());
    world.table.change_over(session(1), &[FILE], &[]);
    assert_eq!(
        world.ask(0, &[FILE], WRITE).unwrap_err(),
        Blocked,
        "another is"
    );
    world.table.change_over(session(1), &[FILE], &[]);
    assert!(world.ask(0, &[FILE], WRITE).is_ok());
}

#[test]
fn readers_that_changes_have_kept_waiting_for_a_tenth_of_a_second_have_their_turn() {
    let mut world = World::new(2);
    world.get(1, FILE, Want::Shared);
    let may_change = |world: &mut World| {
        let now = world.now;
        let named = world
            .table
            .before_change(now, session(0), &[FILE], &[])
            .is_ok();
        let inside = world
            .table
            .before_change(now, session(0), &[], &[FILE])
            .is_ok();
        assert_eq!(named, inside);
        named
    };
    world.change(0, &[touched(FILE, 1)]);
    world.ask(0, &[FILE], Want::Nothing).unwrap_err();
    world.pass(ms(99));
    assert!(may_change(&mut world));
    world.ask(0, &[FILE], Want::Nothing).unwrap_err();
    world.pass(ms(1));
    assert!(!may_change(&mut world));
    world.pass(ms(999));
    assert!(may_change(&mut world), "who asked has gone away");
    world.ask(0, &[FILE], Want::Nothing).unwrap_err();
    assert!(may_change(&mut world), "another wait has begun");
    world.pass(ms(100));
    assert!(!may_change(&mut world));
    world.hear(1);
    world.ask(0, &[FILE], Want::Nothing).unwrap();
    assert!(may_change(&mut world), "they had it");
}

#[test]
fn size_and_times_that_are_not_published_survive_changes_of_others() {
    let mut world = World::new(2);
    world.get(0, FILE, WRITE);
    let now = world.now;
    world.holder(0).wrote(FILE, |attr| {
        (attr.size, attr.mtime, attr.ctime) = (100, time(5), time(5));
    });
    world.change(1, &[touched(FILE, 7)]);
    world.hear(0);
    let Cached::Is(shown) = world.holder(0).attr(now, FILE) else {
        panic!("it is in memory");
    };
    assert_eq!((shown.mode, shown.size, shown.mtime), (7, 100, time(5)));
    world.get(0, FILE, Want::Shared);
    let Cached::Is(shown) = world.holder(0).attr(now, FILE) else {
        panic!("it is in memory");
    };
    assert_eq!(shown.size, 100, "an answer does not know it either");
    assert!(
        !world.holder(0).published(FILE, 99, time(5)),
        "more was written"
    );
    assert!(world.holder(0).published(FILE, 100, time(5)));
    world.change(1, &[touched(FILE, 8)]);
    world.poll(0);
    let Cached::Is(shown) = world.holder(0).attr(now, FILE) else {
        panic!("it is in memory");
    };
    assert_eq!(
        (shown.mode, shown.size),
        (8, 0),
        "what the leader says counts again"
    );
}

#[test]
fn nothing_is_written_under_a_lease_whose_term_is_over() {
    let mut world = World::new(1);
    world.get(0, FILE, WRITE);
    world.pass(ms(4000));
    let now = world.now;
    assert_eq!(world.holder(0).begin_write(now, FILE), WriteRight::Wait);
    world.poll(0);
    assert_eq!(world.holder(0).begin_write(now, FILE), WriteRight::Buffered);
}

#[test]
#[should_panic(expected = "given back while it is written")]
fn a_lease_is_not_given_back_while_a_write_is_under_way() {
    let mut world = World::new(2);
    world.get(0, FILE, WRITE);
    let now = world.now;
    world.holder(0).begin_write(now, FILE);
    world.ask(1, &[FILE], WRITE).unwrap_err();
    world.give_back(0, FILE);
}

#[test]
fn a_session_that_keeps_a_write_lease_for_two_minutes_is_ended() {
    let mut world = World::new(2);
    world.get(0, FILE, WRITE);
    world.ask(1, &[FILE], Want::Shared).unwrap_err();
    world.live(GIVE_BACK_MAX - ms(1));
    let now = world.now;
    assert_eq!(world.table.tick(now), []);
    assert!(world.poll(0).renewed);
    world.pass(ms(1));
    let now = world.now;
    assert_eq!(world.table.tick(now), [Effect::End(session(0))]);
    assert!(!world.poll(0).renewed);
    assert_eq!(
        world.table.counts(),
        [0, 1, 0],
        "it is nobody else's until it is shut out"
    );
}
