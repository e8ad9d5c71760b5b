//! One misfortune each, with everything else as it should be.

use crate::world::{Disk, Event, World, id, index, ms};
use lumeofs_replica::Role;
use std::time::Duration;

const SEEDS: u64 = 6;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Three members, all well, clients at work until the end.
fn world(seed: u64) -> World {
    let mut world = World::new(seed, 3, 0, Duration::ZERO);
    world.clients_until = seconds(120);
    world.run_until(seconds(4));
    assert!(world.clients.acknowledged > 0, "nothing works");
    world
}

/// As [`world`], with the third member dead and no longer in sync.
fn world_of_two(seed: u64) -> World {
    let mut world = world(seed);
    let third = (0..3).find(|node| !is_first_two(&world, *node)).unwrap();
    world.crash_node(third);
    world.run_until(seconds(9));
    assert_eq!(world.config.in_sync.len(), 2, "it is removed");
    world
}

/// The primary and the member that would be next.
fn is_first_two(world: &World, node: usize) -> bool {
    let primary = index(world.config.primary);
    node == primary || node == (primary + 1) % 3
}

fn secondary(world: &World) -> usize {
    let in_sync = world.config.in_sync.iter();
    index(
        *in_sync
            .clone()
            .find(|node| **node != world.config.primary)
            .unwrap(),
    )
}

fn absent(world: &World) -> usize {
    (0..3)
        .find(|node| !world.config.is_in_sync(id(*node)))
        .unwrap()
}

/// Writes go on, and whatever was acknowledged is there.
fn assert_works(world: &mut World, within: Duration) {
    let before = world.clients.acknowledged;
    let end = world.now + within;
    while world.now < end && world.clients.acknowledged < before + 20 {
        world.run_until(world.now + ms(100));
    }
    let states: Vec<_> = world
        .nodes
        .iter()
        .map(|node| {
            node.core
                .as_ref()
                .map(|core| (core.role(), core.peer_state()))
        })
        .collect();
    assert!(
        world.clients.acknowledged >= before + 20,
        "no writes after {within:?}: {:?} {states:#?}",
        world.config
    );
    world.clients_until = world.now;
    world.run_until(world.now + seconds(2));
    world.clients.check_final(world);
}

#[test]
fn a_lone_secondary_finds_a_new_companion() {
    for seed in 0..SEEDS {
        let mut world = world_of_two(seed);
        let (primary, third) = (index(world.config.primary), absent(&world));
        world.forgiving = false;
        world.crash_node(primary);
        world.run_until(world.now + seconds(3));
        world.at(world.now, Event::Restart(third));
        assert_works(&mut world, seconds(15));
        assert!(!world.config.is_in_sync(id(primary)));
        assert!(world.config.is_in_sync(id(third)));
    }
}

#[test]
fn a_lone_member_that_restarted_finds_a_new_companion() {
    for seed in 0..SEEDS {
        let mut world = world_of_two(seed);
        let (primary, other, third) = (
            index(world.config.primary),
            secondary(&world),
            absent(&world),
        );
        world.crash_node(primary);
        world.crash_node(other);
        world.at(world.now + ms(300), Event::Restart(other));
        world.at(world.now + ms(600), Event::Restart(third));
        world.run_until(world.now + seconds(8));
        assert!(
            world.config.is_in_sync(id(primary)),
            "one that is away is waited for"
        );
        assert_works(&mut world, seconds(20));
        assert!(!world.config.is_in_sync(id(primary)));
    }
}

#[test]
fn a_member_that_did_not_restart_leads_when_it_comes_back() {
    for seed in 0..SEEDS {
        let mut world = world_of_two(seed);
        let (primary, other) = (index(world.config.primary), secondary(&world));
        // The one loses power, the other keeps what was only in memory, and they cannot talk.
        world.forgiving = false;
        world.cut.insert((primary.min(other), primary.max(other)));
        world.crash_node(other);
        world.at(world.now + ms(300), Event::Restart(other));
        let before = world.config.epoch;
        let late = world.now + seconds(10);
        while world.config.epoch == before {
            assert!(world.now < late, "nobody leads");
            world.run_until(world.now + ms(20));
        }
        assert_eq!(world.config.primary, id(other));
        world.cut.clear();
        assert_works(&mut world, seconds(10));
        assert_eq!(world.config.primary, id(primary));
    }
}

#[test]
fn a_primary_whose_disk_hangs_is_replaced() {
    for (seed, disk) in [(0, Disk::Hangs), (1, Disk::Hangs), (2, Disk::HangsSyncs)] {
        let mut world = world(seed);
        world.forgiving = false;
        let primary = index(world.config.primary);
        world.nodes[primary].disk = disk;
        world.run_until(world.now + seconds(20));
        assert_ne!(world.config.primary, id(primary));
        assert_works(&mut world, seconds(5));
        assert!(!world.config.is_in_sync(id(primary)));
        // Once it works again it returns.
        world.nodes[primary].disk = Disk::Works;
        world.run_until(world.now + seconds(75));
        assert!(world.config.is_in_sync(id(primary)));
    }
}

#[test]
fn a_secondary_whose_disk_hangs_is_removed() {
    for (seed, disk) in [
        (0, Disk::Hangs),
        (1, Disk::HangsSyncs),
        (2, Disk::HangsSyncs),
    ] {
        let mut world = world(seed);
        let (primary, other) = (index(world.config.primary), secondary(&world));
        world.forgiving = false;
        world.nodes[other].disk = disk;
        world.run_until(world.now + seconds(16));
        assert!(!world.config.is_in_sync(id(other)), "{disk:?}");
        assert_eq!(world.config.primary, id(primary));
        let synced = world.clients.syncs;
        world.run_until(world.now + seconds(12));
        assert!(world.clients.syncs > synced, "{disk:?}: no fsync returns");
        assert_works(&mut world, seconds(10));
    }
}

#[test]
fn a_member_that_comes_and_goes_holds_no_lease_when_its_removal_is_accepted() {
    let mut removed = 0;
    for seed in 0..3 * SEEDS {
        let mut world = world(seed);
        world.forgiving = false;
        let (primary, other) = (index(world.config.primary), secondary(&world));
        let (epoch, proposals) = (world.config.epoch, world.proposals);
        // The controller takes its time, and meanwhile the member is back.
        world.decision_delay = seconds(4);
        world.cut_off(primary, other);
        while world.proposals == proposals {
            world.run_until(world.now + ms(10));
        }
        world.cut.clear();
        let mut leased = false;
        let late = world.now + seconds(10);
        while world.config.epoch == epoch {
            assert!(world.now < late, "nothing is decided");
            let core = world.nodes[other].core.as_ref().unwrap();
            let state = core.state(world.clock(other));
            leased = state.role == Role::Secondary && !state.lease_left.is_zero();
            world.run_until(world.now + ms(1));
        }
        removed += usize::from(!world.config.is_in_sync(id(other)));
        let holds = leased && !world.config.is_in_sync(id(other));
        assert!(!holds, "seed {seed}: a removed member can answer reads");
        world.decision_delay = Duration::ZERO;
        world.run_until(world.now + seconds(12));
        assert!(world.config.is_in_sync(id(other)), "it returns");
        assert_works(&mut world, seconds(5));
    }
    assert!(removed > 0, "nothing was tested");
}

/// The longest time in which nothing was acknowledged, until a second after `done`.
fn longest_pause(world: &mut World, within: Duration, done: impl Fn(&World) -> bool) -> Duration {
    let (mut last, mut at, mut pause) = (world.clients.acknowledged, world.now, ms(0));
    let end = world.now + within;
    let mut done_at = None;
    while done_at.is_none_or(|done_at| world.now < done_at + seconds(1)) {
        assert!(world.now < end, "not after {within:?}: {:?}", world.config);
        world.run_until(world.now + ms(10));
        if world.clients.acknowledged > last {
            (last, at) = (world.clients.acknowledged, world.now);
        }
        pause = pause.max(world.now - at);
        if done_at.is_none() && done(world) {
            done_at = Some(world.now);
        }
    }
    pause
}

#[test]
fn a_primary_that_leaves_gives_its_office_away_without_a_long_pause() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 3, 1, Duration::ZERO);
        world.clients_until = seconds(120);
        world.run_until(seconds(4));
        let (leaver, spare) = (world.config.primary, id(3));
        let mut next = world.config.clone();
        next.members.push(spare);
        next.leaving.push(leaver);
        world.reassign(next);
        let pause = longest_pause(&mut world, seconds(20), |world| {
            !world.config.members.contains(&leaver)
        });
        assert!(pause < ms(800), "seed {seed}: {pause:?}");
        assert!(world.config.is_in_sync(spare), "seed {seed}");
        assert_works(&mut world, seconds(10));
    }
}

#[test]
fn the_first_member_leads_again_when_it_has_been_well_for_a_while() {
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let first = world.config.members[0];
        assert_eq!(world.config.primary, first);
        world.crash_node(index(first));
        world.run_until(seconds(14));
        assert_ne!(world.config.primary, first);
        world.start_node(index(first));
        world.run_until(seconds(30));
        assert!(world.config.is_in_sync(first) && world.config.primary != first);
        let pause = longest_pause(&mut world, seconds(60), |world| {
            world.config.primary == first
        });
        assert!(pause < ms(800), "seed {seed}: {pause:?}");
        assert_works(&mut world, seconds(10));
    }
}
