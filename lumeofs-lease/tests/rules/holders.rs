//! What a holder does alone: own changes are busy, and what it remembers is bounded.

use crate::fixture::{DIR, FILE, OTHER, World, attr, entry, named, touched};
use lumeofs_base::{InodeId, Timestamp};
use lumeofs_lease::{Act, Cached, HolderLimits, Learned, TableLimits, Touch, Want, WriteRight};

fn limited(inodes_max: usize, items_max: usize) -> World {
    let limits = HolderLimits {
        inodes_max,
        items_max,
    };
    World::with(1, TableLimits::default(), limits)
}

fn get_all(world: &mut World, inodes: std::ops::Range<u64>) {
    for ino in inodes.map(InodeId) {
        world.get(0, ino, Want::Shared);
    }
}

fn has(world: &mut World, ino: u64) -> bool {
    world.mode(0, InodeId(ino)).is_some()
}

#[test]
fn an_inode_that_an_own_change_may_touch_is_not_answered_until_the_change_is_known() {
    let mut world = World::new(1);
    world.get(0, FILE, Want::Shared);
    world.get(0, OTHER, Want::Shared);
    let touches = [Touch::Inode(FILE)];
    for _ in 0..2 {
        world.holder(0).begin_change(&touches);
    }
    assert_eq!(world.mode(0, FILE), None);
    let now = world.now;
    assert_eq!(world.holder(0).caches_data(now, FILE), None);
    assert_eq!(world.mode(0, OTHER), Some(0));
    world.holder(0).end_change(&touches);
    assert_eq!(world.mode(0, FILE), None, "another is under way");
    let changed = world.change(0, &[touched(FILE, 1)]);
    world.did(0, &changed, &[touched(FILE, 1)]);
    world.holder(0).end_change(&touches);
    assert_eq!(world.mode(0, FILE), Some(1));
}

/// [`DIR`] with the name `a` of [`FILE`], all of it in memory, and [`OTHER`] by itself.
fn tree() -> World {
    let mut world = World::new(2);
    world.list(0, &[entry(b"a", 3, FILE)]);
    for ino in [DIR, FILE, OTHER] {
        world.get(0, ino, Want::Shared);
    }
    world
}

#[test]
fn a_name_that_an_own_change_touches_is_busy_with_its_directory_and_what_it_means() {
    let mut world = tree();
    let now = world.now;
    let touches = [Touch::Name(DIR, b"a".to_vec())];
    world.holder(0).begin_change(&touches);
    assert_eq!(world.holder(0).lookup(now, DIR, b"a"), Cached::Unknown);
    assert_eq!(world.holder(0).lookup(now, DIR, b"b"), Cached::Absent);
    assert_eq!(world.holder(0).listing(now, DIR, 0, 10), Cached::Unknown);
    assert_eq!(
        world.mode(0, FILE),
        None,
        "it may be in memory by another name"
    );
    assert_eq!(world.mode(0, OTHER), Some(0));
    world.holder(0).end_change(&touches);
    assert_eq!(
        world.holder(0).lookup(now, DIR, b"a"),
        Cached::Is(attr(FILE, 0))
    );
    assert_eq!(world.mode(0, FILE), Some(0));
}

#[test]
fn everything_is_busy_while_it_is_not_known_what_a_changed_name_means() {
    let mut world = World::new(1);
    world.get(0, OTHER, Want::Shared);
    let touches = [Touch::Name(DIR, b"a".to_vec())];
    world.holder(0).begin_change(&touches);
    assert_eq!(world.mode(0, OTHER), None);
    world.holder(0).end_change(&touches);
    assert_eq!(world.mode(0, OTHER), Some(0));
}

#[test]
fn what_a_busy_name_comes_to_mean_meanwhile_is_busy_too() {
    let mut world = tree();
    let touches = [Touch::Name(DIR, b"b".to_vec())];
    world.holder(0).begin_change(&touches);
    assert_eq!(world.mode(0, OTHER), Some(0));
    world.change(1, &[named(b"b", 4, Some(OTHER))]);
    world.hear(0);
    assert_eq!(world.mode(0, OTHER), None);
    world.holder(0).end_change(&touches);
    assert_eq!(world.mode(0, OTHER), Some(0));
}

#[test]
fn a_directory_that_is_forgotten_leaves_its_busy_names_unknown() {
    let mut world = tree();
    let touches = [Touch::Name(DIR, b"b".to_vec())];
    world.holder(0).begin_change(&touches);
    world.change(1, &[lumeofs_meta::change::Change::Gone { ino: DIR }]);
    world.poll(0);
    assert_eq!(world.mode(0, OTHER), None, "the name may mean anything now");
}

#[test]
fn an_own_change_that_a_foreign_one_overtook_makes_forget() {
    let mut world = World::new(2);
    world.get(0, FILE, Want::Shared);
    let own = world.change(0, &[touched(FILE, 1)]);
    world.change(1, &[touched(FILE, 2)]);
    world.hear(0);
    world.did(0, &own, &[touched(FILE, 1)]);
    assert_eq!(world.mode(0, FILE), Some(2));
}

#[test]
fn an_own_change_from_before_the_lease_is_not_shown_under_it() {
    let limits = HolderLimits {
        inodes_max: 1,
        items_max: 1000,
    };
    let mut world = World::with(2, TableLimits::default(), limits);
    world.get(0, DIR, Want::Shared);
    let own = world.change(0, &[touched(DIR, 1)]);
    world.get(0, FILE, Want::Shared);
    world.get(0, OTHER, Want::Shared);
    world.poll(0);
    world.change(1, &[touched(DIR, 2)]);
    world.list(0, &[]);
    world.did(0, &own, &[touched(DIR, 1)]);
    assert_eq!(
        world.mode(0, DIR),
        None,
        "the change in between was not heard"
    );
}

#[test]
fn leases_that_were_not_used_make_room_and_the_leader_hears_so() {
    let mut world = limited(3, 1000);
    get_all(&mut world, 1..4);
    // All were used: the hand comes by once before it takes the first.
    get_all(&mut world, 4..5);
    assert_eq!(world.holder(0).len(), 3);
    assert!(!has(&mut world, 1));
    assert!(has(&mut world, 2));
    get_all(&mut world, 5..6);
    assert!(has(&mut world, 2), "it was used since");
    assert!(!has(&mut world, 3));
    assert!(
        world
            .holder(0)
            .take_acts()
            .contains(&Act::DropData(InodeId(3)))
    );
    world.poll(0);
    assert_eq!(world.table.counts(), [3, 0, 0]);
}

#[test]
fn leases_in_use_do_not_make_room() {
    let mut world = limited(3, 1000);
    let now = world.now;
    for ino in [1, 2].map(InodeId) {
        world.get(0, ino, Want::Write(ino));
    }
    world.holder(0).begin_write(now, InodeId(1));
    world.holder(0).wrote(InodeId(2), |attr| {
        (attr.size, attr.mtime) = (1, Timestamp::default())
    });
    world.get(0, InodeId(3), Want::Shared);
    assert!(world.holder(0).open(now, InodeId(3)));
    get_all(&mut world, 4..20);
    for ino in 1..4 {
        assert!(world.holder(0).is_covered(now, InodeId(ino)), "{ino}");
    }
    assert_eq!(world.holder(0).len(), 3);
}

#[test]
fn what_was_granted_to_write_just_now_stays_though_all_else_is_in_use() {
    let mut world = limited(3, 1000);
    let now = world.now;
    for ino in 1..9 {
        world.get(0, InodeId(ino), Want::Shared);
        world.holder(0).open(now, InodeId(ino));
    }
    let file = InodeId(20);
    world.get(0, file, Want::Write(file));
    get_all(&mut world, 30..40);
    assert_eq!(world.holder(0).begin_write(now, file), WriteRight::Buffered);
}

#[test]
fn names_and_values_make_room_too() {
    let mut world = limited(1000, 10);
    let entries: Vec<_> = (0..8)
        .map(|n| entry(&[b'a' + n], 3 + u64::from(n), FILE))
        .collect();
    world.list(0, &entries);
    let now = world.now;
    assert!(matches!(
        world.holder(0).listing(now, DIR, 0, 100),
        Cached::Is(_)
    ));
    learn_value(&mut world, FILE, &[0; 10]);
    learn_value(&mut world, FILE, &[0; 20]);
    assert_eq!(
        world.holder(0).len(),
        2,
        "a value in place of another is no more"
    );
    learn_value(&mut world, OTHER, &[0; 512]);
    assert!(
        !world.holder(0).is_covered(now, DIR),
        "a long value counts as three"
    );
    assert_eq!(world.holder(0).len(), 2);
}

fn learn_value(world: &mut World, ino: InodeId, value: &[u8]) {
    let answer = world.ask(0, &[ino], Want::Shared).unwrap();
    let now = world.now;
    let learned = Learned::Xattr(ino, b"user.a", Some(value));
    world
        .holder(0)
        .learn(now, answer.generation, &answer.grants, learned);
}

#[test]
fn a_long_target_or_list_of_attributes_makes_room() {
    let long = vec![b'x'; 2560];
    let names = [long.clone()];
    for learned in [
        Learned::Target(FILE, &long),
        Learned::XattrNames(FILE, &names),
    ] {
        let mut world = limited(1000, 10);
        world.get(0, OTHER, Want::Shared);
        let answer = world.ask(0, &[FILE], Want::Shared).unwrap();
        let now = world.now;
        world
            .holder(0)
            .learn(now, answer.generation, &answer.grants, learned);
        assert_eq!(world.holder(0).len(), 0, "{learned:?}");
        world.get(0, OTHER, Want::Shared);
        assert_eq!(world.holder(0).len(), 1, "nothing is left of it");
    }
}

#[test]
fn what_is_too_old_is_known_of_more_inodes_than_are_remembered() {
    const FORGOTTEN: u64 = 5000;
    let mut world = limited(1, 1000);
    let first = world.ask(0, &[InodeId(1)], Want::Shared).unwrap();
    get_all(&mut world, 1..FORGOTTEN);
    let now = world.now;
    let old = attr(InodeId(1), 0);
    world.learn(0, &first, &old);
    assert!(
        !world.holder(0).is_covered(now, InodeId(1)),
        "it was released since"
    );
    let number = first.number;
    let holder = world.holder(0);
    assert!(holder.is_overtaken(first.generation, number, InodeId(1)));
    assert!(
        holder.is_overtaken(first.generation, number, InodeId(1_000_000)),
        "by rights or not"
    );
    get_all(&mut world, FORGOTTEN..FORGOTTEN + 1);
    assert!(has(&mut world, FORGOTTEN), "a new answer counts");
}
