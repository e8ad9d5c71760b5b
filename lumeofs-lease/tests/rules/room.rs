//! L7: how sessions share the room for leases.

use crate::fixture::{FILE, World, session};
use lumeofs_base::InodeId;
use lumeofs_lease::{Blocked, HolderLimits, Kind, TableLimits, Want};

const LIMITS: TableLimits = TableLimits {
    leases_max: 400,
    leases_per_session_max: 200,
};

fn world(mounts: usize) -> World {
    World::with(mounts, LIMITS, HolderLimits::default())
}

fn tick(world: &mut World) {
    let now = world.now;
    assert_eq!(world.table.tick(now), []);
}

/// A mount reads this many new inodes. Returns of how many it got leases.
fn read_new(world: &mut World, mount: usize, count: u64) -> usize {
    let first = 10_000 * (mount as u64 + 1) + world.table.number() * 1_000_000;
    let inodes = (first..first + count).map(InodeId);
    inodes
        .filter(|ino| world.get(mount, *ino, Want::Shared).is_some())
        .count()
}

#[test]
fn leases_are_counted_by_kind() {
    let mut world = world(2);
    world.get(0, InodeId(1), Want::Shared);
    world.get(1, InodeId(1), Want::Shared);
    world.get(0, FILE, Want::Write(FILE));
    assert_eq!(world.table.counts(), [2, 1, 0]);
    assert_eq!(world.ask(1, &[FILE], Want::Shared).unwrap_err(), Blocked);
    world.give_back(0, FILE);
    assert_eq!(world.table.counts(), [3, 0, 0], "it was downgraded");
    world.get(0, FILE, Want::Write(FILE));
    assert_eq!(world.table.counts(), [2, 1, 0]);
    world.table.session_closed(session(0));
    assert_eq!(world.table.counts(), [1, 0, 0]);
    world.elect();
    assert_eq!(world.table.counts(), [0, 0, 0]);
}

#[test]
fn a_session_gets_a_quarter_more_than_it_is_told_and_gives_that_up_with_its_polls() {
    let mut world = world(2);
    assert_eq!(world.poll(0).leases_max, 200);
    assert_eq!(read_new(&mut world, 0, 260), 250);
    world.poll(0);
    assert_eq!(world.holder(0).len(), 200);
    world.poll(0);
    assert_eq!(world.table.counts(), [200, 0, 0]);
    assert_eq!(read_new(&mut world, 0, 10), 10);
}

#[test]
fn a_session_that_has_less_finds_room_when_others_have_filled_the_table() {
    let mut world = world(4);
    for mount in 0..2 {
        read_new(&mut world, mount, 200);
    }
    assert_eq!(read_new(&mut world, 2, 10), 0, "it is full");
    tick(&mut world);
    for mount in 0..2 {
        assert_eq!(world.poll(mount).leases_max, 150, "nobody else has any");
        world.poll(mount);
    }
    assert_eq!(world.table.counts(), [300, 0, 0]);
    tick(&mut world);
    // Those who had most cannot take what is free now.
    for mount in 0..2 {
        read_new(&mut world, mount, 100);
    }
    tick(&mut world);
    assert_eq!(read_new(&mut world, 2, 10), 10);
}

#[test]
fn when_all_want_more_than_there_is_all_get_the_same() {
    let mut world = world(5);
    for _ in 0..20 {
        for mount in 0..5 {
            read_new(&mut world, mount, 20);
            world.poll(mount);
        }
        tick(&mut world);
    }
    for mount in 0..5 {
        let has = world.holder(mount).len();
        assert!((50..=75).contains(&has), "mount {mount} has {has}");
    }
}

#[test]
fn an_idle_session_keeps_what_it_has_and_its_share_goes_to_the_others() {
    let mut world = world(3);
    assert_eq!(read_new(&mut world, 2, 20), 20);
    for _ in 0..20 {
        for mount in 0..2 {
            read_new(&mut world, mount, 50);
            world.poll(mount);
        }
        tick(&mut world);
        world.poll(2);
    }
    assert_eq!(world.holder(2).len(), 20);
    for mount in 0..2 {
        let has = world.holder(mount).len();
        assert!((140..=190).contains(&has), "mount {mount} has {has}");
    }
}

#[test]
fn a_lease_to_write_is_not_refused_for_want_of_room() {
    let mut world = world(3);
    for mount in 0..2 {
        read_new(&mut world, mount, 200);
    }
    let kind = world.get(2, FILE, Want::Write(FILE));
    assert_eq!(kind, Some(Kind::Exclusive));
    assert_eq!(world.table.counts(), [400, 1, 0]);
}

#[test]
fn the_limits_outlive_a_change_of_leader() {
    let mut world = world(1);
    world.elect();
    world.begin(0);
    assert_eq!(world.poll(0).leases_max, 200);
}
