//! L1, S2 and S3 with leases: what silence ends, and what it does not.

use crate::fixture::{FILE, OTHER, World, attr, ms, session, touched, unlinked};
use lumeofs_base::{SessionId, Timestamp};
use lumeofs_lease::{Act, Blocked, Effect, Held, Kind, TERM, Want, WriteRight};

const WRITE: Want = Want::Write(FILE);

#[test]
fn shared_leases_of_a_silent_session_are_void_after_its_term_and_nobody_waits_any_more() {
    let mut world = World::new(2);
    world.get(1, FILE, Want::Shared);
    let unheard = world.change(0, &[touched(FILE, 1)]).unheard;
    world.pass(TERM - ms(1));
    let now = world.now;
    assert_eq!(world.table.tick(now), []);
    assert!(!world.table.is_heard(&unheard));
    world.pass(ms(1));
    let now = world.now;
    assert_eq!(world.table.tick(now), [Effect::Restate(session(1))]);
    assert!(world.table.is_heard(&unheard));
    assert_eq!(world.table.counts(), [0, 0, 0]);
}

#[test]
fn a_session_whose_leases_are_void_learns_so_and_begins_with_nothing() {
    let mut world = World::new(2);
    world.get(1, FILE, Want::Shared);
    let former = world.ask(1, &[OTHER], Want::Shared).unwrap();
    world.change(0, &[touched(FILE, 1)]);
    world.pass(TERM);
    let now = world.now;
    world.table.tick(now);
    world.holder(1).take_acts();
    assert!(world.poll(1).restate);
    let acts = world.holder(1).take_acts();
    assert!(acts.contains(&Act::RestateOpens) && acts.contains(&Act::DropData(FILE)));
    assert_eq!(world.holder(1).len(), 0);
    world.learn(1, &former, &attr(OTHER, 0));
    assert!(!world.poll(1).restate);
    world.learn(1, &former, &attr(OTHER, 0));
    assert_eq!(
        world.mode(1, OTHER),
        None,
        "an answer of the former generation"
    );
    assert!(
        world
            .holder(1)
            .is_overtaken(former.generation, u64::MAX, OTHER)
    );
    assert_eq!(world.get(1, FILE, Want::Shared), Some(Kind::Shared));
}

#[test]
fn a_silent_session_that_owes_nothing_keeps_its_leases() {
    let mut world = World::new(2);
    world.get(1, FILE, Want::Shared);
    world.pass(TERM * 10);
    let now = world.now;
    assert_eq!(world.table.tick(now), []);
    assert_eq!(world.table.counts(), [1, 0, 0]);
}

#[test]
fn a_silent_session_is_ended_for_a_write_lease_and_has_it_until_it_is_closed() {
    let mut world = World::new(2);
    world.get(1, FILE, WRITE);
    assert_eq!(world.ask(0, &[FILE], Want::Shared).unwrap_err(), Blocked);
    world.pass(TERM);
    let end = Effect::End(session(1));
    let now = world.now;
    let effects = world.table.tick(now);
    assert_eq!(effects, [end.clone(), Effect::Restate(session(1))]);
    assert_eq!(world.table.tick(now + TERM - ms(1)), []);
    let again = world.table.tick(now + TERM);
    assert_eq!(again, [end], "the driver may have failed");
    assert_eq!(world.ask(0, &[FILE], Want::Shared).unwrap_err(), Blocked);
    assert_eq!(
        world.table.debtors().into_iter().collect::<Vec<_>>(),
        [session(1)]
    );
    world.table.session_ended(session(1));
    assert_eq!(world.ask(0, &[FILE], Want::Shared).unwrap_err(), Blocked);
    world.table.session_closed(session(1));
    assert_eq!(world.get(0, FILE, Want::Shared), Some(Kind::Shared));
}

#[test]
fn a_session_that_has_ended_is_closed_only_when_its_term_is_over() {
    let mut world = World::new(1);
    let (table, now) = (&world.table, world.now);
    assert!(!table.may_be_closed(now + TERM - ms(1), session(0)));
    assert!(table.may_be_closed(now + TERM, session(0)));
    assert!(
        table.may_be_closed(now, SessionId(99)),
        "nothing was ever heard of it"
    );
    world.pass(ms(3000));
    world.poll(0);
    assert!(
        !world.table.may_be_closed(now + TERM, session(0)),
        "its term counts anew"
    );
}

#[test]
fn a_session_that_relies_on_a_former_leader_is_not_closed_within_its_term() {
    let mut world = World::new(1);
    world.elect();
    world.table.session_ended(session(0));
    let (table, now) = (&world.table, world.now);
    assert!(!table.may_be_closed(now + TERM - ms(1), session(0)));
    assert!(table.may_be_closed(now + TERM, session(0)));
}

#[test]
fn a_poll_that_was_overtaken_counts_for_nothing() {
    let mut world = World::new(2);
    world.get(1, FILE, Want::Shared);
    let unheard = world.change(0, &[touched(FILE, 1)]).unheard;
    world.poll(1);
    let late = world.say(1);
    assert_eq!(late.acks.len(), 1);
    world.poll(1);
    let now = world.now;
    assert_eq!(world.table.poll(now, session(1), &late), None);
    assert!(!world.table.is_heard(&unheard));
    world.holder(1).unheard(late);
    world.poll(1);
    assert!(world.table.is_heard(&unheard), "it was said again");
}

#[test]
fn who_polls_but_does_not_say_that_it_heard_loses_its_term() {
    let mut world = World::new(2);
    world.get(1, FILE, Want::Shared);
    world.change(0, &[touched(FILE, 1)]);
    let poll_in_vain = |world: &mut World| {
        let mut poll = world.say(1);
        let acks = std::mem::take(&mut poll.acks);
        let renewed = world.deliver(1, &poll).renewed;
        poll.acks = acks;
        world.holder(1).unheard(poll);
        renewed
    };
    world.pass(TERM - ms(1));
    assert!(poll_in_vain(&mut world));
    world.pass(ms(1));
    assert!(!poll_in_vain(&mut world));
    world.hear(1);
    assert!(world.poll(1).renewed);
}

#[test]
fn a_term_counts_from_the_sending_at_the_holder_and_from_the_receipt_at_the_table() {
    let mut world = World::new(2);
    let poll = world.say(1);
    let sent = world.now;
    world.pass(ms(1500));
    let now = world.now;
    let answer = world.table.poll(now, session(1), &poll).unwrap().answer;
    world.holder(1).heard(sent, false, answer);
    assert!(world.holder(1).is_valid(sent + ms(3999)));
    assert!(!world.holder(1).is_valid(sent + ms(4000)));
    assert!(!world.table.may_be_closed(sent + ms(6499), session(1)));
    assert!(world.table.may_be_closed(sent + ms(6500), session(1)));
}

#[test]
fn write_leases_in_use_are_asserted_in_a_new_generation_and_idle_ones_are_not() {
    let mut world = World::new(1);
    world.get(0, FILE, WRITE);
    world.get(0, OTHER, Want::Write(OTHER));
    let now = world.now;
    assert_eq!(world.holder(0).begin_write(now, FILE), WriteRight::Buffered);
    world.holder(0).wrote(FILE, |attr| {
        (attr.size, attr.mtime) = (1, Timestamp::default())
    });
    world.holder(0).end_write(FILE);
    world.elect();
    assert!(world.poll(0).restate);
    let kind = Kind::Exclusive;
    let poll = world.say(0);
    assert_eq!(poll.asserts, Some(vec![Held { ino: FILE, kind }]));
    assert_eq!(world.holder(0).begin_write(now, FILE), WriteRight::Wait);
    world.deliver(0, &poll);
    assert_eq!(world.table.counts(), [0, 1, 0]);
    assert_eq!(
        world.holder(0).begin_write(now, FILE),
        WriteRight::Ask,
        "attributes may have changed"
    );
    assert_eq!(world.get(0, FILE, WRITE), Some(Kind::Exclusive));
    assert_eq!(world.holder(0).begin_write(now, FILE), WriteRight::Buffered);
}

#[test]
fn a_recall_that_was_pending_when_a_generation_began_is_asked_anew() {
    let mut world = World::new(2);
    world.get(1, FILE, WRITE);
    world.holder(1).wrote(FILE, |attr| {
        (attr.size, attr.mtime) = (1, Timestamp::default())
    });
    world.ask(0, &[FILE], Want::Shared).unwrap_err();
    world.poll(1);
    world.pass(TERM);
    let now = world.now;
    let effects = world.table.tick(now);
    assert!(effects.contains(&Effect::Restate(session(1))));
    world.holder(1).take_acts();
    world.begin(1);
    world.give_back(1, FILE);
    assert_eq!(world.get(0, FILE, Want::Shared), Some(Kind::Shared));
}

#[test]
fn acknowledgements_of_a_former_leadership_mean_nothing() {
    let mut world = World::new(2);
    let open = |world: &mut World| {
        world.get(1, FILE, Want::Shared);
        let now = world.now;
        world.holder(1).open(now, FILE);
    };
    open(&mut world);
    world.change(0, &[unlinked(FILE)]);
    world.poll(1);
    let mut late = world.say(1);
    let id = late.acks[0].id;
    assert!(late.acks[0].open);
    world.elect();
    for mount in 0..2 {
        world.begin(mount);
    }
    open(&mut world);
    // Its numbers come to those of the former one.
    while world.table.number() + 1 < id {
        world.get(0, OTHER, Want::Shared);
    }
    world.change(0, &[unlinked(FILE)]);
    late.serial = u64::MAX;
    let now = world.now;
    let heard = world.table.poll(now, session(1), &late).unwrap();
    assert!(heard.opened.is_empty());
}

#[test]
fn a_session_that_was_replaced_has_nothing() {
    let mut world = World::new(1);
    world.get(0, FILE, WRITE);
    world.holder(0).wrote(FILE, |attr| {
        (attr.size, attr.mtime) = (1, Timestamp::default())
    });
    world.holder(0).reset();
    assert!(world.holder(0).is_empty());
    assert_eq!(world.asserted(0), []);
    assert!(world.holder(0).take_acts().contains(&Act::DropData(FILE)));
    let now = world.now;
    assert!(!world.holder(0).is_valid(now));
}
