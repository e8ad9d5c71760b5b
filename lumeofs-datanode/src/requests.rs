//! Requests of clients: decode, ask the core, reply. And handing writes on to the primary.

use crate::blocked::{Work, blocked};
use crate::convert::{chunk_out, fence_in, part_in, state_out};
use crate::data::Data;
use crate::group::{Attempt, GroupDriver};
use crate::metrics::Asked;
use crate::node::Node;
use crate::{copy, fetch, scrub};
use lumeofs_base::checksum::verify_blocks;
use lumeofs_base::clock::Clock as _;
use lumeofs_base::in_work::Place;
use lumeofs_base::limits::{CHUNK_SIZE_BYTES, IO_BYTES_MAX, REQUEST_TIMEOUT};
use lumeofs_base::{
    AlignedBuf, ChunkId, ChunkOp, Code, ERA_MARK, Epoch, FsError, FsResult, GroupId, NodeId,
    NodeKind, Sequence, Version,
};
use lumeofs_proto::blocking::{Conn, Frame};
use lumeofs_proto::data::{ChunkReply, ChunkRequest, GroupState, GroupStateRequest};
use lumeofs_proto::frame::{FLAG_BLOCK_CHECKSUMS, Fixed, Op};
use lumeofs_replica::{Admission, ReadEnd, ReadStart, WriteRequest, Writer};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Idle connections to one peer that are kept for forwarding.
const FORWARDS_KEPT: usize = 4;
/// Chunks in one answer to an admin command.
const CHUNKS_MAX: usize = 4096;

/// Serves one request and replies.
pub(crate) fn serve(
    node: &Arc<Node>,
    conn: &mut Conn,
    frame: Frame,
    place: &Place<Work>,
) -> FsResult<()> {
    let net = |error: io::Error| FsError::from_net(&error, "reply");
    let fixed = frame.fixed;
    let wait = match fixed.deadline_ms {
        0 => REQUEST_TIMEOUT,
        millis => Duration::from_millis(millis.into()),
    };
    let begun = Instant::now();
    let deadline = begun + wait;
    let (requests, peer) = (&node.requests, conn.peer);
    let done = |asked, error: Option<&FsError>| {
        requests.done(&fixed, asked, peer, begun.elapsed(), error);
    };
    if fixed.op == Op::GroupState {
        let state = frame.decode().and_then(|asked| group_state(node, &asked));
        done(Asked::default(), state.as_ref().err());
        return match state {
            Ok(state) => conn.sender.reply(&fixed, 0, &state, &[]).map_err(net),
            Err(error) => conn.sender.fail(&fixed, &error).map_err(net),
        };
    }
    if fixed.op == Op::Scrub {
        let reply = frame.decode().and_then(|asked| scrub::serve(node, &asked));
        done(Asked::default(), reply.as_ref().err());
        return match reply {
            Ok(reply) => conn.sender.reply(&fixed, 0, &reply, &[]).map_err(net),
            Err(error) => conn.sender.fail(&fixed, &error).map_err(net),
        };
    }
    if fixed.op == Op::Blocked {
        return match frame.decode() {
            Ok(asked) => {
                let reply = blocked(node, &asked);
                conn.sender.reply(&fixed, 0, &reply, &[]).map_err(net)
            }
            Err(error) => conn.sender.fail(&fixed, &error).map_err(net),
        };
    }
    let forwarded = conn.peer.kind == NodeKind::Datanode;
    if conn.peer.kind == NodeKind::Client {
        node.pace.request();
    }
    let asked: FsResult<ChunkRequest> = frame.decode();
    let shown = asked
        .as_ref()
        .map_or_else(|_| Asked::default(), Asked::from);
    let from = (conn.peer.kind != NodeKind::Client).then_some(conn.peer.node);
    let reply = asked.and_then(|asked| {
        let work = Work {
            op: fixed.op,
            from,
            session: asked.session,
            group: asked.group,
            chunk: asked.chunk,
        };
        let _in_work = place.begin(work, node.clock.monotonic());
        chunk_request(node, &fixed, asked, frame.payload, forwarded, deadline)
    });
    done(shown, reply.as_ref().err());
    match reply {
        Ok((reply, Some(data))) => conn
            .sender
            .reply(&fixed, FLAG_BLOCK_CHECKSUMS, &reply, &[&data])
            .map_err(net),
        Ok((reply, None)) => conn.sender.reply(&fixed, 0, &reply, &[]).map_err(net),
        Err(error) => conn.sender.fail(&fixed, &error).map_err(net),
    }
}

pub(crate) type Reply = (ChunkReply, Option<AlignedBuf>);

fn chunk_request(
    node: &Arc<Node>,
    fixed: &Fixed,
    asked: ChunkRequest,
    payload: AlignedBuf,
    forwarded: bool,
    deadline: Instant,
) -> FsResult<Reply> {
    let (group, op) = (GroupId(asked.group), fixed.op);
    let Some(driver) = node.group(group) else {
        node.control.refresh();
        let context = format!(
            "group {group} has no replica on datanode {}",
            node.identity.node
        );
        return Err(FsError::new(Code::WrongGroup, context));
    };
    match op {
        Op::Read => {
            let (reply, data) = read(&driver, &asked, deadline)?;
            node.requests
                .add_read(data.as_ref().map_or(0, |data| data.len()));
            Ok((reply, data))
        }
        Op::Fetch => fetch::serve(&driver, &asked),
        Op::Extents => extents(&driver, &asked, deadline),
        Op::Write | Op::Copy | Op::Zero | Op::Truncate | Op::Delete | Op::Fence | Op::Sync => {
            let data: Data = payload.into();
            node.requests.add_written(data.len());
            let outcome = match op {
                Op::Sync => sync(&driver, &asked, deadline),
                Op::Copy => copy::serve(node, &driver, &asked, fixed.request, deadline),
                _ => write(node, &driver, op, &asked, &data, deadline),
            }?;
            match outcome {
                Ok(version) => {
                    let (epoch, sequence) = (version.epoch.get(), version.sequence.get());
                    Ok((
                        ChunkReply {
                            epoch,
                            sequence,
                            ..Default::default()
                        },
                        None,
                    ))
                }
                Err(primary) if forwarded => Err(FsError::new(
                    Code::StaleEpoch,
                    format!("forwarded to a secondary; the primary is {primary}"),
                )),
                Err(primary) => {
                    node.requests.count_forwarded();
                    let reply = node.forwards.call(
                        node,
                        primary,
                        (op, fixed.request),
                        &asked,
                        &data,
                        deadline,
                    )?;
                    Ok((reply.decode()?, None))
                }
            }
        }
        other => Err(FsError::new(
            Code::Unsupported,
            format!("{other:?} at a datanode"),
        )),
    }
}

/// The operation of a request, checked.
fn operation(op: Op, asked: &ChunkRequest, data: &[u8]) -> FsResult<ChunkOp> {
    let (chunk, offset) = (ChunkId(asked.chunk), asked.offset);
    let (truncations, era) = (asked.truncations, asked.era);
    let len = if op == Op::Write {
        data.len() as u64
    } else {
        asked.len
    };
    let bad = |what: &str| {
        let context = format!("{op:?} {len} bytes at {offset} of chunk {chunk}: {what}");
        FsError::new(Code::Invalid, context)
    };
    if offset
        .checked_add(len)
        .is_none_or(|end| end > CHUNK_SIZE_BYTES)
        && op != Op::Delete
    {
        return Err(bad("past the chunk's end"));
    }
    if chunk.get() >> 63 != 0 {
        return Err(bad("no chunk has this id"));
    }
    if chunk == ERA_MARK && !matches!(op, Op::Truncate | Op::Fence) {
        return Err(bad("it has no data"));
    }
    Ok(match op {
        Op::Write => {
            if data.is_empty() {
                return Err(bad("no data"));
            }
            if !verify_blocks(offset, data, &asked.checksums) {
                // Damaged on the way: sending it again can help.
                return Err(FsError::new(
                    Code::Again,
                    bad("data does not match its checksums").context,
                ));
            }
            ChunkOp::Write {
                chunk,
                offset,
                truncations,
                era,
                checksums: asked.checksums.clone(),
                part: asked.part.map(part_in).transpose()?,
            }
        }
        Op::Zero => ChunkOp::Zero {
            chunk,
            offset,
            len,
            truncations,
            era,
        },
        Op::Truncate => ChunkOp::Truncate {
            chunk,
            len: offset,
            truncations,
            era,
        },
        Op::Fence => {
            let fence = asked.fence.clone().ok_or_else(|| bad("no fence"))?;
            let fence = fence_in(fence)?;
            ChunkOp::Fence { fence }
        }
        _ => ChunkOp::Delete { chunk },
    })
}

/// On which connection of which session a request was sent.
pub(crate) fn writer(asked: &ChunkRequest) -> Writer {
    Writer {
        session: asked.session,
        generation: asked.generation,
    }
}

/// Orders an operation and waits for it. The inner error is the primary that it must go to.
pub(crate) fn write(
    node: &Arc<Node>,
    driver: &GroupDriver,
    op: Op,
    asked: &ChunkRequest,
    data: &Data,
    deadline: Instant,
) -> FsResult<Result<Version, NodeId>> {
    if let Some(owner) = driver
        .store
        .owner(ChunkId(asked.chunk))
        .filter(|owner| *owner != driver.id)
    {
        let context = format!(
            "chunk {} belongs to group {owner}, not {}",
            asked.chunk, driver.id
        );
        return Err(FsError::new(Code::Invalid, context));
    }
    let mut request = WriteRequest {
        ticket: 0,
        epoch: Epoch(asked.epoch),
        writer: writer(asked),
        op: operation(op, asked, data)?,
        data: data.clone(),
        durable: asked.durable || node.map().always_durable,
    };
    // Kept until the operation took its place in the store.
    let reservation = (op == Op::Write).then(|| node.reserve(&driver.store, data.len()));
    let is_short = matches!(reservation, Some(Err(_)));
    let admitted = driver.request(deadline, |core, ticket, now| {
        request.ticket = ticket;
        if is_short {
            core.set_low_space(true);
        }
        attempt(core.write(&request, now))
    });
    let outcome = outcome(driver, admitted, deadline);
    drop(reservation);
    outcome
}

fn sync(
    driver: &GroupDriver,
    asked: &ChunkRequest,
    deadline: Instant,
) -> FsResult<Result<Version, NodeId>> {
    let epoch = Epoch(asked.epoch);
    let after = Version {
        epoch: Epoch(asked.after_epoch),
        sequence: Sequence(asked.after_sequence),
    };
    let admitted = driver.request(deadline, |core, ticket, now| {
        attempt(core.sync(ticket, epoch, after, now))
    });
    outcome(driver, admitted, deadline)
}

fn attempt(admission: Admission) -> Attempt<Admission> {
    match admission {
        Admission::Taken => Attempt::Done(admission),
        Admission::Wait => Attempt::Wait,
        Admission::Forward(_) | Admission::Refused(_) => Attempt::Over(admission),
    }
}

type Admitted = Option<(
    Admission,
    Arc<crate::group::Waiter>,
    lumeofs_replica::Ticket,
)>;

fn outcome(
    driver: &GroupDriver,
    admitted: Admitted,
    deadline: Instant,
) -> FsResult<Result<Version, NodeId>> {
    let Some((admission, waiter, ticket)) = admitted else {
        return Err(not_served(driver));
    };
    match admission {
        Admission::Forward(primary) => Ok(Err(primary)),
        Admission::Refused(error) => Err(error),
        Admission::Taken | Admission::Wait => match waiter.wait_until(deadline) {
            Some(result) => result.map(Ok),
            None => {
                driver.forget(ticket);
                let context = format!("group {}: not all in-sync members answered", driver.id);
                Err(FsError::new(Code::Timeout, context))
            }
        },
    }
}

fn not_served(driver: &GroupDriver) -> FsError {
    let state = driver.with(crate::group::Caller::Quick, |core, now| core.state(now));
    let context = format!(
        "group {} is not served: {} here, epoch {}, in sync {:?} of {:?}",
        driver.id,
        state.role.name(),
        state.config.epoch,
        state.config.in_sync,
        state.config.members
    );
    FsError::new(Code::Unavailable, context)
}

pub(crate) fn read(
    driver: &GroupDriver,
    asked: &ChunkRequest,
    deadline: Instant,
) -> FsResult<Reply> {
    let len = asked.len as usize;
    let inside = asked
        .offset
        .checked_add(asked.len)
        .is_some_and(|end| end <= CHUNK_SIZE_BYTES);
    if !inside || len > IO_BYTES_MAX {
        let context = format!(
            "read {len} bytes at {} of chunk {}",
            asked.offset, asked.chunk
        );
        return Err(FsError::new(Code::Invalid, context));
    }
    let chunk = ChunkId(asked.chunk);
    let (data, checksums) = leased(driver, asked, deadline, || {
        let read = driver.read(chunk, asked.offset, len)?;
        // Looked at afterwards: what was deleted or cut meanwhile may have read as zeros.
        match driver.store.state(driver.id, chunk) {
            Some(state) if state.deleted => {
                Err(FsError::new(Code::Stale, format!("{chunk} was deleted")))
            }
            Some(state) if asked.truncations < state.truncations => {
                let (has, asked) = (state.truncations, asked.truncations);
                let context = format!("{chunk} has truncation {has}, not {asked}");
                Err(FsError::new(Code::StaleWrite, context))
            }
            // It may have been deleted and forgotten.
            None if asked.era < driver.store.era(driver.id) => {
                let context = format!("{chunk} is not there, and era {} is over", asked.era);
                Err(FsError::new(Code::StaleWrite, context))
            }
            _ => Ok(read),
        }
    })?;
    Ok((
        ChunkReply {
            checksums,
            ..Default::default()
        },
        Some(data),
    ))
}

fn extents(driver: &GroupDriver, asked: &ChunkRequest, deadline: Instant) -> FsResult<Reply> {
    let chunk = ChunkId(asked.chunk);
    let ranges = leased(driver, asked, deadline, || Ok(driver.store.extents(chunk)))?;
    let extents = ranges
        .into_iter()
        .flat_map(|(offset, len)| [offset, len])
        .collect();
    Ok((
        ChunkReply {
            extents,
            ..Default::default()
        },
        None,
    ))
}

/// Reads, if this member may, and shows the result only if it still may afterwards.
fn leased<R>(
    driver: &GroupDriver,
    asked: &ChunkRequest,
    deadline: Instant,
    read: impl FnOnce() -> FsResult<R>,
) -> FsResult<R> {
    let (epoch, chunk) = (Epoch(asked.epoch), ChunkId(asked.chunk));
    let start = driver.poll(deadline, |core, now| {
        match core.read_start(epoch, chunk, now) {
            ReadStart::Wait => None,
            ReadStart::Read(reader) => Some(Ok(reader)),
            ReadStart::Refused(error) => Some(Err(error)),
        }
    });
    let reader = start.ok_or_else(|| not_served(driver))??;
    let result = read()?;
    let mut barrier = None;
    let end = driver.poll(deadline, |core, now| {
        let barrier = *barrier.get_or_insert_with(|| core.read_barrier(chunk));
        match core.read_end(reader, barrier, now) {
            ReadEnd::Wait => None,
            ReadEnd::Answer => Some(Ok(())),
            ReadEnd::Refused(error) => Some(Err(error)),
        }
    });
    end.ok_or_else(|| not_served(driver))??;
    Ok(result)
}

fn group_state(node: &Node, asked: &GroupStateRequest) -> FsResult<GroupState> {
    let group = GroupId(asked.group);
    let driver = node.group(group).ok_or_else(|| {
        FsError::new(
            Code::WrongGroup,
            format!("group {group} has no replica on this datanode"),
        )
    })?;
    let (state, peer) = driver.with(crate::group::Caller::Quick, |core, now| {
        (core.state(now), core.peer_state())
    });
    let mut answer = state_out(&state, &peer);
    if asked.with_chunks {
        let max = (asked.chunks_max as usize).clamp(1, CHUNKS_MAX);
        let chunks = driver
            .store
            .list(group, asked.chunk_after.map(ChunkId), max);
        answer.chunks_end = chunks.len() < max;
        answer.chunks = chunks.iter().map(chunk_out).collect();
    }
    Ok(answer)
}

/// Connections to other datanodes: for requests that reached a secondary, and to fetch blocks.
#[derive(Default)]
pub(crate) struct Forwards {
    idle: Mutex<HashMap<NodeId, Vec<Conn>>>,
}

impl Forwards {
    /// Sends one request, with the id of the one that it is for, and waits for the reply.
    pub(crate) fn call(
        &self,
        node: &Node,
        to: NodeId,
        (op, request): (Op, u64),
        asked: &ChunkRequest,
        data: &[u8],
        deadline: Instant,
    ) -> FsResult<Frame> {
        let failed =
            |error: io::Error| FsError::from_net(&error, format_args!("{op:?} at datanode {to}"));
        let idle = self.idle.lock().get_mut(&to).and_then(Vec::pop);
        let mut conn = match idle {
            Some(conn) => conn,
            None => {
                let conn = Conn::connect(&node.address_of(to)?, &node.identity)?;
                crate::peers::check_peer(&conn, to)?;
                conn
            }
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let left = left.max(Duration::from_millis(1));
        conn.receiver
            .set_timeout(Some(left + Duration::from_millis(200)))
            .map_err(failed)?;
        let flags = if op == Op::Write {
            FLAG_BLOCK_CHECKSUMS
        } else {
            0
        };
        conn.sender
            .request(op, flags, left.as_millis() as u32, request, asked, &[data])
            .map_err(failed)?;
        let mut late = || Err(io::ErrorKind::TimedOut.into());
        let reply = conn.receiver.receive_while(&mut late).map_err(failed)?;
        let mut idle = self.idle.lock();
        let kept = idle.entry(to).or_default();
        if kept.len() < FORWARDS_KEPT {
            kept.push(conn);
        }
        drop(idle);
        Ok(reply)
    }
}
