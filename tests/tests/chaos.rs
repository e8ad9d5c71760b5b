//! Each fault of `scripts/chaos` once, on a cluster of its own: no error at the application while a majority lives,
//! every acknowledged byte afterwards, everything whole, nothing leaked. One of them also looks what is left at the end of
//! the cluster, as `scripts/chaos` does. `--ignored` runs those that take long.

use lumeofs_tests::chaos::{KINDS, Outcome, Plan, Yard, run_round};
use std::collections::BTreeSet;

/// The machine of the tests may be slow: bounds of time are so many times as long as in `scripts/chaos`.
const SLOW: u32 = 2;
/// After this fault the cluster is ended in order. It has sessions, locks and chunks to clean up after.
const LOOKED_AT: &str = "restart-storm";

fn survives(fault: &str) {
    let seed = std::env::var("LUMEOFS_SEED").map_or(1, |text| text.parse().expect("a number"));
    let kind = KINDS.iter().find(|kind| kind.name == fault);
    let plan = Plan {
        number: 0,
        seed,
        kinds: vec![kind.expect("a fault of the table")],
        fio: false,
        slow: SLOW,
    };
    let mut yard = Yard::start();
    let outcome: Outcome = run_round(&mut yard, &plan);
    println!("{outcome}");
    assert!(outcome.problems.is_empty(), "{outcome}");
    if fault == LOOKED_AT {
        assert_eq!(yard.end(plan.number), [""; 0]);
    }
}

macro_rules! each_fault {
    (always { $($test:ident $fault:literal,)* } long { $($long:ident $rare:literal,)* }) => {
        $(
            #[test]
            fn $test() {
                survives($fault);
            }
        )*

        $(
            #[test]
            #[ignore = "long: scripts/chaos runs it too"]
            fn $long() {
                survives($rare);
            }
        )*

        #[test]
        fn every_fault_of_the_table_has_a_test() {
            let tested = BTreeSet::from([$($fault,)* $($rare),*]);
            let kinds = KINDS.iter().map(|kind| kind.name).collect();
            assert_eq!(tested, kinds);
        }
    };
}

// The others are like one of these, or like a test of `faults.rs`, `partition.rs` or `bad_days`.
each_fault! {
    always {
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
    }
    long {
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
}
