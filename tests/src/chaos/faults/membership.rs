//! Nodes that lose everything, and nodes that take another's place.

use super::super::fault::Fault;
use crate::{Role, Site, eventually};
use std::time::Duration;

/// When a master that may not come back has ended.
const REFUSED: Duration = Duration::from_secs(30);
/// When a node has taken another's place.
const REPLACED: Duration = Duration::from_secs(90);
/// When a drained node has no group any more.
const DRAINED: Duration = Duration::from_secs(120);

/// A datanode whose disk was replaced by an empty one.
pub(in super::super) struct WipedDatanode(&'static str);

impl WipedDatanode {
    pub(in super::super) fn new(host: &'static str) -> Self {
        Self(host)
    }
}

impl Fault for WipedDatanode {
    fn target(&self) -> String {
        self.0.into()
    }

    fn inject(&mut self, site: &mut Site) {
        site.kill(self.0);
        site.wipe(self.0);
    }

    fn heal(&mut self, site: &mut Site) {
        site.start_node(self.0);
    }
}

/// A master without its logs: it is refused under its id (rule R4), and replaced by one with another id on another host.
pub(in super::super) struct WipedMaster {
    host: &'static str,
    spare: &'static str,
}

impl WipedMaster {
    pub(in super::super) fn new(host: &'static str, site: &Site) -> Self {
        let spare = site.spare(Role::Master);
        Self { host, spare }
    }
}

impl Fault for WipedMaster {
    fn target(&self) -> String {
        format!("{} by {}", self.host, self.spare)
    }

    fn inject(&mut self, site: &mut Site) {
        site.kill(self.host);
        site.wipe(self.host);
    }

    fn heal(&mut self, site: &mut Site) {
        site.start_node(self.host);
        eventually("a wiped master is refused under its id", REFUSED, || {
            site.pid(self.host).is_none()
        });
        let (old, new) = (site.id(self.host), site.new_id(Role::Master));
        site.forget(self.host);
        site.add(Role::Master, self.spare, new);
        site.start_node(self.spare);
        let (old, new) = (
            old.to_string(),
            format!("{new}={}", site.address(self.spare)),
        );
        // The same command again watches the change on.
        let replace = ["master", "replace", &old, &new, "--timeout", "15"];
        eventually("the master is replaced", REPLACED, || {
            site.admin(&replace).is_ok()
        });
    }
}

/// Whether a datanode is a member of no group.
fn has_left(site: &Site, id: u64) -> bool {
    let groups = site.admin(&["groups"]);
    groups.is_ok_and(|groups| {
        let mut groups = groups.as_array().into_iter().flatten();
        groups.all(|group| {
            let members = group["members"].as_array();
            members.is_some_and(|members| !members.iter().any(|member| member.as_u64() == Some(id)))
        })
    })
}

/// Starts an empty datanode on the spare host; its id.
fn start_spare(site: &mut Site, spare: &'static str) -> u64 {
    let id = site.new_id(Role::Datanode);
    site.add(Role::Datanode, spare, id);
    site.start_node(spare);
    id
}

/// A datanode that never comes back.
pub(in super::super) struct Fourth {
    host: &'static str,
    spare: &'static str,
}

impl Fourth {
    pub(in super::super) fn new(host: &'static str, site: &Site) -> Self {
        let spare = site.spare(Role::Datanode);
        Self { host, spare }
    }
}

impl Fault for Fourth {
    fn target(&self) -> String {
        format!("{} by {}", self.host, self.spare)
    }

    fn inject(&mut self, site: &mut Site) {
        site.kill(self.host);
    }

    fn heal(&mut self, site: &mut Site) {
        let old = site.id(self.host).to_string();
        let new = start_spare(site, self.spare).to_string();
        // Not before the new one has said that it is there.
        eventually("the datanode is replaced", REPLACED, || {
            site.admin(&["node", "replace", &old, &new]).is_ok()
        });
    }

    fn is_over(&mut self, site: &mut Site) -> bool {
        has_left(site, site.id(self.host))
    }

    fn tidy(&mut self, site: &mut Site) {
        site.forget(self.host);
    }
}

/// A datanode that is emptied in order, to be taken away.
pub(in super::super) struct Drain {
    host: &'static str,
    spare: &'static str,
}

impl Drain {
    pub(in super::super) fn new(host: &'static str, site: &Site) -> Self {
        let spare = site.spare(Role::Datanode);
        Self { host, spare }
    }
}

impl Fault for Drain {
    fn target(&self) -> String {
        format!("{} to {}", self.host, self.spare)
    }

    fn inject(&mut self, site: &mut Site) {
        start_spare(site, self.spare);
        let id = site.id(self.host).to_string();
        eventually("the drain begins", REPLACED, || {
            site.admin(&["node", "drain", &id, "--no-wait"]).is_ok()
        });
    }

    fn last(&mut self, site: &mut Site, _: Duration) {
        let id = site.id(self.host);
        eventually("the datanode is drained", DRAINED, || has_left(site, id));
    }

    fn heal(&mut self, site: &mut Site) {
        let id = site.id(self.host).to_string();
        let removed = site.admin(&["node", "remove", &id]);
        removed.expect("an empty datanode is removed");
        site.terminate(self.host);
    }

    fn tidy(&mut self, site: &mut Site) {
        site.forget(self.host);
    }
}
