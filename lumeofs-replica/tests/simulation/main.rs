//! A whole group from one seed: crashes, power cuts, partitions, slow disks, lost proposals.
//!
//! `LUMEOFS_SEED=n cargo test -p lumeofs-replica --test simulation` repeats one run;
//! with `LUMEOFS_TRACE=1` it tells what happens. `LUMEOFS_SEEDS=n` tries that many, from `LUMEOFS_SEED_FIRST`.

mod cases;
mod checks;
mod clients;
mod controller;
mod disk;
mod event;
mod faults;
mod membership;
mod network;
mod scenarios;
mod store;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use world::World;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(seed: u64) -> World {
    let members = if seed % 4 == 3 { 5 } else { 3 };
    let faults = Duration::from_secs(30);
    let spares = if members == 3 { (seed % 3) as usize } else { 0 };
    let mut world = World::new(seed, members, spares, faults);
    // A member whose disk hung for long is tried again after half a minute.
    world.run_until(faults + Duration::from_secs(45));
    if let Err(why) = world.converged() {
        panic!("did not converge: {why}");
    }
    world.clients.check_final(&world);
    world
}

#[test]
fn nothing_acknowledged_is_lost_and_no_read_is_stale() {
    let seeds = match number("LUMEOFS_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("LUMEOFS_SEED_FIRST").unwrap_or(0);
            first..first + number("LUMEOFS_SEEDS").unwrap_or(12)
        }
    };
    let (mut acknowledged, mut secondary, mut restarts, mut takeovers) = (0, 0, 0, 0);
    let (mut patches, mut skips, mut pieces, mut moves) = (0, 0, 0, 0);
    let (mut catch_ups, mut lost, mut failed) = (0, 0, Vec::new());
    let (mut fences, mut shut_out) = (0, 0);
    let all = seeds.end - seeds.start;
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(world) => {
                acknowledged += world.clients.acknowledged;
                secondary += world.clients.secondary_reads;
                lost += world.clients.lost_tails;
                fences += world.clients.sessions.fences;
                shut_out += world.clients.sessions.refused;
                restarts += world.restarts;
                takeovers += world.takeovers;
                catch_ups += world.catch_ups;
                patches += world.patches;
                skips += world.skips;
                pieces += world.pieces;
                moves += world.moves;
            }
            Err(_) => {
                eprintln!(
                    "repeat with: LUMEOFS_SEED={seed} cargo test -p lumeofs-replica --test simulation"
                );
                failed.push(seed);
            }
        }
    }
    eprintln!(
        "{acknowledged} writes, {secondary} reads at secondaries, {takeovers} takeovers, \
         {restarts} group restarts, {catch_ups} catch-ups with {pieces} copies, {patches} patches and \
         {skips} skips, {moves} replicas moved, {lost} lost tails told, {fences} fences, {shut_out} late writes shut out"
    );
    assert!(failed.is_empty(), "seeds that failed: {failed:?}");
    if all > 10 {
        assert!(
            acknowledged > 1000 && secondary > 100 && takeovers > 10,
            "the simulation is idle"
        );
        assert!(fences > 100 && shut_out > 100, "fences are not tried");
        assert!(restarts > 3 && catch_ups > 20, "the simulation is too kind");
        assert!(moves > 5, "replicas stay where they are");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (a, b) = (run(7), run(7));
    assert_eq!(a.clients.acknowledged, b.clients.acknowledged);
    assert_eq!(a.clients.reads, b.clients.reads);
    for (one, other) in a.nodes.iter().zip(&b.nodes) {
        assert_eq!(one.store.now, other.store.now);
    }
}
