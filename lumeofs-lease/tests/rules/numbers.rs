//! L2 and L3: who hears of a change, who waits for that, and which of two things that cross counts.

use crate::fixture::{DIR, FILE, OTHER, World, attr, entry, kind, ms, named, session, touched};
use lumeofs_base::{Attr, FileKind, InodeId};
use lumeofs_lease::{
    Blocked, Cached, Created, Kind, Learned, Release, TERM_OF_HOLDER, Want, What, WriteRight,
};
use lumeofs_meta::change::Change;

#[test]
fn what_came_with_a_lease_is_answered_from_memory_until_four_seconds_after_the_poll() {
    let mut world = World::new(1);
    assert_eq!(world.get(0, FILE, Want::Shared), Some(Kind::Shared));
    world.pass(TERM_OF_HOLDER - ms(1));
    assert_eq!(world.mode(0, FILE), Some(0));
    world.pass(ms(1));
    assert_eq!(world.mode(0, FILE), None);
    world.poll(0);
    assert_eq!(world.mode(0, FILE), Some(0), "the lease itself has no term");
}

#[test]
fn who_has_not_asserted_its_write_leases_gets_none() {
    let mut world = World::new(1);
    world.elect();
    world.table.session_closed(session(0));
    assert!(world.poll(0).restate);
    assert_eq!(world.ask(0, &[FILE], Want::Shared).unwrap().grants, []);
    assert_eq!(world.ask(0, &[FILE], Want::Write(FILE)).unwrap().grants, []);
    assert!(!world.poll(0).restate);
    assert_eq!(world.ask(0, &[FILE], Want::Shared).unwrap().grants.len(), 1);
}

#[test]
fn a_change_reaches_the_others_and_their_leases_stay() {
    let mut world = World::new(2);
    world.get(1, FILE, Want::Shared);
    world.change(0, &[touched(FILE, 7)]);
    assert_eq!(world.mode(1, FILE), Some(0));
    world.poll(1);
    assert_eq!(world.mode(1, FILE), Some(7));
    assert_eq!(world.table.counts(), [1, 0, 0]);
}

#[test]
fn a_reply_waits_for_all_who_were_told_and_for_nothing_later() {
    let mut world = World::new(3);
    for mount in 1..3 {
        world.get(mount, FILE, Want::Shared);
    }
    let first = world.change(0, &[touched(FILE, 1)]).unheard;
    world.hear(1);
    let second = world.change(0, &[touched(FILE, 2)]).unheard;
    let both = world.table.unheard();
    assert!(!world.table.is_heard(&first));
    world.hear(2);
    assert!(
        world.table.is_heard(&first),
        "it does not wait for what followed"
    );
    assert!(!world.table.is_heard(&second), "mount 1 has not said so");
    assert!(
        !world.table.is_heard(&both),
        "a repetition waits for everything"
    );
    world.hear(1);
    assert!(world.table.is_heard(&second));
    assert!(world.table.is_heard(&both));
}

#[test]
fn a_reply_does_not_wait_for_what_was_told_of_other_inodes() {
    let mut world = World::new(2);
    world.get(1, FILE, Want::Shared);
    world.get(1, OTHER, Want::Shared);
    world.change(0, &[touched(FILE, 1)]);
    let other = world.change(0, &[touched(OTHER, 1)]).unheard;
    let of_both = world.table.unheard_of([FILE, OTHER]);
    let recalls = world.poll(1).recalls;
    let mut poll = world.say(1);
    let id = recalls
        .iter()
        .find(|recall| recall.ino == OTHER)
        .unwrap()
        .id;
    poll.acks.retain(|ack| ack.id == id);
    world.deliver(1, &poll);
    assert!(world.table.is_heard(&other));
    assert!(!world.table.is_heard(&of_both));
    assert!(world.table.is_unheard(FILE));
}

#[test]
fn a_reply_waits_for_what_others_have_changed_there_before() {
    let mut world = World::new(2);
    world.get(1, FILE, Want::Shared);
    world.change(0, &[touched(FILE, 1)]);
    let own = world.change(1, &[touched(FILE, 2)]).unheard;
    assert!(
        !world.table.is_heard(&own),
        "it has not heard of the one before"
    );
    world.hear(1);
    assert!(world.table.is_heard(&own));
}

#[test]
fn the_changer_is_told_nothing() {
    let mut world = World::new(1);
    world.get(0, FILE, Want::Shared);
    let changed = world.change(0, &[touched(FILE, 1)]);
    assert!(world.table.is_heard(&changed.unheard));
    assert_eq!(world.poll(0).recalls, []);
    world.did(0, &changed, &[touched(FILE, 1)]);
    assert_eq!(world.mode(0, FILE), Some(1));
}

#[test]
fn a_query_waits_until_all_have_heard_what_it_would_show() {
    let mut world = World::new(2);
    world.get(1, FILE, Want::Shared);
    world.change(0, &[touched(FILE, 1)]);
    assert_eq!(world.ask(0, &[FILE], Want::Nothing).unwrap_err(), Blocked);
    assert!(world.ask(0, &[OTHER], Want::Nothing).is_ok());
    world.hear(1);
    assert!(world.ask(0, &[FILE], Want::Nothing).is_ok());
}

#[test]
fn one_other_holder_may_show_a_change_at_once_two_only_forget() {
    for others in [1, 2] {
        let mut world = World::new(3);
        for mount in 0..=others {
            world.get(mount, FILE, Want::Shared);
        }
        world.change(0, &[touched(FILE, 1)]);
        world.poll(1);
        let expected = (others == 1).then_some(1);
        assert_eq!(world.mode(1, FILE), expected, "{others} others");
    }
}

#[test]
fn what_others_have_not_heard_of_before_is_not_shown_by_the_only_holder() {
    let mut world = World::new(3);
    world.get(1, FILE, Want::Shared);
    world.get(2, OTHER, Want::Shared);
    world.change(0, &[touched(OTHER, 1)]);
    world.change(0, &[touched(FILE, 1)]);
    let recalls = world.poll(1).recalls;
    assert!(
        !recalls[0].is_alone,
        "it would show what depends on a change that mount 2 knows not"
    );
    world.hear(1);
    world.hear(2);
    world.get(1, FILE, Want::Shared);
    world.change(0, &[touched(OTHER, 2)]);
    world.hear(2);
    world.change(0, &[touched(FILE, 2)]);
    assert!(world.poll(1).recalls[0].is_alone);
}

#[test]
fn an_answer_that_a_change_overtook_is_not_remembered() {
    let mut world = World::new(2);
    let old = world.ask(1, &[FILE], Want::Shared).unwrap();
    world.change(0, &[touched(FILE, 1)]);
    world.hear(1);
    assert!(
        world
            .holder(1)
            .is_overtaken(old.generation, old.number, FILE)
    );
    world.learn(1, &old, &attr(FILE, 0));
    assert_eq!(world.mode(1, FILE), None);
    let released = world.say(1).released;
    assert_eq!(
        released.len(),
        1,
        "the table believes that the grant is held: {released:?}"
    );
}

#[test]
fn an_old_answer_does_not_replace_a_newer_one() {
    let mut world = World::new(2);
    let old = world.ask(1, &[FILE], Want::Shared).unwrap();
    world.get(1, FILE, Want::Shared);
    world.change(0, &[touched(FILE, 1)]);
    world.hear(1);
    world.learn(1, &old, &attr(FILE, 0));
    assert_eq!(world.mode(1, FILE), Some(1));
}

#[test]
fn a_write_lease_that_a_recall_overtook_is_not_taken() {
    for before in [Want::Shared, Want::Write(FILE)] {
        let mut world = World::new(2);
        world.get(0, FILE, before);
        let old = world.ask(0, &[FILE], Want::Write(FILE)).unwrap();
        assert_eq!(old.grants[0].kind, Kind::Exclusive);
        assert_eq!(world.ask(1, &[FILE], Want::Shared).unwrap_err(), Blocked);
        match before {
            Want::Shared => world.hear(0),
            _ => world.give_back(0, FILE),
        }
        world.learn(0, &old, &attr(FILE, 0));
        assert!(!world.holder(0).is_writer(FILE), "a reader has been let in");
        assert_eq!(world.get(1, FILE, Want::Shared), Some(Kind::Shared));
    }
}

#[test]
fn an_answer_of_the_own_changes_number_is_not_overtaken() {
    let mut world = World::new(1);
    world.get(0, FILE, Want::Shared);
    let changed = world.change(0, &[touched(FILE, 1)]);
    world.did(0, &changed, &[touched(FILE, 1)]);
    let answer = world.ask(0, &[FILE], Want::Nothing).unwrap();
    assert_eq!(answer.number, changed.number, "nothing has happened since");
    let holder = world.holder(0);
    assert!(!holder.is_overtaken(answer.generation, answer.number, FILE));
    assert!(holder.is_overtaken(answer.generation, answer.number - 1, FILE));
    assert!(!holder.is_overtaken(answer.generation, 1, OTHER));
}

#[test]
fn a_release_does_not_take_a_later_grant() {
    let mut world = World::new(1);
    let first = world.ask(0, &[FILE], Want::Shared).unwrap();
    let second = world.ask(0, &[FILE], Want::Shared).unwrap();
    for (answer, left) in [(first, 1), (second, 0)] {
        let mut poll = world.say(0);
        let number = answer.grants[0].number;
        poll.released = vec![Release {
            ino: FILE,
            number,
            keeps_shared: false,
        }];
        world.deliver(0, &poll);
        assert_eq!(world.table.counts(), [left, 0, 0]);
    }
}

#[test]
fn names_and_listings_follow_changes() {
    let mut world = World::new(2);
    world.list(1, &[entry(b"a", 3, FILE)]);
    world.get(1, FILE, Want::Shared);
    world.get(1, OTHER, Want::Shared);
    let now = world.now;
    let names = |world: &mut World| match world.holder(1).listing(now, DIR, 0, 10) {
        Cached::Is(listing) => listing
            .entries
            .into_iter()
            .map(|entry| entry.name)
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let is = |world: &mut World, name: &[u8]| world.holder(1).lookup(now, DIR, name);
    assert_eq!(
        is(&mut world, b"b"),
        Cached::Absent,
        "the listing is complete"
    );
    world.change(0, &[named(b"b", 4, Some(OTHER))]);
    world.hear(1);
    assert_eq!(is(&mut world, b"b"), Cached::Is(attr(OTHER, 0)));
    assert_eq!(names(&mut world), [b"a".to_vec(), b"b".to_vec()]);
    world.change(0, &[named(b"a", 3, None)]);
    world.hear(1);
    assert_eq!(is(&mut world, b"a"), Cached::Absent);
    assert_eq!(names(&mut world), [b"b".to_vec()]);
}

#[test]
fn a_listing_that_is_older_than_a_change_it_lacks_is_not_shown() {
    let mut world = World::new(2);
    world.list(1, &[]);
    let old = world.ask(1, &[DIR], Want::Shared).unwrap();
    world.change(0, &[named(b"a", 3, Some(FILE))]);
    world.hear(1);
    let now = world.now;
    let learned = Learned::Entries {
        ino: DIR,
        after: 0,
        entries: &[],
        more: false,
        inodes: &[],
    };
    let holder = world.holder(1);
    holder.learn(now, old.generation, &old.grants, learned);
    let is_shown =
        matches!(holder.listing(now, DIR, 0, 10), Cached::Is(list) if list.entries.is_empty());
    assert!(!is_shown);
}

#[test]
fn a_change_of_extended_attributes_makes_them_forgotten() {
    let mut world = World::new(2);
    let answer = world.ask(1, &[FILE], Want::Shared).unwrap();
    let now = world.now;
    let learned = Learned::Xattr(FILE, b"user.a", Some(b"1"));
    let holder = world.holder(1);
    holder.learn(now, answer.generation, &answer.grants, learned);
    assert_eq!(
        holder.xattr(now, FILE, b"user.a"),
        Cached::Is(b"1".to_vec())
    );
    let change = Change::Xattr { ino: FILE };
    world.change(0, &[change]);
    let recalls = world.poll(1).recalls;
    assert_eq!(recalls[0].what, What::Xattr);
    assert_eq!(world.holder(1).xattr(now, FILE, b"user.a"), Cached::Unknown);
}

#[test]
fn attributes_that_say_there_are_no_others_answer_for_those() {
    let mut world = World::new(2);
    let bare = Attr {
        has_xattrs: false,
        ..attr(FILE, 7)
    };
    let answer = world.ask(1, &[FILE], Want::Shared).unwrap();
    let now = world.now;
    let holder = world.holder(1);
    holder.learn(now, answer.generation, &answer.grants, Learned::Attr(&bare));
    assert_eq!(holder.xattr(now, FILE, b"user.a"), Cached::Absent);
    assert_eq!(holder.xattr_names(now, FILE), Cached::Is(Vec::new()));
    let change = Change::Xattr { ino: FILE };
    world.change(0, &[change, touched(FILE, 7)]);
    world.poll(1);
    let holder = world.holder(1);
    assert_eq!(holder.xattr(now, FILE, b"user.a"), Cached::Unknown);
    assert_eq!(holder.xattr_names(now, FILE), Cached::Unknown);
}

#[test]
fn a_new_directory_is_known_to_be_empty() {
    let mut world = World::new(1);
    let attr = attr(DIR, 7);
    let name = Change::Name {
        parent: InodeId(1),
        name: b"dir".to_vec(),
        entry: Some(entry(b"dir", 1, DIR)),
    };
    let made = [name, Change::Attr(attr.clone())];
    assert_eq!(kind(DIR), FileKind::Directory);
    let created = Created::Now {
        attr: &attr,
        above: None,
    };
    let changed = world.table.changed(world.now, session(0), &made, &created);
    world.did(0, &changed, &made);
    let now = world.now;
    assert_eq!(world.holder(0).lookup(now, DIR, b"a"), Cached::Absent);
    assert_eq!(world.mode(0, DIR), Some(7));
    assert_eq!(world.mode(0, InodeId(1)), None);
}

#[test]
fn a_grant_that_comes_after_a_later_one_was_declined_is_not_taken() {
    let mut world = World::new(2);
    let late = world.ask(0, &[FILE], Want::Write(FILE)).unwrap();
    let declined = world.ask(0, &[FILE], Want::Shared).unwrap();
    let holder = world.holder(0);
    holder.decline(declined.generation, &declined.grants);
    world.poll(0);
    world.learn(0, &late, &attr(FILE, 1));
    let now = world.now;
    assert_eq!(world.holder(0).begin_write(now, FILE), WriteRight::Ask);
}
