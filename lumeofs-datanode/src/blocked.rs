//! What this datanode has in work and for what it waits: `lumeofs admin blocked`.

use crate::group::Caller;
use crate::node::Node;
use lumeofs_base::clock::Clock as _;
use lumeofs_base::{GroupId, NodeId};
use lumeofs_proto::data::{BlockedItem, BlockedReply, BlockedRequest};
use lumeofs_proto::frame::Op;
use lumeofs_replica::Waits;
use std::time::Duration;

/// Requests in one answer.
const ITEMS_MAX: usize = 1000;

/// A request in work.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) op: Op,
    /// Another datanode that forwarded it, or a master.
    pub(crate) from: Option<NodeId>,
    pub(crate) session: u64,
    pub(crate) group: u32,
    pub(crate) chunk: u64,
}

/// What has been in work for long.
pub(crate) fn blocked(node: &Node, asked: &BlockedRequest) -> BlockedReply {
    let now = node.clock.monotonic();
    let age = Duration::from_millis(asked.age_ms.into());
    let old = node.work.older_than(age, now).into_iter().take(ITEMS_MAX);
    let item = |noted: lumeofs_base::in_work::Noted<Work>| {
        let (waits, nodes) = waits(node, &noted.what);
        BlockedItem {
            op: format!("{:?}", noted.what.op).to_lowercase(),
            age_ms: now.saturating_sub(noted.since).as_millis() as u64,
            session: noted.what.session,
            from_node: noted.what.from.map_or(0, NodeId::get),
            group: noted.what.group,
            chunk: noted.what.chunk,
            waits,
            nodes: nodes.into_iter().map(NodeId::get).collect(),
        }
    };
    BlockedReply {
        items: old.map(item).collect(),
    }
}

fn waits(node: &Node, work: &Work) -> (String, Vec<NodeId>) {
    let Some(driver) = node.group(GroupId(work.group)) else {
        return ("the group is not here".to_owned(), Vec::new());
    };
    if let Err(error) = driver.store.check() {
        return (format!("disk: {}", error.context), vec![node.identity.node]);
    }
    let waits = driver.with(Caller::Quick, |core, now| core.waits(now));
    let (text, nodes) = match waits {
        Waits::Members(nodes) => ("members that have not taken it", nodes),
        Waits::Disks(nodes) => ("disks of members", nodes),
        Waits::Lease(nodes) => ("a lease: members that are silent", nodes),
        Waits::Agreement(nodes) => ("members that have not agreed with a new primary", nodes),
        Waits::Primary(primary) => ("the primary", vec![primary]),
        Waits::NoPrimary(primary) => ("a primary: this member is out of sync", vec![primary]),
        Waits::Nothing => (
            "this datanode: its disk, a lease or its queue",
            vec![node.identity.node],
        ),
    };
    (text.to_owned(), nodes)
}
