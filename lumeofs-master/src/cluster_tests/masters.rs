//! Masters come and go while clients work: nothing that was acknowledged is lost, and nobody comes back who must not.

use super::harness::{Client, Cluster, wait_for};
use super::{lookup, mkdir};
use lumeofs_proto::control::change_masters_request::Change;
use std::sync::atomic::{AtomicBool, Ordering};

/// Makes directories until it is told to stop; returns their names. Every one must be acknowledged in the end.
fn write_until(client: &mut Client, name: &str, stop: &AtomicBool) -> Vec<String> {
    let mut names = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let name = format!("{name}-{}", names.len());
        // `exclusive`: done twice it would fail with Exists.
        client.mutate(names.len() as u64 + 1, mkdir(&name)).unwrap();
        names.push(name);
    }
    names
}

/// Runs `change` while two clients write, and checks that what they wrote is there, everywhere.
fn under_load(cluster: &mut Cluster, change: impl FnOnce(&mut Cluster)) {
    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (mut client, stop) = (Client::connect(cluster), &stop);
                scope.spawn(move || write_until(&mut client, &format!("w{writer}"), stop))
            })
            .collect();
        change(cluster);
        stop.store(true, Ordering::Relaxed);
        let written = writers.into_iter().map(|writer| writer.join().unwrap());
        written.flatten().collect::<Vec<_>>()
    });
    assert!(!written.is_empty());
    let mut client = Client::connect(cluster);
    for name in &written {
        client.query(lookup(name)).unwrap();
    }
    wait_for("all masters to have the same state", || {
        let rows = cluster.running().into_iter();
        let mut rows = rows.map(|id| cluster.metadata_rows(id));
        let first = rows.next().unwrap();
        rows.all(|other| other == first)
    });
}

/// Starts new masters and admits them, all at once.
fn grow(cluster: &mut Cluster, ids: &[u64]) {
    for id in ids {
        cluster.start_new(*id);
        cluster.wait_state(*id, "candidate");
    }
    for id in ids {
        cluster.admit(*id, 0).unwrap();
    }
    for id in ids {
        cluster.wait_state(*id, "voter");
    }
}

/// Removes a master and waits until it has ended by itself.
fn shrink(cluster: &mut Cluster, id: u64) {
    cluster.change(Change::Remove(id)).unwrap();
    let why = cluster.failure(id);
    assert!(why.contains("was removed"), "{why}");
    cluster.stop(id);
    cluster.wait_state(id, "removed");
}

#[test]
fn masters_go_from_one_to_five_and_back_under_load_and_nothing_is_lost() {
    let mut cluster = Cluster::start(1);
    under_load(&mut cluster, |cluster| {
        grow(cluster, &[2, 3]);
        assert_eq!(cluster.voters(2), [[1, 2, 3], [1, 2, 3]]);
        grow(cluster, &[4, 5]);
        // The leaders too: the rest finds others.
        for id in [1, 4] {
            shrink(cluster, id);
        }
        wait_for("three to be left", || {
            cluster.voters(2) == [[2, 3, 5], [2, 3, 5]]
        });
        for id in [2, 5] {
            shrink(cluster, id);
        }
        wait_for("one to be left", || cluster.voters(3) == [[3], [3]]);
    });
    let last = cluster.change(Change::Remove(3)).unwrap_err();
    assert!(last.contains("last one"), "{last}");
}

#[test]
fn a_wiped_master_is_replaced_by_a_new_one_in_one_step() {
    let mut cluster = Cluster::start(3);
    wait_for("all to be recorded", || {
        cluster
            .ids()
            .iter()
            .all(|id| cluster.knows_all_masters(*id))
    });
    under_load(&mut cluster, |cluster| {
        let lost = cluster.metadata_leader();
        cluster.stop(lost);
        cluster.wipe(lost, None);
        cluster.start_new(4);
        cluster.wait_state(4, "candidate");
        cluster.admit(4, lost).unwrap();
        cluster.wait_state(4, "voter");
        cluster.wait_state(lost, "removed");
        // Asked once more, it is done.
        cluster.admit(4, lost).unwrap();
        // Under the old id nobody gets in, with or without logs.
        cluster.restart(lost);
        let why = cluster.failure(lost);
        assert!(why.contains("was removed"), "{why}");
        cluster.stop(lost);
    });
}

#[test]
fn a_removed_master_that_is_started_again_is_refused_and_ends() {
    let mut cluster = Cluster::start(3);
    let mut client = Client::connect(&cluster);
    client.mutate(1, mkdir("a")).unwrap();
    let leader = cluster.metadata_leader();
    let gone = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    // It learns nothing of its removal.
    cluster.kill(gone);
    cluster.change(Change::Remove(gone)).unwrap();
    cluster.wait_state(gone, "removed");
    cluster.restart(gone);
    let why = cluster.failure(gone);
    assert!(
        why.contains("was removed") && why.contains("join anew"),
        "{why}"
    );
    cluster.stop(gone);
    let refused = cluster.admit(gone, 0).unwrap_err();
    assert!(refused.contains("never used again"), "{refused}");
    client.mutate(2, mkdir("b")).unwrap();
}

#[test]
fn an_addition_that_was_interrupted_goes_on_under_the_next_leader() {
    let mut cluster = Cluster::start(3);
    let mut client = Client::connect(&cluster);
    for number in 1..=30 {
        client
            .mutate(number, mkdir(&super::name_of(number)))
            .unwrap();
    }
    // Admitted before it runs: nobody can finish that now.
    cluster.start_new(4);
    cluster.wait_state(4, "candidate");
    cluster.kill(4);
    cluster.admit(4, 0).unwrap();
    cluster.wait_state(4, "joining");
    for _ in 0..2 {
        let leader = cluster.metadata_leader();
        cluster.kill(leader);
        client.query(lookup("d1")).unwrap();
        cluster.restart(leader);
    }
    cluster.wait_state(4, "joining");
    assert_eq!(cluster.voters(1)[1], [1, 2, 3], "it does not vote unseen");
    cluster.restart(4);
    cluster.admit(4, 0).unwrap();
    cluster.wait_state(4, "voter");
    wait_for("it to have everything", || {
        cluster.metadata_rows(4) == cluster.metadata_rows(cluster.metadata_leader())
    });
    assert_eq!(cluster.voters(4), [[1, 2, 3, 4], [1, 2, 3, 4]]);
}

#[test]
fn a_majority_is_not_removed_from_those_that_need_it() {
    let mut cluster = Cluster::start(3);
    let mut client = Client::connect(&cluster);
    client.mutate(1, mkdir("a")).unwrap();
    cluster.kill(3);
    wait_for("the others to lead", || cluster.masters().is_some());
    let other = 3 - cluster.metadata_leader();
    wait_for("the dead one to be missed", || cluster.is_missed(3));
    wait_for("a refusal", || {
        // Of 1 and 3 only 1 would be there.
        match cluster.try_change(Change::Remove(other)) {
            Err((tonic::Code::Unavailable, text)) => text.contains("no majority"),
            Err(_) => false,
            Ok(()) => panic!("a majority was removed"),
        }
    });
    // The dead one may go.
    cluster.change(Change::Remove(3)).unwrap();
    cluster.wait_state(3, "removed");
    client.query(lookup("a")).unwrap();
}
