//! Beacons and questions to other datanodes: one thread and one connection per peer.

use crate::convert::peer_state_in;
use crate::group::{Caller, GroupDriver};
use crate::node::Node;
use lumeofs_base::clock::Clock;
use lumeofs_base::limits::BEACON_INTERVAL;
use lumeofs_base::{Code, Epoch, FsError, FsResult, GroupConfig, GroupId, NodeId, NodeKind};
use lumeofs_proto::blocking::{Conn, Frame};
use lumeofs_proto::data::{Beacon, BeaconAnswer, BeaconGroup, GroupState, GroupStateRequest};
use lumeofs_proto::frame::Op;
use lumeofs_replica::BeaconSent;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a peer may take to answer: three beacons.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

/// The peers that this datanode talks to.
#[derive(Default)]
pub(crate) struct Peers {
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
}

#[derive(Default)]
struct Peer {
    wants: Mutex<Wants>,
    wake: Condvar,
}

#[derive(Default)]
struct Wants {
    beacon: bool,
    asks: BTreeSet<GroupId>,
    stop: bool,
}

impl Peers {
    /// Asks a peer for its state of a group.
    pub(crate) fn ask(&self, node: &Arc<Node>, peer: NodeId, group: GroupId) {
        self.want(node, peer, |wants| {
            wants.asks.insert(group);
        });
    }

    /// Sends beacons to all other members of a group without waiting for their time.
    pub(crate) fn beacon_now(&self, node: &Arc<Node>, config: &GroupConfig) {
        for &member in config
            .members
            .iter()
            .filter(|member| **member != node.identity.node)
        {
            self.want(node, member, |wants| wants.beacon = true);
        }
    }

    pub(crate) fn stop(&self) {
        for peer in self.peers.lock().values() {
            peer.wants.lock().stop = true;
            peer.wake.notify_one();
        }
    }

    fn want(&self, node: &Arc<Node>, to: NodeId, want: impl FnOnce(&mut Wants)) {
        let mut peers = self.peers.lock();
        let peer = peers.entry(to).or_insert_with(|| {
            let peer = Arc::new(Peer::default());
            let (this, node_of_thread) = (peer.clone(), node.clone());
            node.spawn(&format!("peer-{to}"), move || {
                run(&node_of_thread, to, &this)
            });
            peer
        });
        want(&mut peer.wants.lock());
        peer.wake.notify_one();
    }
}

/// Whether the other end is the datanode that was meant.
pub(crate) fn check_peer(conn: &Conn, expected: NodeId) -> FsResult<()> {
    if conn.peer.node == expected && conn.peer.kind == NodeKind::Datanode {
        return Ok(());
    }
    let context = format!("expected datanode {expected}, found {:?}", conn.peer);
    Err(FsError::new(Code::Refused, context))
}

fn run(node: &Arc<Node>, to: NodeId, peer: &Peer) {
    let mut conn: Option<Conn> = None;
    let mut due = Instant::now();
    while let Some(asks) = wait(node, peer, due) {
        due = Instant::now() + BEACON_INTERVAL;
        let groups: Vec<_> = node
            .groups()
            .into_iter()
            .filter(|driver| driver.with(Caller::Quick, |core, _| core.has_beacon(to)))
            .collect();
        if groups.is_empty() && asks.is_empty() {
            conn = None;
            continue;
        }
        // An old connection may have ended unnoticed; a new one is not tried twice.
        let reused = conn.is_some();
        let mut result = talk(node, to, &mut conn, &groups, &asks);
        if result.is_err() && reused {
            result = talk(node, to, &mut conn, &groups, &asks);
        }
        if let Err(error) = result {
            tracing::debug!(peer = %to, %error, "no beacon");
        }
    }
}

/// Waits for the time of a beacon or something to ask. `None` at the end.
fn wait(node: &Node, peer: &Peer, due: Instant) -> Option<BTreeSet<GroupId>> {
    let mut wants = peer.wants.lock();
    while !wants.stop && !wants.beacon && wants.asks.is_empty() {
        if peer.wake.wait_until(&mut wants, due).timed_out() {
            break;
        }
    }
    wants.beacon = false;
    (!wants.stop && !node.is_stopping()).then(|| std::mem::take(&mut wants.asks))
}

fn talk(
    node: &Arc<Node>,
    to: NodeId,
    slot: &mut Option<Conn>,
    groups: &[Arc<GroupDriver>],
    asks: &BTreeSet<GroupId>,
) -> FsResult<()> {
    // Put back only if all went well.
    let mut conn = match slot.take() {
        Some(conn) => conn,
        None => connect(node, to)?,
    };
    if !groups.is_empty() {
        beacon(node, to, &mut conn, groups)?;
    }
    for &group in asks {
        let asked = GroupStateRequest {
            group: group.get(),
            ..Default::default()
        };
        let state: FsResult<GroupState> = ask(&mut conn, Op::GroupState, &asked)?.decode();
        match (state, node.group(group)) {
            (Ok(state), Some(driver)) => driver.with(Caller::Quick, |core, now| {
                core.on_peer_state(peer_state_in(to, state), now);
            }),
            (Err(error), _) => tracing::debug!(peer = %to, %group, %error, "no state of a group"),
            (Ok(_), None) => {}
        }
    }
    *slot = Some(conn);
    Ok(())
}

fn connect(node: &Node, to: NodeId) -> FsResult<Conn> {
    let mut conn = Conn::connect(&node.address_of(to)?, &node.identity)?;
    check_peer(&conn, to)?;
    let timeout = conn.receiver.set_timeout(Some(ANSWER_TIMEOUT));
    timeout.map_err(|error| FsError::from_net(&error, "set a time-out"))?;
    Ok(conn)
}

fn ask(conn: &mut Conn, op: Op, header: &impl prost::Message) -> FsResult<Frame> {
    let net = |error: io::Error| FsError::from_net(&error, format_args!("{op:?}"));
    conn.sender
        .request(op, 0, ANSWER_TIMEOUT.as_millis() as u32, 0, header, &[])
        .map_err(net)?;
    conn.receiver
        .receive_while(&mut || Err(io::ErrorKind::TimedOut.into()))
        .map_err(net)
}

fn beacon(node: &Node, to: NodeId, conn: &mut Conn, groups: &[Arc<GroupDriver>]) -> FsResult<()> {
    // The time of sending is taken first: leases count from it.
    let sent = node.clock.monotonic();
    let nanos = |time: Duration| time.as_nanos() as u64;
    let mut epochs = HashMap::new();
    let parts = groups.iter().filter_map(|driver| {
        let item = driver.with(Caller::Quick, |core, now| core.beacon(to, now))?;
        epochs.insert(driver.id, item.epoch);
        Some(BeaconGroup {
            group: driver.id.get(),
            epoch: item.epoch.get(),
            committed: item.committed.get(),
            echo_ns: item.echo.map(nanos),
        })
    });
    let message = Beacon {
        sent_ns: nanos(sent),
        groups: parts.collect(),
    };
    let answer: BeaconAnswer = ask(conn, Op::Beacon, &message)?.decode()?;
    let answered = Duration::from_nanos(answer.answered_ns);
    for part in answer.groups {
        let group = GroupId(part.group);
        if let (Some(driver), Some(&epoch)) = (node.group(group), epochs.get(&group)) {
            let sent = BeaconSent { epoch, at: sent };
            let item = lumeofs_replica::BeaconAnswer {
                epoch: Epoch(part.epoch),
                low_space: part.low_space,
            };
            driver.with(Caller::Quick, |core, now| {
                core.on_beacon_answer(to, item, sent, answered, now);
            });
        }
    }
    Ok(())
}
