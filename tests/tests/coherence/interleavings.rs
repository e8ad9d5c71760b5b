//! Random calls that alternate between mounts, against a single copy.

use lumeofs_tests::coherence::Interleaving;
use lumeofs_tests::{Cluster, number};

#[test]
fn random_calls_through_two_and_three_mounts_answer_as_a_single_copy_does() {
    let mut cluster = Cluster::start();
    let mounts = [
        cluster.mount(),
        cluster.second_mount(),
        cluster.second_mount(),
    ];
    let local = cluster.scratch();
    let first = number("LUMEOFS_SEED_FIRST", 1);
    let (seeds, count) = (
        number("LUMEOFS_SEEDS", 4),
        number("LUMEOFS_STEPS", 800) as usize,
    );
    for seed in first..first + seeds {
        let mounts = if seed % 2 == 0 {
            &mounts[..2]
        } else {
            &mounts[..]
        };
        let begun = std::time::Instant::now();
        Interleaving::explore(&local, mounts, seed, count).unwrap_or_else(|told| panic!("{told}"));
        println!(
            "seed {seed}: {count} steps on {} mounts in {:?}",
            mounts.len(),
            begun.elapsed()
        );
    }
}
