//! Between the core's types and the wire's. Nothing else knows both.

use crate::data::Data;
use lumeofs_base::limits::{CHUNK_SIZE_BYTES, SESSIONS_MAX};
use lumeofs_base::{
    ChunkId, ChunkIndex, ChunkOp, ChunkState, Code, Epoch, Fence, FilePart, FsError, FsResult,
    GroupConfig, GroupId, InodeId, NodeId, Sequence, SessionId, Version,
};
use lumeofs_proto::data as wire;
use lumeofs_replica::{CopyStep, Entry, PeerState, State, ToMember, ToPrimary, Writer};
use std::num::NonZeroU32;
use std::sync::Arc;
use wire::stream_answer::Kind as AnswerKind;
use wire::stream_message::Kind as MessageKind;

fn bad(what: &str) -> FsError {
    FsError::new(Code::Refused, format!("replication frame: {what}"))
}

fn missing<T>(value: Option<T>, what: &str) -> FsResult<T> {
    value.ok_or_else(|| bad(&format!("{what} is missing")))
}

pub(crate) fn version_out(version: Version) -> wire::OpVersion {
    wire::OpVersion {
        epoch: version.epoch.get(),
        sequence: version.sequence.get(),
    }
}

fn version_in(version: wire::OpVersion) -> Version {
    Version {
        epoch: Epoch(version.epoch),
        sequence: Sequence(version.sequence),
    }
}

pub(crate) fn config_out(config: &GroupConfig) -> wire::GroupConfiguration {
    let ids = |nodes: &[NodeId]| nodes.iter().map(|node| node.get()).collect();
    wire::GroupConfiguration {
        epoch: config.epoch.get(),
        primary: config.primary.get(),
        members: ids(&config.members),
        in_sync: ids(&config.in_sync),
        leaving: ids(&config.leaving),
        replicas: config.replicas,
    }
}

pub(crate) fn config_in(group: u32, config: wire::GroupConfiguration) -> GroupConfig {
    let ids = |nodes: Vec<u64>| nodes.into_iter().map(NodeId).collect();
    GroupConfig {
        group: GroupId(group),
        epoch: Epoch(config.epoch),
        primary: NodeId(config.primary),
        members: ids(config.members),
        in_sync: ids(config.in_sync),
        leaving: ids(config.leaving),
        replicas: config.replicas,
    }
}

fn fence_out(fence: &Fence) -> wire::Fence {
    wire::Fence {
        number: fence.number,
        below: fence.below,
        live: fence.live.iter().map(|id| id.get()).collect(),
    }
}

/// A fence, checked.
pub(crate) fn fence_in(fence: wire::Fence) -> FsResult<Fence> {
    let in_order = fence.live.is_sorted() && fence.live.len() <= SESSIONS_MAX;
    if !in_order {
        return Err(bad("the sessions of a fence are too many, or not in order"));
    }
    Ok(Fence {
        number: fence.number,
        below: fence.below,
        live: fence.live.into_iter().map(SessionId).collect(),
    })
}

fn part_out(part: FilePart) -> wire::FilePart {
    wire::FilePart {
        inode: part.inode.get(),
        index: part.index.get(),
        chunk_size: part.chunk_size.get(),
    }
}

/// A part of a file, checked as far as that is possible here.
pub(crate) fn part_in(part: wire::FilePart) -> FsResult<FilePart> {
    let chunk_size = NonZeroU32::new(part.chunk_size);
    let chunk_size = chunk_size.filter(|bytes| u64::from(bytes.get()) <= CHUNK_SIZE_BYTES);
    Ok(FilePart {
        inode: InodeId(part.inode),
        index: ChunkIndex(part.index),
        chunk_size: missing(chunk_size, "size of a chunk")?,
    })
}

fn op_out(op: &ChunkOp) -> wire::ChunkOp {
    let chunk = op.chunk().get();
    match op {
        ChunkOp::Write {
            offset,
            truncations,
            era,
            checksums,
            part,
            ..
        } => wire::ChunkOp {
            kind: 1,
            chunk,
            offset: *offset,
            len: 0,
            truncations: *truncations,
            era: *era,
            checksums: checksums.clone(),
            fence: None,
            part: part.map(part_out),
        },
        ChunkOp::Zero {
            offset,
            len,
            truncations,
            era,
            ..
        } => wire::ChunkOp {
            kind: 2,
            chunk,
            offset: *offset,
            len: *len,
            truncations: *truncations,
            era: *era,
            checksums: Vec::new(),
            fence: None,
            part: None,
        },
        ChunkOp::Truncate {
            len,
            truncations,
            era,
            ..
        } => wire::ChunkOp {
            kind: 3,
            chunk,
            offset: *len,
            len: 0,
            truncations: *truncations,
            era: *era,
            checksums: Vec::new(),
            fence: None,
            part: None,
        },
        ChunkOp::Delete { .. } => wire::ChunkOp {
            kind: 4,
            chunk,
            ..Default::default()
        },
        ChunkOp::Fence { fence } => wire::ChunkOp {
            kind: 5,
            fence: Some(fence_out(fence)),
            ..Default::default()
        },
    }
}

fn op_in(op: wire::ChunkOp) -> FsResult<ChunkOp> {
    let wire::ChunkOp {
        kind,
        chunk,
        offset,
        len,
        truncations,
        checksums,
        era,
        fence,
        part,
    } = op;
    let chunk = ChunkId(chunk);
    Ok(match kind {
        1 => ChunkOp::Write {
            chunk,
            offset,
            truncations,
            era,
            checksums,
            part: part.map(part_in).transpose()?,
        },
        2 => ChunkOp::Zero {
            chunk,
            offset,
            len,
            truncations,
            era,
        },
        3 => ChunkOp::Truncate {
            chunk,
            len: offset,
            truncations,
            era,
        },
        4 => ChunkOp::Delete { chunk },
        5 => ChunkOp::Fence {
            fence: fence_in(missing(fence, "fence")?)?,
        },
        other => return Err(bad(&format!("kind {other} of operation"))),
    })
}

pub(crate) fn chunk_out(state: &ChunkState) -> wire::ChunkVersion {
    wire::ChunkVersion {
        chunk: state.chunk.get(),
        version: Some(version_out(state.version)),
        len: state.len,
        truncations: state.truncations,
        deleted: state.deleted,
        part: state.part.map(part_out),
    }
}

fn chunk_in(state: wire::ChunkVersion) -> FsResult<ChunkState> {
    Ok(ChunkState {
        chunk: ChunkId(state.chunk),
        version: state.version.map(version_in).unwrap_or_default(),
        len: state.len,
        truncations: state.truncations,
        deleted: state.deleted,
        part: state.part.map(part_in).transpose()?,
    })
}

fn entry_out(entry: &Entry<Data>) -> wire::Replicate {
    wire::Replicate {
        kind: wire::replicate::Kind::Whole.into(),
        version: Some(version_out(entry.version)),
        committed: 0,
        op: Some(op_out(&entry.op)),
        session: entry.writer.session,
        generation: entry.writer.generation,
        sync: false,
    }
}

fn entry_in(replicate: wire::Replicate, data: Data) -> FsResult<Arc<Entry<Data>>> {
    Ok(Arc::new(Entry {
        version: version_in(missing(replicate.version, "version")?),
        writer: Writer {
            session: replicate.session,
            generation: replicate.generation,
        },
        op: op_in(missing(replicate.op, "operation")?)?,
        data,
    }))
}

/// A message and its payload.
pub(crate) fn message_out(
    group: GroupId,
    message: ToMember<Data>,
) -> (wire::StreamMessage, Option<Data>) {
    let mut data = None;
    let kind = match message {
        ToMember::Attach { config } => MessageKind::Attach(config_out(&config)),
        ToMember::Config { config } => MessageKind::Config(config_out(&config)),
        ToMember::Op {
            entry,
            committed,
            sync,
        } => {
            data = Some(entry.data.clone());
            let committed = committed.get();
            MessageKind::Replicate(wire::Replicate {
                committed,
                sync,
                ..entry_out(&entry)
            })
        }
        ToMember::Patch { entry } => {
            data = Some(entry.data.clone());
            let kind = wire::replicate::Kind::Patch.into();
            MessageKind::Replicate(wire::Replicate {
                kind,
                ..entry_out(&entry)
            })
        }
        ToMember::Skip { version, writer } => MessageKind::Replicate(wire::Replicate {
            kind: wire::replicate::Kind::Skip.into(),
            version: Some(version_out(version)),
            session: writer.session,
            generation: writer.generation,
            ..Default::default()
        }),
        ToMember::Commit { committed } => MessageKind::Commit(committed.get()),
        ToMember::Sync { upto } => MessageKind::Sync(upto.get()),
        ToMember::Tail { after } => MessageKind::TailAfter(after.get()),
        ToMember::CatchUp { position } => MessageKind::CatchUp(version_out(position)),
        ToMember::List { after } => MessageKind::List(wire::ListChunks {
            after: after.map(ChunkId::get),
        }),
        ToMember::Copy(step) => MessageKind::Copy(match step {
            CopyStep::Begin { chunk } => wire::Copy {
                kind: 1,
                chunk: chunk.get(),
                ..Default::default()
            },
            CopyStep::Piece {
                chunk,
                offset,
                checksums,
                data: piece,
            } => {
                data = Some(piece);
                wire::Copy {
                    kind: 2,
                    chunk: chunk.get(),
                    offset,
                    checksums,
                    state: None,
                }
            }
            CopyStep::End { state } => wire::Copy {
                kind: 3,
                chunk: state.chunk.get(),
                state: Some(chunk_out(&state)),
                ..Default::default()
            },
            CopyStep::Drop { chunk } => wire::Copy {
                kind: 4,
                chunk: chunk.get(),
                ..Default::default()
            },
        }),
        ToMember::Done {
            last,
            starts,
            writers,
            fence,
        } => MessageKind::Done(wire::Done {
            fence: Some(fence_out(&fence)),
            last: Some(version_out(last)),
            starts: starts
                .into_iter()
                .map(|(epoch, sequence)| version_out(Version { epoch, sequence }))
                .collect(),
            sessions: writers.iter().map(|writer| writer.session).collect(),
            generations: writers.iter().map(|writer| writer.generation).collect(),
        }),
    };
    (
        wire::StreamMessage {
            group: group.get(),
            kind: Some(kind),
        },
        data,
    )
}

pub(crate) fn message_in(message: wire::StreamMessage, data: Data) -> FsResult<ToMember<Data>> {
    let group = message.group;
    Ok(match missing(message.kind, "kind of message")? {
        MessageKind::Attach(config) => ToMember::Attach {
            config: config_in(group, config),
        },
        MessageKind::Config(config) => ToMember::Config {
            config: config_in(group, config),
        },
        MessageKind::Replicate(replicate) => match replicate.kind() {
            wire::replicate::Kind::Whole => ToMember::Op {
                committed: Sequence(replicate.committed),
                sync: replicate.sync,
                entry: entry_in(replicate, data)?,
            },
            wire::replicate::Kind::Patch => ToMember::Patch {
                entry: entry_in(replicate, data)?,
            },
            wire::replicate::Kind::Skip => ToMember::Skip {
                version: version_in(missing(replicate.version, "version")?),
                writer: Writer {
                    session: replicate.session,
                    generation: replicate.generation,
                },
            },
        },
        MessageKind::Commit(committed) => ToMember::Commit {
            committed: Sequence(committed),
        },
        MessageKind::Sync(upto) => ToMember::Sync {
            upto: Sequence(upto),
        },
        MessageKind::TailAfter(after) => ToMember::Tail {
            after: Sequence(after),
        },
        MessageKind::CatchUp(position) => ToMember::CatchUp {
            position: version_in(position),
        },
        MessageKind::List(list) => ToMember::List {
            after: list.after.map(ChunkId),
        },
        MessageKind::Copy(copy) => ToMember::Copy(match copy.kind {
            1 => CopyStep::Begin {
                chunk: ChunkId(copy.chunk),
            },
            2 => CopyStep::Piece {
                chunk: ChunkId(copy.chunk),
                offset: copy.offset,
                checksums: copy.checksums,
                data,
            },
            3 => CopyStep::End {
                state: chunk_in(missing(copy.state, "state of a chunk")?)?,
            },
            4 => CopyStep::Drop {
                chunk: ChunkId(copy.chunk),
            },
            other => return Err(bad(&format!("kind {other} of copy"))),
        }),
        MessageKind::Done(done) => ToMember::Done {
            fence: fence_in(missing(done.fence, "fence")?)?,
            last: version_in(missing(done.last, "version")?),
            starts: done
                .starts
                .into_iter()
                .map(|start| (Epoch(start.epoch), Sequence(start.sequence)))
                .collect(),
            writers: done
                .sessions
                .into_iter()
                .zip(done.generations)
                .map(|(session, generation)| Writer {
                    session,
                    generation,
                })
                .collect(),
        },
    })
}

/// An answer and its payload.
pub(crate) fn answer_out(answer: ToPrimary<Data>) -> (wire::StreamAnswer, Option<Data>) {
    let mut data = None;
    let progress = |applied: Sequence, durable: Sequence| wire::Progress {
        applied: applied.get(),
        durable: durable.get(),
    };
    let kind = match answer {
        ToPrimary::Attached {
            complete,
            last,
            tail_from,
            applied,
            durable,
        } => AnswerKind::Attached(wire::Attached {
            complete,
            last: Some(version_out(last)),
            tail_from: tail_from.get(),
            progress: Some(progress(applied, durable)),
        }),
        ToPrimary::Refused { epoch } => AnswerKind::Refused(epoch.get()),
        ToPrimary::Ack { applied, durable } => AnswerKind::Progress(progress(applied, durable)),
        ToPrimary::TailOp { entry } => {
            data = Some(entry.data.clone());
            AnswerKind::Tail(entry_out(&entry))
        }
        ToPrimary::TailEnd => AnswerKind::TailEnd(true),
        ToPrimary::Listed { chunks, end } => AnswerKind::Listed(wire::ChunkList {
            chunks: chunks.iter().map(chunk_out).collect(),
            end,
        }),
        ToPrimary::Copied => AnswerKind::Copied(true),
        ToPrimary::Finished { last } => AnswerKind::Finished(last.get()),
        ToPrimary::Failed { code } => AnswerKind::Failed(format!("{code:?}")),
    };
    (wire::StreamAnswer { kind: Some(kind) }, data)
}

pub(crate) fn answer_in(answer: wire::StreamAnswer, data: Data) -> FsResult<ToPrimary<Data>> {
    Ok(match missing(answer.kind, "kind of answer")? {
        AnswerKind::Attached(attached) => {
            let progress = attached.progress.unwrap_or_default();
            ToPrimary::Attached {
                complete: attached.complete,
                last: version_in(missing(attached.last, "version")?),
                tail_from: Sequence(attached.tail_from),
                applied: Sequence(progress.applied),
                durable: Sequence(progress.durable),
            }
        }
        AnswerKind::Refused(epoch) => ToPrimary::Refused {
            epoch: Epoch(epoch),
        },
        AnswerKind::Progress(progress) => ToPrimary::Ack {
            applied: Sequence(progress.applied),
            durable: Sequence(progress.durable),
        },
        AnswerKind::Tail(replicate) => ToPrimary::TailOp {
            entry: entry_in(replicate, data)?,
        },
        AnswerKind::TailEnd(_) => ToPrimary::TailEnd,
        AnswerKind::Listed(list) => ToPrimary::Listed {
            chunks: list
                .chunks
                .into_iter()
                .map(chunk_in)
                .collect::<FsResult<_>>()?,
            end: list.end,
        },
        AnswerKind::Copied(_) => ToPrimary::Copied,
        AnswerKind::Finished(last) => ToPrimary::Finished {
            last: Sequence(last),
        },
        AnswerKind::Failed(_) => ToPrimary::Failed { code: Code::Io },
    })
}

pub(crate) fn state_out(state: &State, peer: &PeerState) -> wire::GroupState {
    wire::GroupState {
        config: Some(config_out(&state.config)),
        last: Some(version_out(peer.last)),
        durable_sequence: state.durable.get(),
        committed: state.committed.get(),
        role: state.role.name().to_owned(),
        lease_left_ms: state.lease_left.as_millis() as u64,
        complete: peer.complete,
        eligible: peer.eligible,
        chunks: Vec::new(),
        chunks_end: false,
    }
}

pub(crate) fn peer_state_in(node: NodeId, state: wire::GroupState) -> PeerState {
    PeerState {
        node,
        epoch: Epoch(state.config.map_or(0, |config| config.epoch)),
        complete: state.complete,
        eligible: state.eligible,
        last: state.last.map(version_in).unwrap_or_default(),
    }
}
