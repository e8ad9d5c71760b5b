//! Chunks that do not match their checksums, at one member and at all of them.

use crate::scenarios::{assert_works, longest_pause, seconds, secondary, world};
use crate::world::{Event, World, id, index, ms};
use lumeofs_base::ChunkId;
use std::time::Duration;

const SEEDS: u64 = 4;

/// A chunk that has data at this node, and from now on is damaged there.
fn damage(world: &mut World, node: usize, from: u64) -> ChunkId {
    let store = &mut world.nodes[node].store;
    let chunks = store.now.chunks.range(ChunkId(from)..);
    let mut full = chunks.filter(|(_, chunk)| !chunk.deleted && !chunk.blocks.is_empty());
    let chunk = *full.next().expect("clients have written").0;
    store.damaged.insert(chunk);
    chunk
}

/// What a scrub does once a second: tells each member of its damage.
fn tell(world: &mut World) {
    for node in 0..world.nodes.len() {
        for chunk in world.nodes[node].store.damaged.clone() {
            world.with(node, |core, _| core.on_damaged(chunk));
        }
    }
}

/// Tells once a second until nothing is damaged and all are in sync. Returns the longest pause of writes.
fn repair(world: &mut World, within: Duration) -> Duration {
    let late = world.now + within;
    let mut pause = ms(0);
    while world.nodes.iter().any(|node| !node.store.damaged.is_empty()) || !world.config.is_full() {
        assert!(world.now < late, "not repaired: {:?}", world.config);
        tell(world);
        let next = world.now;
        pause = pause.max(longest_pause(world, seconds(2), |world| world.now > next));
    }
    pause
}

fn check(world: &mut World) {
    assert_works(world, seconds(10));
    world.run_until(world.now + seconds(2));
    world.converged().expect("all members are alike");
}

#[test]
fn a_damaged_secondary_gets_the_chunk_from_the_primary() {
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let (primary, node) = (world.config.primary, secondary(&world));
        let (copies, epoch) = (world.pieces, world.config.epoch);
        damage(&mut world, node, 1);
        let pause = repair(&mut world, seconds(20));
        assert!(pause < ms(800), "seed {seed}: {pause:?}");
        assert!(world.pieces > copies && world.config.epoch > epoch);
        assert_eq!(world.config.primary, primary, "seed {seed}");
        check(&mut world);
    }
}

#[test]
fn a_damaged_primary_hands_over_and_gets_the_chunk() {
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let node = index(world.config.primary);
        damage(&mut world, node, 1);
        let pause = repair(&mut world, seconds(20));
        assert!(pause < ms(1200), "seed {seed}: {pause:?}");
        assert_ne!(world.config.primary, id(node), "seed {seed}");
        check(&mut world);
    }
}

#[test]
fn damage_everywhere_at_once_is_repaired_one_member_after_the_other() {
    for seed in 0..SEEDS {
        let mut world = world(seed);
        for node in 0..3 {
            damage(&mut world, node, 1 + 5 * node as u64);
        }
        repair(&mut world, seconds(60));
        check(&mut world);
    }
}

#[test]
fn with_two_members_left_nobody_goes_and_the_damage_stays_known() {
    for seed in 0..SEEDS {
        let mut world = world(seed);
        let (primary, node) = (index(world.config.primary), secondary(&world));
        let third = (0..3).find(|other| *other != primary && *other != node);
        let third = third.expect("a third");
        world.crash_node(third);
        world.run_until(world.now + seconds(5));
        assert_eq!(world.config.in_sync.len(), 2);
        damage(&mut world, primary, 1);
        damage(&mut world, node, 8);
        let epoch = world.config.epoch;
        for _ in 0..5 {
            tell(&mut world);
            world.run_until(world.now + seconds(1));
        }
        assert_eq!(world.config.epoch, epoch, "seed {seed}");
        world.at(world.now, Event::Restart(third));
        world.run_until(world.now + seconds(5));
        repair(&mut world, seconds(60));
        check(&mut world);
    }
}

#[test]
fn a_group_whose_primary_dies_while_a_member_is_repaired_goes_on() {
    for seed in 0..SEEDS {
        let mut world = world(seed);
        world.forgiving = false;
        let (primary, node) = (index(world.config.primary), secondary(&world));
        damage(&mut world, node, 1);
        tell(&mut world);
        world.run_until(world.now + ms(50 * seed));
        world.crash_node(primary);
        world.run_until(world.now + seconds(6));
        world.at(world.now, Event::Restart(primary));
        world.run_until(world.now + seconds(6));
        repair(&mut world, seconds(60));
        check(&mut world);
    }
}
