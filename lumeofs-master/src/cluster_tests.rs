//! Whole masters in this process, over loopback: what clients see of crashes, elections and restarts.

mod harness;
mod leases;
mod masters;
mod measure;
mod truth;

use crate::raft::cut::Step;
use harness::{Client, Cluster, name_of, wait_for};
use lumeofs_base::{Code, InodeId};
use lumeofs_meta::op::{Mutation, NewNode, Query, Reply};
use lumeofs_proto::meta::OpenReport;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A killed leader must be replaced within this time. The goal is 1.5 s; the rest is for machines that are
/// busy. An election after silence alone takes 3.2 s or more.
const REPLACED_WITHIN: Duration = Duration::from_millis(3100);

fn create(name: &str) -> Mutation {
    Mutation::Create {
        parent: InodeId::ROOT,
        name: name.into(),
        node: NewNode::Regular,
        mode: 0o644.into(),
        exclusive: true,
    }
}

fn mkdir(name: &str) -> Mutation {
    Mutation::Create {
        parent: InodeId::ROOT,
        name: name.into(),
        node: NewNode::Directory,
        mode: 0o755.into(),
        exclusive: true,
    }
}

fn lookup(name: &str) -> Query {
    Query::Lookup {
        parent: InodeId::ROOT,
        name: name.into(),
    }
}

/// After this an inode that nobody holds would be gone.
const WHEN_PURGED: Duration = Duration::from_millis(2500);

#[test]
fn one_master_serves_and_is_the_same_after_a_restart_and_after_a_crash() {
    let mut cluster = Cluster::start(1);
    let mut client = Client::connect(&cluster);
    client.mutate(1, mkdir("a")).unwrap();
    cluster.stop(1);
    cluster.restart(1);
    client.query(lookup("a")).unwrap();
    client.mutate(2, mkdir("b")).unwrap();
    cluster.kill(1);
    cluster.restart(1);
    client.query(lookup("a")).unwrap();
    client.query(lookup("b")).unwrap();
    assert_eq!(client.query(lookup("c")).unwrap_err().code, Code::NotFound);
}

#[test]
fn a_killed_leader_is_replaced_at_once_and_catches_up_when_it_returns() {
    let mut cluster = Cluster::start(3);
    let mut client = Client::connect(&cluster);
    for number in 1..=20 {
        client.mutate(number, mkdir(&name_of(number))).unwrap();
    }
    let old = cluster.metadata_leader();
    cluster.kill(old);
    let killed = Instant::now();
    client.mutate(21, mkdir(&name_of(21))).unwrap();
    let took = killed.elapsed();
    eprintln!("a new leader acknowledged {took:?} after the old one was killed");
    assert!(took < REPLACED_WITHIN, "{took:?}");
    for number in 1..=21 {
        client.query(lookup(&name_of(number))).unwrap();
    }
    cluster.restart(old);
    wait_for("the old leader to catch up", || {
        let leader = cluster.raft(cluster.metadata_leader());
        let follower = cluster.raft(old);
        follower.applied == leader.applied && follower.applied > 20
    });
}

#[test]
fn a_leader_that_is_restarted_is_replaced_at_once_though_the_others_believe_in_it() {
    let mut cluster = Cluster::start(3);
    let mut client = Client::connect(&cluster);
    client.mutate(1, mkdir("a")).unwrap();
    let old = cluster.metadata_leader();
    let term = cluster.raft(old).term;
    cluster.kill(old);
    cluster.restart(old);
    let restarted = Instant::now();
    client.mutate(2, mkdir("b")).unwrap();
    let took = restarted.elapsed();
    eprintln!("a leader acknowledged {took:?} after the restart of the old one");
    assert!(took < REPLACED_WITHIN, "{took:?}");
    // What the old leader had not yet on its disk, the others may have: its term is over.
    assert!(cluster.raft(cluster.metadata_leader()).term > term);
    client.query(lookup("a")).unwrap();
}

#[test]
fn a_mutation_that_is_sent_again_answers_as_the_first_time_also_at_another_leader() {
    let mut cluster = Cluster::start(3);
    let mut client = Client::connect(&cluster);
    let first = client.mutate(1, mkdir("once")).unwrap();
    assert_eq!(client.mutate(1, mkdir("once")).unwrap(), first);
    assert_eq!(
        client.mutate(2, mkdir("once")).unwrap_err().code,
        Code::Exists
    );
    cluster.kill(cluster.metadata_leader());
    assert_eq!(client.mutate(1, mkdir("once")).unwrap(), first);
}

#[test]
fn a_leader_without_a_quorum_refuses_reads_and_writes() {
    let mut cluster = Cluster::start(3);
    let mut client = Client::connect(&cluster);
    client.mutate(1, mkdir("a")).unwrap();
    let leader = cluster.metadata_leader();
    for other in cluster.ids().into_iter().filter(|id| *id != leader) {
        cluster.kill(other);
    }
    wait_for("the lease to end", || {
        let refused = client.query_at(leader, lookup("a"));
        matches!(
            refused.map_err(|error| error.code),
            Err(Code::NotLeader(_) | Code::Timeout)
        )
    });
}

#[test]
fn a_deleted_file_lives_until_its_last_holder_lets_go() {
    let cluster = Cluster::start(1);
    let mut client = Client::connect(&cluster);
    let Reply::Created { attr, .. } = client.mutate(1, create("f")).unwrap() else {
        panic!("not created")
    };
    client
        .mutate(
            2,
            Mutation::Unlink {
                parent: InodeId::ROOT,
                name: b"f".to_vec(),
            },
        )
        .unwrap();
    let open = |client: &Client, opened, released| OpenReport {
        session: client.session,
        opened,
        released,
        term: client.term,
        ..Default::default()
    };
    std::thread::sleep(WHEN_PURGED);
    client.query(Query::GetAttr { ino: attr.ino }).unwrap();
    // Whoever looked its name up before can still open it for a moment after its last holder let go.
    let report = open(&client, vec![], vec![attr.ino.get()]);
    client.report(report).unwrap();
    let mut other = Client::connect(&cluster);
    let report = open(&other, vec![attr.ino.get()], vec![]);
    other.report(report).unwrap();
    std::thread::sleep(WHEN_PURGED);
    client.query(Query::GetAttr { ino: attr.ino }).unwrap();
    let report = open(&other, vec![], vec![attr.ino.get()]);
    other.report(report).unwrap();
    wait_for("the purge", || {
        client.query(Query::GetAttr { ino: attr.ino }).is_err()
    });
    let report = open(&other, vec![attr.ino.get()], vec![]);
    assert_eq!(other.report(report).unwrap_err().code, Code::Stale);
}

#[test]
fn a_new_leader_purges_nothing_before_all_sessions_have_spoken() {
    let mut cluster = Cluster::start(3);
    let mut client = Client::connect(&cluster);
    let Reply::Created { attr, .. } = client.mutate(1, create("f")).unwrap() else {
        panic!("not created")
    };
    cluster.kill(cluster.metadata_leader());
    client
        .mutate(
            2,
            Mutation::Unlink {
                parent: InodeId::ROOT,
                name: b"f".to_vec(),
            },
        )
        .unwrap();
    std::thread::sleep(WHEN_PURGED);
    client.query(Query::GetAttr { ino: attr.ino }).unwrap();
    let mut report = OpenReport {
        session: client.session,
        opened: vec![attr.ino.get()],
        ..Default::default()
    };
    let reply = client.report(report.clone()).unwrap();
    assert_ne!(
        reply.term, client.term,
        "the reply tells of the new leadership"
    );
    report.complete = true;
    report.term = reply.term;
    client.report(report).unwrap();
    std::thread::sleep(WHEN_PURGED);
    client.query(Query::GetAttr { ino: attr.ino }).unwrap();
    let released = vec![attr.ino.get()];
    let report = OpenReport {
        session: client.session,
        released,
        term: reply.term,
        ..Default::default()
    };
    client.report(report).unwrap();
    wait_for("the purge", || {
        client.query(Query::GetAttr { ino: attr.ino }).is_err()
    });
}

#[test]
fn a_list_of_open_files_may_come_in_parts() {
    let mut cluster = Cluster::start(3);
    let mut client = Client::connect(&cluster);
    let Reply::Created { attr, .. } = client.mutate(1, create("f")).unwrap() else {
        panic!("not created")
    };
    let name = b"f".to_vec();
    let parent = InodeId::ROOT;
    cluster.kill(cluster.metadata_leader());
    client.mutate(2, Mutation::Unlink { parent, name }).unwrap();
    let part = |client: &Client, opened, complete, term| OpenReport {
        session: client.session,
        opened,
        complete,
        part: true,
        term,
        ..Default::default()
    };
    // The end of a list whose beginning another leader heard says nothing.
    let report = part(&client, vec![], true, client.term);
    let term = client.report(report).unwrap().term;
    assert_ne!(term, client.term);
    // One that is gone does no harm: the file may have been deleted since.
    let report = part(&client, vec![attr.ino.get(), 99 << 40], false, term);
    client.report(report).unwrap();
    let report = part(&client, vec![], true, term);
    client.report(report).unwrap();
    std::thread::sleep(WHEN_PURGED);
    client.query(Query::GetAttr { ino: attr.ino }).unwrap();
    let report = OpenReport {
        session: client.session,
        released: vec![attr.ino.get()],
        term,
        ..Default::default()
    };
    client.report(report).unwrap();
    wait_for("the purge", || {
        client.query(Query::GetAttr { ino: attr.ino }).is_err()
    });
}

#[test]
fn a_follower_that_lags_behind_the_log_gets_a_snapshot() {
    let mut cluster = Cluster::start(3);
    let mut client = Client::connect(&cluster);
    client.mutate(1, mkdir("before")).unwrap();
    let follower = cluster
        .ids()
        .into_iter()
        .find(|id| *id != cluster.metadata_leader())
        .unwrap();
    cluster.kill(follower);
    for number in 2..=40 {
        client.mutate(number, mkdir(&name_of(number))).unwrap();
    }
    let leader = cluster.metadata_leader();
    cluster.compact(leader);
    cluster.restart(follower);
    wait_for("the follower to install a snapshot", || {
        let report = cluster.raft(follower);
        report.purged >= 30 && report.applied >= cluster.raft(leader).purged
    });
    // The follower alone with the other one must know everything.
    cluster.kill(leader);
    for number in 2..=40 {
        client.query(lookup(&name_of(number))).unwrap();
    }
    client.mutate(41, mkdir("after")).unwrap();
}

#[test]
fn a_follower_that_dies_while_it_installs_a_snapshot_starts_again_and_catches_up() {
    let mut cluster = Cluster::start(3);
    let mut client = Client::connect(&cluster);
    let mut sequence = 0;
    let mut make = |count: u64, client: &mut Client| {
        for _ in 0..count {
            sequence += 1;
            client.mutate(sequence, mkdir(&name_of(sequence))).unwrap();
        }
    };
    make(5, &mut client);
    let leader = cluster.metadata_leader();
    let follower = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    for step in [Step::Received, Step::InPlace] {
        cluster.kill(follower);
        make(40, &mut client);
        cluster.compact(cluster.metadata_leader());
        cluster.cut_installation(follower, step);
        cluster.restart(follower);
        cluster.kill_in_installation(follower);
        make(5, &mut client);
        cluster.restart(follower);
        let leader = cluster.metadata_leader();
        wait_for("the follower to catch up", || {
            cluster.metadata_rows(follower) == cluster.metadata_rows(leader)
        });
    }
}

#[test]
fn a_master_that_lost_its_logs_is_refused_and_does_not_vote() {
    let mut cluster = Cluster::start(3);
    let mut client = Client::connect(&cluster);
    for number in 1..=5 {
        client.mutate(number, mkdir(&name_of(number))).unwrap();
    }
    wait_for("all to be recorded", || {
        cluster
            .ids()
            .iter()
            .all(|id| cluster.knows_all_masters(*id))
    });
    for part in [None, Some("metadata"), Some("controller")] {
        let leader = cluster.metadata_leader();
        let lost = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
        let other = 6 - leader - lost;
        cluster.stop(lost);
        let copy = cluster.copy(lost);
        cluster.wipe(lost, part);
        cluster.restart(lost);
        let why = cluster.failure(lost);
        assert!(
            why.contains("took part") && why.contains("restore"),
            "{why}"
        );
        // Without the other follower there is no majority: the lost one is no help.
        cluster.kill(other);
        wait_for("the leader to see it", || {
            client.query_at(leader, lookup("d1")).is_err()
        });
        assert!(!cluster.leads(lost));
        cluster.restart(other);
        client.query(lookup("d1")).unwrap();
        // As it was, it is welcome.
        cluster.stop(lost);
        cluster.restore(lost, copy);
        cluster.restart(lost);
        wait_for("it to catch up", || {
            cluster.metadata_rows(lost) == cluster.metadata_rows(cluster.metadata_leader())
        });
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_done_twice_while_leaders_die() {
    let mut cluster = Cluster::start(3);
    let stop = AtomicBool::new(false);
    let acknowledged: Vec<Vec<String>> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (mut client, stop) = (Client::connect(&cluster), &stop);
                scope.spawn(move || {
                    let mut names = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let name = format!("w{writer}-{}", names.len());
                        // `exclusive`: done twice it would fail with Exists.
                        client.mutate(names.len() as u64 + 1, mkdir(&name)).unwrap();
                        names.push(name);
                    }
                    names
                })
            })
            .collect();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(500));
            let leader = cluster.metadata_leader();
            cluster.kill(leader);
            wait_for("another leader", || {
                cluster
                    .ids()
                    .iter()
                    .any(|id| *id != leader && cluster.leads(*id))
            });
            cluster.restart(leader);
        }
        stop.store(true, Ordering::Relaxed);
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect()
    });
    let mut client = Client::connect(&cluster);
    for name in acknowledged.iter().flatten() {
        client.query(lookup(name)).unwrap();
    }
    eprintln!(
        "{} mutations were acknowledged",
        acknowledged.iter().map(Vec::len).sum::<usize>()
    );
    wait_for("all masters to have the same state", || {
        let [a, b, c] = [1, 2, 3].map(|id| cluster.metadata_rows(id));
        a == b && b == c
    });
}

#[test]
fn sessions_that_are_unknown_are_told_so() {
    let cluster = Cluster::start(1);
    let mut client = Client::connect(&cluster);
    client.session = 4711;
    assert_eq!(
        client.mutate(1, mkdir("a")).unwrap_err().code,
        Code::SessionExpired
    );
    assert_eq!(client.keep_alive().unwrap_err().code, Code::SessionExpired);
}

#[test]
fn datanodes_register_and_groups_form_over_grpc() {
    let cluster = Cluster::start(3);
    let map = cluster.register_datanodes(3);
    assert_eq!(map.nodes.len(), 3);
    assert!(
        map.groups.len() >= 3 && map.groups.iter().all(|group| group.members.len() == 3),
        "{map:?}"
    );
    let status = cluster.status();
    assert_eq!((status.nodes.len(), status.raft.len()), (3, 2));
    let error = cluster.call_with_wrong_secret();
    assert_eq!(error.code(), tonic::Code::Unauthenticated);
}

#[test]
fn health_says_whether_somebody_answers_and_reflection_what() {
    let mut cluster = Cluster::start(3);
    let mut client = Client::connect(&cluster);
    client.mutate(1, mkdir("a")).unwrap();
    wait_for("all to serve", || {
        cluster.ids().iter().all(|id| cluster.is_serving(*id))
    });
    let mut services = cluster.reflected_services(1);
    services.sort();
    assert_eq!(
        services,
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "lumeofs.control.Admin",
            "lumeofs.control.Controller"
        ]
    );
    let leader = cluster.metadata_leader();
    let others: Vec<_> = cluster
        .ids()
        .into_iter()
        .filter(|id| *id != leader)
        .collect();
    cluster.kill(others[0]);
    // The one that was killed may have led the other group.
    wait_for("the other one to serve", || cluster.is_serving(others[1]));
    cluster.kill(others[1]);
    wait_for("the last one to see it", || !cluster.is_serving(leader));
    cluster.restart(others[0]);
    wait_for("a quorum to serve", || {
        cluster.is_serving(leader) && cluster.is_serving(others[0])
    });
}

#[test]
fn chunks_of_deleted_files_are_deleted_at_their_primary() {
    let cluster = Cluster::start(1);
    let datanode = cluster.fake_datanode();
    cluster.register_datanodes_at(3, &datanode.address);
    let mut client = Client::connect(&cluster);
    let mut sequence = 0;
    let mut next = || {
        sequence += 1;
        sequence
    };
    // The metadata leader notices new groups within its own time.
    let mut deleted = None;
    wait_for("a file with a chunk", || {
        let name = name_of(next());
        if let Ok(Reply::Created {
            attr,
            first_chunk: Some(chunk),
            ..
        }) = client.mutate(next(), create(&name))
        {
            let unlink = Mutation::Unlink {
                parent: InodeId::ROOT,
                name: name.into(),
            };
            client.mutate(next(), unlink).unwrap();
            deleted = Some((attr.ino, chunk.chunk));
        }
        deleted.is_some()
    });
    let (ino, chunk) = deleted.unwrap();
    let released = vec![ino.get()];
    let (session, term) = (client.session, client.term);
    client
        .report(OpenReport {
            session,
            released,
            term,
            ..Default::default()
        })
        .unwrap();
    wait_for("the deletion", || {
        datanode.deleted.lock().contains(&chunk.get())
    });
    wait_for("the queue to be empty", || cluster.freed_chunks(1) == 0);
}
