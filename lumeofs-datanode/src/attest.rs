//! What this datanode attests of its groups with each heartbeat: what the cluster's health is computed from.

use crate::group::{Caller, GroupDriver};
use crate::node::Node;
use lumeofs_base::GroupId;
use lumeofs_proto::control::{CatchUpReport, GroupReport};
use lumeofs_replica::CatchUpProgress;
use std::collections::BTreeMap;

/// Chunks that one heartbeat looks at to count bytes. Counting a group of many takes several, so that no
/// heartbeat is late.
const COUNTED_MAX: usize = 20_000;

/// Bytes of the groups. Nobody keeps count of them, so they are counted a part at a time.
#[derive(Default)]
pub(crate) struct Attests {
    bytes: BTreeMap<GroupId, u64>,
    counting: Counting,
}

/// The group that is being counted, how far, and its bytes so far.
#[derive(Default)]
struct Counting {
    group: GroupId,
    after: Option<lumeofs_base::ChunkId>,
    bytes: u64,
}

impl Attests {
    /// The reports of all groups.
    pub(crate) fn of(&mut self, node: &Node) -> Vec<GroupReport> {
        let groups = node.groups();
        self.count(&groups);
        let mut damaged = BTreeMap::new();
        for scrub in node.scrubs() {
            scrub.count_waiting(&mut damaged);
        }
        let report = |driver: &std::sync::Arc<GroupDriver>| GroupReport {
            damaged_blocks: damaged.get(&driver.id).copied().unwrap_or(0),
            ..self.report(driver)
        };
        groups.iter().map(report).collect()
    }

    fn report(&self, driver: &GroupDriver) -> GroupReport {
        let (role, peer, catch_ups) = driver.with(Caller::Quick, |core, _| {
            (core.role(), core.peer_state(), core.catch_ups())
        });
        let chunks = driver.store.count(driver.id, None);
        let progress = |progress: CatchUpProgress| CatchUpReport {
            node: progress.node.get(),
            chunks_done: match progress.upto {
                None => 0,
                Some(upto) => {
                    let compared = driver.store.count(driver.id, Some(upto));
                    compared.saturating_sub(progress.todo)
                }
            },
            chunks,
            bytes_copied: progress.copied_bytes,
        };
        GroupReport {
            group: driver.id.get(),
            epoch: peer.epoch.get(),
            role: role.name().to_owned(),
            complete: peer.complete,
            eligible: peer.eligible,
            chunks,
            bytes: self.bytes.get(&driver.id).copied().unwrap_or(0),
            catching_up: catch_ups.into_iter().map(progress).collect(),
            damaged_blocks: 0,
        }
    }

    fn count(&mut self, groups: &[std::sync::Arc<GroupDriver>]) {
        self.bytes
            .retain(|group, _| groups.iter().any(|driver| driver.id == *group));
        let mut budget = COUNTED_MAX;
        // Each group once at most, beginning with the one that was not finished.
        let begin = groups
            .iter()
            .position(|driver| driver.id >= self.counting.group)
            .unwrap_or(0);
        for step in 0..groups.len() {
            let driver = &groups[(begin + step) % groups.len()];
            if self.counting.group != driver.id {
                self.counting = Counting {
                    group: driver.id,
                    ..Counting::default()
                };
            }
            let counting = &mut self.counting;
            let chunks = driver.store.list(driver.id, counting.after, budget);
            counting.bytes += chunks.iter().map(|chunk| chunk.len).sum::<u64>();
            counting.after = chunks.last().map(|chunk| chunk.chunk);
            if chunks.len() == budget {
                return;
            }
            budget -= chunks.len();
            self.bytes.insert(driver.id, counting.bytes);
            let next = &groups[(begin + step + 1) % groups.len()];
            self.counting = Counting {
                group: next.id,
                ..Counting::default()
            };
        }
    }
}
