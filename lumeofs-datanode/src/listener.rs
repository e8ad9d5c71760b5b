//! Accepting connections, and serving each on a thread of its own, one request after the other.

use crate::group::Caller;
use crate::node::Node;
use crate::{inbound, requests};
use lumeofs_base::clock::Clock;
use lumeofs_base::{Code, Epoch, FsError, FsResult, GroupId, NodeKind, Sequence};
use lumeofs_proto::blocking::{Conn, Frame};
use lumeofs_proto::data::{Beacon, BeaconAnswer, BeaconAnswerGroup};
use lumeofs_proto::frame::Op;
use lumeofs_replica::BeaconItem;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Threads of a datanode, most of them one per connection; connections beyond that are closed.
const THREADS_MAX: usize = 4096;

/// Accepts until the node stops.
pub(crate) fn run(node: &Arc<Node>, listener: &TcpListener) {
    while !node.is_stopping() {
        match listener.accept() {
            Ok((stream, _)) if node.is_stopping() || node.threads() >= THREADS_MAX => {
                drop(stream);
            }
            Ok((stream, _)) => {
                let owner = node.clone();
                node.spawn("connection", move || serve(&owner, stream));
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
    }
}

fn serve(node: &Arc<Node>, stream: TcpStream) {
    let from = stream
        .peer_addr()
        .map_or_else(|_| "?".to_owned(), |address| address.to_string());
    let conn = match Conn::accept(stream, &node.identity) {
        Ok(conn) => conn,
        Err(error) if error.code == Code::Refused => {
            return tracing::warn!(from, %error, "connection refused");
        }
        Err(error) => return tracing::debug!(from, %error, "no handshake"),
    };
    let peer = conn.peer;
    let Ok(closer) = conn.closer() else { return };
    let id = node.register(closer);
    let mut beacons = false;
    let ended = serve_frames(node, conn, &mut beacons);
    node.unregister(id);
    if beacons && !node.is_stopping() {
        node.beacons_ended(peer.node);
    }
    match ended {
        Err(error) if error.code == Code::Refused => {
            tracing::warn!(from, %error, "malformed frame, connection closed");
        }
        Err(error) => tracing::debug!(?peer, %error, "connection ended"),
        Ok(()) => {}
    }
}

fn serve_frames(node: &Arc<Node>, mut conn: Conn, beacons: &mut bool) -> FsResult<()> {
    let net = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::InvalidData => FsError::new(Code::Refused, error.to_string()),
        _ => FsError::from_net(&error, "serve a connection"),
    };
    let place = node.work.place();
    loop {
        let frame = conn.receiver.receive().map_err(net)?;
        let between = matches!(frame.fixed.op, Op::Join | Op::Beacon | Op::Fetch);
        if between && conn.peer.kind != NodeKind::Datanode {
            let error = FsError::new(Code::Refused, "for datanodes only");
            conn.sender.fail(&frame.fixed, &error).map_err(net)?;
            continue;
        }
        if frame.fixed.op == Op::Fence
            && !matches!(conn.peer.kind, NodeKind::Master | NodeKind::Datanode)
        {
            let error = FsError::new(Code::Refused, "a fence, which only masters send");
            conn.sender.fail(&frame.fixed, &error).map_err(net)?;
            continue;
        }
        match frame.fixed.op {
            Op::Join => return inbound::serve(node, conn, frame),
            Op::Beacon => {
                *beacons = true;
                answer_beacon(node, &mut conn, &frame)?;
            }
            _ => requests::serve(node, &mut conn, frame, &place)?,
        }
    }
}

fn answer_beacon(node: &Node, conn: &mut Conn, frame: &Frame) -> FsResult<()> {
    let beacon: Beacon = frame.decode()?;
    // All groups remember the same time: it is what the primary echoes.
    let now = node.clock.monotonic();
    let from = conn.peer.node;
    let groups = beacon.groups.iter().filter_map(|part| {
        let driver = node.group(GroupId(part.group))?;
        let item = BeaconItem {
            epoch: Epoch(part.epoch),
            committed: Sequence(part.committed),
            echo: part.echo_ns.map(Duration::from_nanos),
        };
        let answer = driver.with(Caller::Quick, |core, _| core.on_beacon(from, item, now));
        Some(BeaconAnswerGroup {
            group: part.group,
            epoch: answer.epoch.get(),
            low_space: answer.low_space,
        })
    });
    let groups = groups.collect();
    let answer = BeaconAnswer {
        answered_ns: now.as_nanos() as u64,
        groups,
    };
    let sent = conn.sender.reply(&frame.fixed, 0, &answer, &[]);
    sent.map_err(|error| FsError::from_net(&error, "answer a beacon"))
}
