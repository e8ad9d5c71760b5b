//! The newest configuration of each group that this datanode knows, kept in a file: masters that were made from an old
//! dump ask for it, perhaps after a restart of everything.
//!
//! ```text
//! file    magic 8 "LUMEOGRP", version 1, crc32c 4 of the rest, postcard of the configurations
//! ```
//! A file that cannot be read is as good as none: other members know the same.

use crate::group::Caller;
use crate::node::Node;
use lumeofs_base::checksum::crc32c;
use lumeofs_base::{ClusterMap, GroupConfig, GroupId};
use lumeofs_proto::control as wire;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Name of the file, in the first data directory.
const FILE_NAME: &str = "groups";
const MAGIC: &[u8; 8] = b"LUMEOGRP";
const VERSION: u8 = 1;
/// Groups that are remembered.
const GROUPS_MAX: usize = 4096;

type Configs = BTreeMap<GroupId, GroupConfig>;

/// The configurations, and where they are kept.
#[derive(Default)]
pub(crate) struct Known {
    configs: Mutex<Configs>,
    file: Option<PathBuf>,
}

impl Known {
    /// What was known when the datanode ended.
    pub(crate) fn open(data_dir: Option<&Path>) -> Self {
        let file = data_dir.map(|dir| dir.join(FILE_NAME));
        let configs = file.as_deref().and_then(read).unwrap_or_default();
        Self {
            configs: Mutex::new(configs),
            file,
        }
    }

    /// Takes over what the groups here have in force, drops those that have no member here any more, and writes the
    /// file if that changed anything.
    pub(crate) fn update(&self, node: &Node) {
        let in_force = node
            .groups()
            .into_iter()
            .map(|driver| driver.with(Caller::Quick, |core, _| core.config().clone()));
        self.take(in_force, &node.map(), |config| {
            config.members.contains(&node.identity.node)
        });
    }

    fn take(
        &self,
        in_force: impl Iterator<Item = GroupConfig>,
        map: &ClusterMap,
        is_member: impl Fn(&GroupConfig) -> bool,
    ) {
        let mut configs = self.configs.lock();
        let mut new = configs.clone();
        for config in in_force {
            let newer = new
                .get(&config.group)
                .is_none_or(|known| known.epoch < config.epoch);
            if newer {
                new.insert(config.group, config);
            }
        }
        new.retain(|group, known| {
            let in_map = map.group(*group);
            in_map.is_none_or(|config| config.epoch < known.epoch || is_member(config))
        });
        while new.len() > GROUPS_MAX {
            new.pop_last();
        }
        if *configs == new {
            return;
        }
        if let Some(file) = &self.file {
            // A datanode whose disk is full knows them until it ends.
            if let Err(error) = write(file, &new) {
                tracing::warn!(file = %file.display(), %error, "the groups' members are not remembered");
            }
        }
        *configs = new;
    }

    /// The configuration of a group.
    pub(crate) fn get(&self, group: GroupId) -> Option<GroupConfig> {
        self.configs.lock().get(&group).cloned()
    }

    /// All of them, for the controller.
    pub(crate) fn to_wire(&self) -> Vec<wire::GroupConfig> {
        let configs = self.configs.lock();
        configs.values().map(wire::GroupConfig::from).collect()
    }
}

fn read(file: &Path) -> Option<Configs> {
    let bytes = std::fs::read(file).ok()?;
    let rest = bytes.strip_prefix(MAGIC)?.strip_prefix(&[VERSION])?;
    let (sum, body) = rest.split_first_chunk()?;
    if u32::from_le_bytes(*sum) != crc32c(body) {
        return None;
    }
    let configs: Vec<GroupConfig> = postcard::from_bytes(body).ok()?;
    let configs = configs.into_iter().take(GROUPS_MAX);
    Some(configs.map(|config| (config.group, config)).collect())
}

/// Replaces the file as a whole.
fn write(file: &Path, configs: &Configs) -> std::io::Result<()> {
    let configs: Vec<&GroupConfig> = configs.values().collect();
    let body = postcard::to_stdvec(&configs).expect("configurations are plain data");
    let new = file.with_extension("new");
    let mut out = std::fs::File::create(&new)?;
    out.write_all(MAGIC)?;
    out.write_all(&[VERSION])?;
    out.write_all(&crc32c(&body).to_le_bytes())?;
    out.write_all(&body)?;
    out.sync_all()?;
    std::fs::rename(new, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::{Epoch, NodeId};

    fn config(group: u32, epoch: u64, members: &[u64]) -> GroupConfig {
        let members: Vec<NodeId> = members.iter().copied().map(NodeId).collect();
        GroupConfig {
            group: GroupId(group),
            epoch: Epoch(epoch),
            primary: members[0],
            in_sync: members.clone(),
            members,
            leaving: Vec::new(),
            replicas: 3,
        }
    }

    #[test]
    fn the_newest_is_known_after_a_restart_and_what_left_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let known = Known::open(Some(dir.path()));
        let is_member = |config: &GroupConfig| config.members.contains(&NodeId(1));
        let take = |configs: &[GroupConfig], map: &[GroupConfig]| {
            let map = ClusterMap {
                groups: map.to_vec(),
                ..ClusterMap::default()
            };
            known.take(configs.iter().cloned(), &map, is_member);
        };
        let (one, two) = (config(1, 5, &[1, 2, 3]), config(2, 9, &[1, 2, 4]));
        take(&[one.clone(), two.clone()], &[]);
        // An older one, and a map that is older and lacks one, change nothing.
        take(&[config(1, 4, &[1, 2, 3])], &[config(2, 3, &[2, 3, 4])]);
        let again = Known::open(Some(dir.path()));
        assert_eq!(again.get(GroupId(1)), Some(one.clone()));
        assert_eq!(again.get(GroupId(2)), Some(two));
        // A newer map without this datanode.
        take(&[], &[config(2, 10, &[2, 3, 4])]);
        let again = Known::open(Some(dir.path()));
        assert_eq!(
            (again.get(GroupId(1)), again.get(GroupId(2))),
            (Some(one), None)
        );
        let file = dir.path().join(FILE_NAME);
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert!(Known::open(Some(dir.path())).to_wire().is_empty());
    }
}
