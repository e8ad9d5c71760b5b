//! Copies from chunk to chunk: the primary of the chunk that is written reads the other one, as a client would, and
//! then orders a write of what it has read. So nothing new is replicated, and no client carries the bytes.

use crate::data::Data;
use crate::group::{Caller, GroupDriver};
use crate::node::Node;
use crate::requests;
use lumeofs_base::checksum::{block_checksums, verify_blocks};
use lumeofs_base::error::Retry;
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::{AlignedBuf, Code, FsError, FsResult, GroupConfig, GroupId, NodeId, Version};
use lumeofs_proto::data::{ChunkReply, ChunkRequest, CopySource};
use lumeofs_proto::frame::Op;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a member may take to read, while another one may be asked.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Copies, and waits for the write. The inner error is the primary that the request must go to.
pub(crate) fn serve(
    node: &Arc<Node>,
    driver: &GroupDriver,
    asked: &ChunkRequest,
    request: u64,
    deadline: Instant,
) -> FsResult<Result<Version, NodeId>> {
    let Some(source) = &asked.source else {
        return Err(FsError::new(Code::Invalid, "a copy without a source"));
    };
    // Before anything is read for nothing. And what is asked for again, but fails at its source, keeps out an earlier attempt
    // that still reads.
    let writer = requests::writer(asked);
    let primary = driver.with(Caller::Quick, |core, _| {
        let primary = core.config().primary;
        match primary == node.identity.node {
            true => core.admit(writer).map(|()| primary),
            false => Ok(primary),
        }
    })?;
    if primary != node.identity.node {
        return Ok(Err(primary));
    }
    let (data, checksums) = read(node, source, asked.len, request, deadline)?;
    let is_congruent = (source.offset ^ asked.offset).is_multiple_of(BLOCK_SIZE as u64);
    let write = ChunkRequest {
        // Those of the source as long as they are of the same pieces: what memory does to the bytes meanwhile shows.
        checksums: match is_congruent {
            true => checksums,
            false => block_checksums(asked.offset, &data),
        },
        source: None,
        ..asked.clone()
    };
    let data: Data = data.into();
    let written = requests::write(node, driver, Op::Write, &write, &data, deadline)?;
    if written.is_ok() {
        node.requests.add_copied(data.len());
    }
    Ok(written)
}

/// Reads the source: here if this datanode has it, else at its primary, else at another member that is in sync.
fn read(
    node: &Arc<Node>,
    source: &CopySource,
    len: u64,
    request: u64,
    deadline: Instant,
) -> FsResult<(AlignedBuf, Vec<u32>)> {
    let group = GroupId(source.group);
    let config = config(node, group).ok_or_else(|| {
        node.control.refresh();
        let context = format!("the source's group {group} is not known here yet");
        FsError::new(Code::Again, context)
    })?;
    let mut members = config.in_sync.clone();
    members.sort_by_key(|&member| (member != node.identity.node, member != config.primary));
    let asked = ChunkRequest {
        group: source.group,
        epoch: config.epoch.get(),
        chunk: source.chunk,
        offset: source.offset,
        len,
        truncations: source.truncations,
        era: source.era,
        ..Default::default()
    };
    let (mut failed, mut is_hopeless) = (None, true);
    for member in members {
        let error = match read_at(node, member, &asked, request, deadline) {
            Ok(read) => return Ok(read),
            Err(error) => error.during(format_args!("read the source at datanode {member}")),
        };
        // Cut or deleted since the copy was planned, and so for all members; or a request that no member can serve.
        if matches!(error.code, Code::StaleWrite | Code::Stale | Code::Invalid) {
            return Err(error);
        }
        tracing::debug!(%error, "a member did not serve a copy");
        is_hopeless &= error.code.retry() == Retry::Never;
        failed = Some(error);
        if Instant::now() >= deadline {
            break;
        }
    }
    let failed = failed.unwrap_or_else(|| FsError::new(Code::Again, "the source has no member"));
    if is_hopeless {
        return Err(failed);
    }
    // Perhaps its configuration is another one by now. Nothing was written.
    node.control.refresh();
    Err(FsError::new(Code::Again, failed.to_string()))
}

/// The newest configuration that is known here.
fn config(node: &Node, group: GroupId) -> Option<GroupConfig> {
    match node.group(group) {
        Some(driver) => Some(driver.with(Caller::Quick, |core, _| core.config().clone())),
        None => node.map().group(group).cloned(),
    }
}

/// Reads at a member, within its lease.
fn read_at(
    node: &Node,
    member: NodeId,
    asked: &ChunkRequest,
    request: u64,
    deadline: Instant,
) -> FsResult<(AlignedBuf, Vec<u32>)> {
    let deadline = deadline.min(Instant::now() + READ_TIMEOUT);
    let (reply, data) = match node.group(GroupId(asked.group)) {
        Some(driver) if member == node.identity.node => requests::read(&driver, asked, deadline)?,
        _ => {
            let (op, none) = ((Op::Read, request), Data::none());
            let frame = (node.forwards).call(node, member, op, asked, &none, deadline)?;
            let reply: ChunkReply = frame.decode()?;
            (reply, Some(frame.payload))
        }
    };
    let data = data.unwrap_or_else(|| AlignedBuf::zeroed(0));
    if data.len() as u64 != asked.len || !verify_blocks(asked.offset, &data, &reply.checksums) {
        let context = format!(
            "{} bytes at {} of chunk {}: wrong length or checksum",
            asked.len, asked.offset, asked.chunk
        );
        return Err(FsError::new(Code::Io, context));
    }
    Ok((data, reply.checksums))
}
