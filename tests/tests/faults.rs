//! Servers die under load: nothing fails, nothing acknowledged is lost, stalls are bounded.

use lumeofs_tests::{Cluster, Prober, Running, fio_job, shell};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

/// Longest stall that a killed master may cause.
const MASTER_STALL: Duration = Duration::from_secs(7);
/// Longest stall that a killed primary may cause.
const DATANODE_STALL: Duration = Duration::from_secs(5);

/// What fio writes while servers die.
fn fio(directory: &Path) -> Command {
    fio_job(directory, "80m", 2)
}

fn verified(output: Output) {
    assert!(
        output.status.success(),
        "fio: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The datanode that is primary of most replica groups.
fn primary_of_most(cluster: &Cluster) -> String {
    let groups = cluster.admin(&["groups"]);
    let mut counts = std::collections::BTreeMap::<u64, usize>::new();
    for group in groups.as_array().expect("groups") {
        *counts
            .entry(group["primary"].as_u64().expect("a primary"))
            .or_default() += 1;
    }
    let (node, count) = counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .expect("groups exist");
    println!("datanode-{node} is primary of {count} groups");
    format!("datanode-{node}")
}

#[test]
fn fio_verifies_sequential_and_random_data_over_many_chunks() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let write = |verify_only: bool| {
        let only = if verify_only { "--verify_only" } else { "" };
        shell(
            &mount,
            &format!(
                "fio --verify_state_save=0 --name=seq --rw=write --bs=1m --size=200m --verify=crc32c --end_fsync=1 {only} > /dev/null
                 fio --verify_state_save=0 --name=rnd --rw=randwrite --bs=4k --size=32m --numjobs=3 --verify=crc32c --end_fsync=1 {only} > /dev/null
                 fio --verify_state_save=0 --name=odd --rw=randwrite --bsrange=512-100k --bs_unaligned --size=24m --verify=crc32c --end_fsync=1 {only} > /dev/null"
            ),
        )
    };
    write(false);
    cluster.remount();
    write(true);
}

#[test]
fn killed_leaders_and_primaries_stall_for_seconds_and_lose_nothing() {
    let cluster = Cluster::start();
    let mount = cluster.mount();
    let prober = Prober::start(&mount);
    // 40 seconds of writing, then fio reads and verifies all of it.
    let load = Running::start(fio(&mount).arg("--rate=,2m"));
    std::thread::sleep(Duration::from_secs(4));
    let check = |what: &str, limit: Duration| {
        let stall = prober.longest_since_reset();
        println!("{what}: longest call {stall:?}");
        assert!(stall < limit, "{what}: {stall:?}");
    };
    check("without faults", MASTER_STALL);

    let leader = cluster.leader("metadata");
    cluster.kill(&leader);
    std::thread::sleep(Duration::from_secs(9));
    check(&format!("leader {leader} killed"), MASTER_STALL);
    cluster.restart(&leader);
    check(&format!("{leader} restarted"), MASTER_STALL);

    let victim = primary_of_most(&cluster);
    cluster.kill(&victim);
    std::thread::sleep(Duration::from_secs(8));
    check(&format!("{victim} killed"), DATANODE_STALL);
    cluster.restart(&victim);
    verified(load.output());
    check(&format!("{victim} restarted"), DATANODE_STALL);
    prober.finish(&mount);

    cluster.wait_in_sync(Duration::from_secs(60));
    cluster.remount();
    verified(fio(&mount).arg("--verify_only").output().unwrap());
}
