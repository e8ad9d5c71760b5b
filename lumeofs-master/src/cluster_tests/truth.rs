//! What masters say of the cluster's health, and a check, without datanodes that answer.

use super::harness::{Client, Cluster, wait_for};
use super::mkdir;
use lumeofs_proto::control::fsck_event::Kind;
use lumeofs_proto::control::health_reply::State;

#[test]
fn health_is_told_by_the_leader_alone_and_without_attests_nothing_is_called_safe() {
    let mut cluster = Cluster::start(3);
    let map = cluster.register_datanodes(3);
    let groups = map.groups.len() as u64;
    let tells = |cluster: &Cluster| {
        let ids = cluster.ids().into_iter();
        ids.filter_map(|id| Some((id, cluster.health(id)?)))
            .collect::<Vec<_>>()
    };
    let told = tells(&cluster);
    let [(leader, health)] = &told[..] else {
        panic!("one leader tells: {told:?}");
    };
    assert_ne!(health.state(), State::Healthy);
    assert_eq!(health.full.unwrap().groups, 0);
    wait_for("silence to count", || {
        let health = cluster.health(*leader);
        health.is_some_and(|health| {
            health.state() == State::Lost
                && health.lost.unwrap().groups == groups
                && health.survives_for_data == -1
        })
    });
    // The next leader has heard of nobody either, and says so instead of calling everything lost.
    cluster.kill(*leader);
    wait_for("another leader", || match &tells(&cluster)[..] {
        [(_, health)] => {
            assert_ne!(health.state(), State::Healthy);
            health.partial && health.unattested.unwrap().groups == groups
        }
        _ => false,
    });
}

#[test]
fn a_check_reads_metadata_and_reports_datanodes_that_it_cannot_ask() {
    let cluster = Cluster::start(1);
    let map = cluster.register_datanodes(3);
    let mut client = Client::connect(&cluster);
    client.mutate(1, mkdir("a")).unwrap();
    let events = cluster.fsck(1);
    let Some(Kind::Summary(summary)) = events.last() else {
        panic!("no summary: {events:?}");
    };
    assert!(summary.metadata_index > 0);
    let members: usize = map.groups.iter().map(|config| config.in_sync.len()).sum();
    assert_eq!(summary.unchecked, members as u64);
    assert_eq!((summary.findings, summary.chunks), (0, 0));
    assert_eq!(summary.groups, map.groups.len() as u64);
    // The one before let go.
    assert!(matches!(cluster.fsck(1).last(), Some(Kind::Summary(_))));
}
