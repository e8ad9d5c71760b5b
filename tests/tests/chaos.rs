//! Faults of `scripts/chaos`, one after the other on one cluster: no error at the application while a majority lives, every
//! acknowledged byte afterwards, everything whole, and at the end nothing left. `--ignored` runs each of all faults on a
//! cluster of its own.

use lumeofs_tests::chaos::{KINDS, Outcome, Plan, Yard, run_round};
use std::collections::BTreeSet;

/// The machine of the tests may be slow: bounds of time are so many times as long as in `scripts/chaos`.
const SLOW: u32 = 2;

/// Those that are like no other one, nor like a test of `faults.rs`, `partition.rs`, `masters.rs`, `repair.rs` or `bad_days`. The cluster is one, as
/// starting it takes as long as most of them.
const ALWAYS: [&str; 6] = [
    "mute-datanode",
    "eio-datanode",
    "flip-datanode",
    "wipe-datanode",
    "rolling-restart",
    "restart-storm",
];

fn survives(yard: &mut Yard, number: u64, fault: &str) {
    let seed = std::env::var("LUMEOFS_SEED").map_or(1, |text| text.parse().expect("a number"));
    let kind = KINDS.iter().find(|kind| kind.name == fault);
    let plan = Plan {
        number,
        seed: seed + number,
        kinds: vec![kind.expect("a fault of the table")],
        fio: false,
        slow: SLOW,
    };
    let outcome: Outcome = run_round(yard, &plan);
    println!("{outcome}");
    assert!(outcome.problems.is_empty(), "{outcome}");
}

#[test]
fn a_cluster_survives_one_fault_after_the_other_and_leaves_nothing() {
    let mut yard = Yard::start();
    for (number, fault) in (0..).zip(ALWAYS) {
        survives(&mut yard, number, fault);
    }
    assert_eq!(yard.end(ALWAYS.len() as u64), [""; 0]);
}

macro_rules! each_fault {
    ($($test:ident $fault:literal,)*) => {
        $(
            #[test]
            #[ignore = "long: scripts/chaos runs it too"]
            fn $test() {
                survives(&mut Yard::start(), 0, $fault);
            }
        )*

        #[test]
        fn every_fault_of_the_table_has_a_test() {
            let tested = BTreeSet::from([$($fault),*]);
            let kinds = KINDS.iter().map(|kind| kind.name).collect();
            assert_eq!(tested, kinds);
        }
    };
}

each_fault! {
    a_stopped_master "stop-master",
    a_datanode_that_nobody_hears "mute-datanode",
    a_master_that_hears_nobody "deaf-master",
    a_full_disk_of_a_datanode "full-datanode",
    a_failing_disk_of_a_datanode "eio-datanode",
    flipped_bits_on_a_datanode "flip-datanode",
    the_leaders_clock_an_hour_ahead "clock-forward-master",
    a_storm_of_restarts "restart-storm",
    a_wiped_datanode "wipe-datanode",
    a_wiped_master "wipe-master",
    a_fourth_datanode_for_a_dead_one "fourth-datanode",
    a_drain_under_load "drain-datanode",
    a_rolling_restart_under_load "rolling-restart",
    a_load_without_a_fault "none",
    a_killed_master "kill-master",
    a_killed_datanode "kill-datanode",
    a_stopped_datanode "stop-datanode",
    a_master_that_is_cut_off "cut-master",
    a_datanode_that_is_cut_off "cut-datanode",
    a_master_that_nobody_hears "mute-master",
    a_datanode_that_hears_nobody "deaf-datanode",
    a_datanode_that_one_mount_loses "cut-client",
    a_full_disk_of_a_master "full-master",
    a_failing_disk_of_a_master "eio-master",
    a_read_only_disk_of_a_datanode "read-only-datanode",
    the_leaders_clock_an_hour_behind "clock-back-master",
    a_datanodes_clock_an_hour_ahead "clock-forward-datanode",
    a_datanodes_clock_an_hour_behind "clock-back-datanode",
}
