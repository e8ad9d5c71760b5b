//! Single blocks between datanodes: what one asks of another when its own copy is damaged.
//!
//! Not a client's read: no lease is needed, since whoever asks judges by the chunk's version whether it is what it
//! should have.

use crate::data::Data;
use crate::group::GroupDriver;
use crate::node::Node;
use crate::store::GoodBlock;
use lumeofs_base::checksum::verify_blocks;
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::{
    AlignedBuf, ChunkId, Code, Epoch, FsError, FsResult, GroupId, NodeId, Sequence, Version,
};
use lumeofs_proto::data::{ChunkReply, ChunkRequest};
use lumeofs_proto::frame::Op;
use std::time::{Duration, Instant};

/// How long a member may take for a block.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Reads of a block of a chunk that is being written, until one falls between two operations.
const READS_MAX: usize = 8;

/// A member's block, verified.
pub(crate) fn block(
    node: &Node,
    member: NodeId,
    group: GroupId,
    chunk: ChunkId,
    offset: u64,
) -> FsResult<GoodBlock> {
    let asked = ChunkRequest {
        group: group.get(),
        chunk: chunk.get(),
        offset,
        len: BLOCK_SIZE as u64,
        ..Default::default()
    };
    let (deadline, none) = (Instant::now() + TIMEOUT, Data::none());
    let frame = node
        .forwards
        .call(node, member, (Op::Fetch, 0), &asked, &none, deadline)?;
    let reply: ChunkReply = frame.decode()?;
    let data = frame.payload;
    if data.len() != BLOCK_SIZE || !verify_blocks(offset, &data, &reply.checksums) {
        let context =
            format!("block at {offset} of {chunk} from datanode {member}: wrong checksum");
        return Err(FsError::new(Code::Io, context));
    }
    let version = Version {
        epoch: Epoch(reply.epoch),
        sequence: Sequence(reply.sequence),
    };
    Ok(GoodBlock { version, data })
}

/// The own block with the version of its chunk, for another member.
pub(crate) fn serve(
    driver: &GroupDriver,
    asked: &ChunkRequest,
) -> FsResult<(ChunkReply, Option<AlignedBuf>)> {
    let (chunk, offset) = (ChunkId(asked.chunk), asked.offset);
    if asked.len != BLOCK_SIZE as u64 || !offset.is_multiple_of(BLOCK_SIZE as u64) {
        let context = format!(
            "fetch {} bytes at {offset} of chunk {chunk}: want one block",
            asked.len
        );
        return Err(FsError::new(Code::Invalid, context));
    }
    let version = || {
        let state = driver.store.state(driver.id, chunk)?;
        (!state.deleted && state.version != Version::default()).then_some(state.version)
    };
    for _ in 0..READS_MAX {
        let Some(before) = version() else {
            let context = format!("chunk {chunk} of group {} is not here", driver.id);
            return Err(FsError::new(Code::NotFound, context));
        };
        let (data, checksums) = driver.store.read(chunk, offset, BLOCK_SIZE)?;
        if version() == Some(before) {
            let (epoch, sequence) = (before.epoch.get(), before.sequence.get());
            let reply = ChunkReply {
                epoch,
                sequence,
                checksums,
                ..Default::default()
            };
            return Ok((reply, Some(data)));
        }
    }
    let context = format!("chunk {chunk} is being written");
    Err(FsError::new(Code::Again, context))
}
