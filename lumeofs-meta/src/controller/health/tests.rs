//! Situations, and what health says of them.

use super::*;
use lumeofs_base::NodeInfo;

const NOW: Duration = Duration::from_millis(500);
const OLD: Duration = Duration::from_secs(60);

/// Three datanodes in two zones and one group of all three, everything as it should be.
struct Situation {
    map: ClusterMap,
    reports: BTreeMap<NodeId, Report>,
    leading: Duration,
}

impl Situation {
    fn new() -> Self {
        let node = |id: u64, zone: &str| NodeInfo {
            id: NodeId(id),
            address: format!("h{id}:1"),
            zone: zone.into(),
            capacity_bytes: 1000,
            free_bytes: 900,
            state: lumeofs_base::NodeState::Active,
        };
        let ids = [1, 2, 3].map(NodeId);
        let config = GroupConfig {
            group: GroupId(1),
            epoch: Epoch(4),
            primary: NodeId(1),
            members: ids.to_vec(),
            in_sync: ids.to_vec(),
            leaving: Vec::new(),
            replicas: 3,
        };
        let report = |node: NodeId| {
            let attest = Attest {
                epoch: Epoch(4),
                role: if node == NodeId(1) {
                    "primary"
                } else {
                    "secondary"
                }
                .into(),
                complete: true,
                eligible: true,
                chunks: 10,
                bytes: 4096,
                catching_up: Vec::new(),
                damaged_blocks: 0,
            };
            let report = Report {
                age: NOW,
                capacity_bytes: 1000,
                free_bytes: 900,
                groups: BTreeMap::from([(GroupId(1), attest)]),
                ..Report::default()
            };
            (node, report)
        };
        Self {
            map: ClusterMap {
                nodes: vec![node(1, "a"), node(2, "a"), node(3, "b")],
                groups: vec![config],
                ..ClusterMap::default()
            },
            reports: ids.into_iter().map(report).collect(),
            leading: OLD,
        }
    }

    fn report(&mut self, node: u64) -> &mut Report {
        self.reports.get_mut(&NodeId(node)).unwrap()
    }

    fn attest(&mut self, node: u64) -> &mut Attest {
        self.report(node).groups.get_mut(&GroupId(1)).unwrap()
    }

    fn silence(&mut self, nodes: &[u64]) {
        nodes.iter().for_each(|node| self.report(*node).age = OLD);
    }

    fn health(&self) -> Health {
        health(Observed {
            map: &self.map,
            reports: &self.reports,
            leading: self.leading,
        })
    }

    fn level(&self) -> Level {
        self.health().groups[0].level
    }
}

#[test]
fn a_whole_cluster_is_healthy_and_may_lose_one_node_for_writes_and_two_for_data() {
    let health = Situation::new().health();
    assert_eq!(health.state, State::Healthy);
    assert!(!health.partial);
    assert_eq!(health.at(Level::Full), (1, 10));
    assert_eq!(health.survival.nodes_for_data, Some(2));
    assert_eq!(health.survival.nodes_for_writes, Some(1));
    let losses: Vec<_> = health
        .survival
        .zones
        .iter()
        .map(|zone| (&zone.zone[..], zone.groups_lost, zone.groups_unwritable))
        .collect();
    assert_eq!(losses, [("a", 0, 1), ("b", 0, 0)]);
}

#[test]
fn a_silent_datanode_counts_for_nothing_though_the_map_still_has_it_in_sync() {
    let mut situation = Situation::new();
    situation.silence(&[3]);
    let health = situation.health();
    assert_eq!(health.state, State::Degraded);
    assert_eq!(health.at(Level::Reduced), (1, 10));
    assert_eq!(health.silent, [NodeId(3)]);
    assert_eq!(health.groups[0].missing, [NodeId(3)]);
    assert_eq!(health.survival.nodes_for_data, Some(1));
    assert_eq!(health.survival.nodes_for_writes, Some(0));
}

#[test]
fn the_last_copy_is_critical_and_none_is_lost() {
    let mut situation = Situation::new();
    situation.silence(&[2, 3]);
    let health = situation.health();
    assert_eq!(
        (health.state, situation.level()),
        (State::Critical, Level::LastCopy)
    );
    assert_eq!(health.survival.nodes_for_data, Some(0));
    assert_eq!(health.survival.nodes_for_writes, None);
    situation.silence(&[1]);
    let health = situation.health();
    assert_eq!(
        (health.state, situation.level()),
        (State::Lost, Level::Lost)
    );
    assert_eq!(health.survival.nodes_for_data, None);
    assert_eq!(health.at(Level::Lost), (1, 10), "as they last said");
}

#[test]
fn a_member_that_the_map_left_out_is_no_copy_whatever_it_says() {
    let mut situation = Situation::new();
    situation.map.groups[0].in_sync = vec![NodeId(1), NodeId(2)];
    assert_eq!(situation.level(), Level::Reduced);
    assert_eq!(situation.health().state, State::Degraded);
}

#[test]
fn a_member_that_says_to_lack_something_is_no_copy_whatever_the_map_says() {
    let mut situation = Situation::new();
    let attest = situation.attest(2);
    (attest.complete, attest.eligible) = (false, false);
    assert_eq!(situation.level(), Level::Reduced);
}

#[test]
fn a_new_leader_that_has_heard_of_nobody_knows_nothing_and_does_not_say_lost_or_healthy() {
    let mut situation = Situation::new();
    situation.reports.clear();
    situation.leading = Duration::from_secs(1);
    let health = situation.health();
    assert_eq!(
        (health.state, situation.level()),
        (State::Degraded, Level::Unattested)
    );
    assert!(health.partial);
    situation.leading = OLD;
    let health = situation.health();
    assert_eq!((health.state, health.partial), (State::Lost, false));
}

#[test]
fn what_an_earlier_leadership_heard_does_not_count_under_a_new_one() {
    let mut situation = Situation::new();
    situation.leading = Duration::ZERO;
    situation.silence(&[1, 2, 3]);
    assert_eq!(situation.level(), Level::Unattested);
}

#[test]
fn a_group_that_restarted_as_a_whole_is_not_lost_while_a_member_may_still_lead() {
    let mut situation = Situation::new();
    for node in 1..=3 {
        situation.attest(node).complete = false;
    }
    assert_eq!(situation.level(), Level::Unattested);
    for node in 1..=3 {
        situation.attest(node).eligible = false;
    }
    assert_eq!(situation.level(), Level::Lost);
}

#[test]
fn two_of_four_copies_are_too_few_to_write_and_critical() {
    let mut situation = Situation::new();
    situation.map.groups[0].members.push(NodeId(4));
    situation.map.groups[0].in_sync.push(NodeId(4));
    situation.map.groups[0].replicas = 4;
    situation.silence(&[3]);
    let health = situation.health();
    assert_eq!(health.groups[0].level, Level::Reduced);
    assert_eq!(health.state, State::Critical);
    assert_eq!(health.survival.nodes_for_writes, None);
}

#[test]
fn one_wanted_copy_is_full_and_survives_nothing() {
    let mut situation = Situation::new();
    situation.map.groups[0].members = vec![NodeId(1)];
    situation.map.groups[0].in_sync = vec![NodeId(1)];
    situation.map.groups[0].replicas = 1;
    let health = situation.health();
    assert_eq!(health.state, State::Healthy);
    assert_eq!(health.survival.nodes_for_data, Some(0));
}

#[test]
fn nodes_fill_up_in_two_steps_and_the_second_is_not_healthy() {
    let mut situation = Situation::new();
    situation.report(1).free_bytes = 151;
    assert!(situation.health().filling.is_empty());
    situation.report(1).free_bytes = 150;
    situation.report(2).free_bytes = 60;
    let health = situation.health();
    let used: Vec<_> = health
        .filling
        .iter()
        .map(|filling| (filling.node, filling.used_percent))
        .collect();
    assert_eq!(used, [(NodeId(2), 94), (NodeId(1), 85)]);
    assert_eq!(health.state, State::Healthy);
    situation.report(2).free_bytes = 50;
    assert_eq!(situation.health().state, State::Degraded);
}

#[test]
fn trouble_with_a_disk_is_told_and_not_healthy() {
    let mut situation = Situation::new();
    situation.report(2).trouble = "EIO".into();
    let health = situation.health();
    assert_eq!(health.troubles, [(NodeId(2), "EIO".to_owned())]);
    assert_eq!(health.state, State::Degraded);
}

#[test]
fn a_cluster_without_groups_is_not_called_healthy() {
    let mut situation = Situation::new();
    situation.map.groups.clear();
    let health = situation.health();
    assert_eq!(health.state, State::Degraded);
    assert_eq!(health.survival.nodes_for_data, None);
}

#[test]
fn a_repair_has_a_rate_and_an_end_from_two_reports() {
    let mut situation = Situation::new();
    let progress = |chunks_done, bytes_copied| Progress {
        node: NodeId(3),
        chunks_done,
        chunks: 100,
        bytes_copied,
    };
    situation.map.groups[0].in_sync = vec![NodeId(1), NodeId(2)];
    situation.attest(1).catching_up = vec![progress(20, 5000)];
    let earlier = Attest {
        catching_up: vec![progress(10, 1000)],
        ..Attest::default()
    };
    let alone = situation.health().repairs[0].clone();
    assert_eq!((alone.bytes_per_s, alone.left), (None, None));
    let groups = BTreeMap::from([(GroupId(1), earlier)]);
    situation.report(1).earlier = Some((Duration::from_secs(2), groups));
    let repair = situation.health().repairs[0].clone();
    assert_eq!(repair.chunks_per_s, Some(5));
    assert_eq!(repair.bytes_per_s, Some(2000));
    assert_eq!(repair.left, Some(Duration::from_secs(16)));
    // It began anew: no rate, and no underflow.
    situation.attest(1).catching_up = vec![progress(0, 0)];
    assert_eq!(situation.health().repairs[0].left, None);
}

#[test]
fn a_copy_with_damaged_blocks_makes_the_data_less_safe_but_is_not_given_up() {
    let mut situation = Situation::new();
    situation.attest(2).damaged_blocks = 3;
    let health = situation.health();
    assert_eq!(health.state, State::Degraded);
    assert_eq!(health.at(Level::Reduced), (1, 10));
    let group = &health.groups[0];
    assert_eq!((group.attested.len(), group.damaged_blocks), (3, 3));
    // Damage says nothing of the blocks around it: all copies have most.
    for node in [1, 3] {
        situation.attest(node).damaged_blocks = 1;
    }
    assert_eq!(situation.level(), Level::Reduced);
    for node in [1, 2, 3] {
        situation.attest(node).damaged_blocks = 0;
    }
    assert_eq!(situation.health().state, State::Healthy);
}
