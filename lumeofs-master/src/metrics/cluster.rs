//! Datanodes, replica groups and repairs, as the controller's leader knows them: from the reports of datanodes.
//! Other masters hear no datanode and tell nothing here.

use crate::service::ControllerService;
use lumeofs_base::metrics::{Kind, Page};
use lumeofs_base::{ClusterMap, GroupConfig};
use lumeofs_meta::controller;
use lumeofs_meta::controller::health::{self, Health, Level, Observed, State};

const LEVELS: [(Level, &str); 5] = [
    (Level::Full, "full"),
    (Level::Reduced, "reduced"),
    (Level::Unattested, "unattested"),
    (Level::LastCopy, "last_copy"),
    (Level::Lost, "lost"),
];

/// Writes what the leader knows.
pub(super) fn collect(page: &mut Page, controller: &ControllerService) {
    let Ok(leadership) = controller.group().check_leads() else {
        return;
    };
    let map = controller.group().store().read(controller::cluster_map);
    let reports = controller.attests.reports();
    let health = health::health(Observed {
        map: &map,
        reports: &reports,
        leading: controller.attests.leading(leadership),
    });
    write(page, &map, &health);
}

fn write(page: &mut Page, map: &ClusterMap, health: &Health) {
    let state = match health.state {
        State::Healthy => 0,
        State::Degraded => 1,
        State::Critical => 2,
        State::Lost => 3,
    };
    let name = "lumeofs_master_health_state";
    let help = "0 healthy, 1 degraded, 2 critical, 3 lost; as `lumeofs admin health`, Raft apart";
    page.value(Kind::Gauge, name, help, state);
    let name = "lumeofs_master_groups";
    page.family(
        Kind::Gauge,
        name,
        "Replica groups by the copies that are attested",
    );
    for (level, label) in LEVELS {
        page.sample(name, &[("level", label)], health.at(level).0);
    }
    let name = "lumeofs_master_chunks";
    page.family(Kind::Gauge, name, "Chunks of these groups");
    for (level, label) in LEVELS {
        page.sample(name, &[("level", label)], health.at(level).1);
    }
    let under_repair = map.groups.iter().filter(|config| is_under_repair(config));
    let left = |repair: &health::Repair| {
        let progress = &repair.progress;
        progress.chunks.saturating_sub(progress.chunks_done)
    };
    let gauges = [
        (
            "lumeofs_master_groups_under_repair",
            "Groups with a member that is to be caught up, added or taken out",
            under_repair.count() as u64,
        ),
        (
            "lumeofs_master_groups_not_writable",
            "Groups with fewer attested copies than a write needs",
            health
                .groups
                .iter()
                .filter(|group| group.attested.len() < group.quorum)
                .count() as u64,
        ),
        (
            "lumeofs_master_repairs",
            "Members that are being caught up",
            health.repairs.len() as u64,
        ),
        (
            "lumeofs_master_repair_chunks_left",
            "Chunks that these have still to be compared on",
            health.repairs.iter().map(left).sum(),
        ),
        (
            "lumeofs_master_repair_bytes_per_second",
            "Bytes a second that are copied for them, between two reports",
            health
                .repairs
                .iter()
                .filter_map(|repair| repair.bytes_per_s)
                .sum(),
        ),
    ];
    for (name, help, value) in gauges {
        page.value(Kind::Gauge, name, help, value);
    }
    of_nodes(page, map, health);
}

fn is_under_repair(config: &GroupConfig) -> bool {
    config.in_sync.len() < config.members.len()
        || config.members.len() < config.replicas as usize
        || !config.leaving.is_empty()
}

fn of_nodes(page: &mut Page, map: &ClusterMap, health: &Health) {
    let ids: Vec<_> = map
        .nodes
        .iter()
        .map(|info| info.id.get().to_string())
        .collect();
    let nodes = || ids.iter().map(String::as_str).zip(&map.nodes);
    let name = "lumeofs_master_datanode_silent";
    page.family(
        Kind::Gauge,
        name,
        "1 if a datanode was not heard of lately, else 0",
    );
    for (id, info) in nodes() {
        let silent = health.silent.contains(&info.id);
        page.sample(name, &[("node", id)], u8::from(silent));
    }
    let name = "lumeofs_master_datanode_disk_trouble";
    page.family(
        Kind::Gauge,
        name,
        "1 if a datanode says that a disk of it fails or hangs, else 0",
    );
    for (id, info) in nodes() {
        let troubled = health.troubles.iter().any(|(node, _)| *node == info.id);
        page.sample(name, &[("node", id)], u8::from(troubled));
    }
    let name = "lumeofs_master_datanode_capacity_bytes";
    page.family(Kind::Gauge, name, "Bytes that a datanode can store");
    for (id, info) in nodes() {
        page.sample(name, &[("node", id)], info.capacity_bytes);
    }
    let name = "lumeofs_master_datanode_free_bytes";
    page.family(
        Kind::Gauge,
        name,
        "Bytes of these that are free, as last recorded",
    );
    for (id, info) in nodes() {
        page.sample(name, &[("node", id)], info.free_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::{Epoch, GroupId, NodeId, NodeInfo, NodeState};
    use std::collections::BTreeMap;
    use std::time::Duration;

    #[test]
    fn silent_datanodes_and_their_lost_groups_are_told() {
        let ids = [NodeId(101), NodeId(102)];
        let nodes = ids.map(|id| NodeInfo {
            id,
            address: String::new(),
            zone: String::new(),
            capacity_bytes: 1 << 30,
            free_bytes: 1 << 29,
            state: NodeState::Active,
        });
        let config = GroupConfig {
            group: GroupId(1),
            epoch: Epoch(3),
            primary: ids[0],
            members: ids.to_vec(),
            in_sync: vec![ids[0]],
            leaving: Vec::new(),
            replicas: 2,
        };
        let map = ClusterMap {
            nodes: nodes.to_vec(),
            groups: vec![config],
            ..ClusterMap::default()
        };
        let health = health::health(Observed {
            map: &map,
            reports: &BTreeMap::new(),
            leading: Duration::from_secs(60),
        });
        let mut page = Page::default();
        write(&mut page, &map, &health);
        let text = page.into_text();
        for line in [
            "lumeofs_master_health_state 3\n",
            "lumeofs_master_groups{level=\"lost\"} 1\n",
            "lumeofs_master_groups{level=\"full\"} 0\n",
            "lumeofs_master_groups_under_repair 1\n",
            "lumeofs_master_datanode_silent{node=\"102\"} 1\n",
            "lumeofs_master_datanode_disk_trouble{node=\"101\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
