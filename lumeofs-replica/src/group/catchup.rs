//! Catching a member up beside live operations (D7): the primary's side.
//!
//! Chunks are compared and copied in the order of their ids. What the primary reads for that is read
//! in its store's queue, so at a known place in the order of operations: all before it are in what was
//! read, none after it. Everything for the member goes out on one stream in that same order:
//! operations that come after a read wait (`held`) until its result has been sent, and each then goes
//! out in full (its chunk is settled), as a patch (its chunk is being copied: only what lies in the
//! copied beginning) or as an empty place (its chunk will be copied later, with it).

use crate::clip;
use crate::effect::Piece;
use crate::message::{CopyStep, Entry, Payload, ToMember};
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::{ChunkId, ChunkOp, ChunkState, NodeId, Past, Sequence, Verdict, Version};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Pieces on their way that the member has not written yet.
const PIECES_MAX: u32 = 4;

/// How far a member has been caught up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatchUpProgress {
    /// The member.
    pub node: NodeId,
    /// Chunks up to here were compared; `None` = none yet.
    pub upto: Option<ChunkId>,
    /// Of those, the ones that still must be copied.
    pub todo: u64,
    /// Bytes that were copied.
    pub copied_bytes: u64,
}

/// State of one catch-up.
pub(super) struct CatchUp<P> {
    /// How far the member has followed.
    pub(super) position: Sequence,
    stage: Stage,
    /// Operations behind a read that is under way.
    held: Vec<Arc<Entry<P>>>,
    /// Chunks up to here are compared; `None` = none.
    upto: Option<ChunkId>,
    /// Of those, the ones that still must be copied.
    todo: BTreeSet<ChunkId>,
    current: Option<Current>,
    theirs: Vec<ChunkState>,
    theirs_end: bool,
    pieces: u32,
    /// Bytes of the pieces that were sent.
    copied_bytes: u64,
}

/// The chunk that is being copied. The member cannot tell which operations leave it as it is, since
/// it does not have the chunk's history: that is followed here.
#[derive(Clone, Copy, Debug)]
struct Current {
    chunk: ChunkId,
    /// Where its copy ends so far.
    end: u64,
    truncations: u32,
    deleted: bool,
}

impl Current {
    /// Whether the primary's store will leave the chunk as it is; takes note of the operation if not.
    fn ignores(&mut self, op: &ChunkOp) -> bool {
        let past = Past {
            truncations: self.truncations,
            deleted: self.deleted,
        };
        let changes = op.verdict(Some(past), 0) == Verdict::Change;
        if changes {
            self.truncations = op.truncations_after(self.truncations);
            self.deleted |= matches!(op, ChunkOp::Delete { .. });
        }
        !changes
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Decides what comes next.
    Idle,
    /// The member lists its chunks. Operations flow.
    TheirList,
    /// The primary's store is read; operations are held.
    Reading,
    /// The member has enough pieces to write. Operations flow.
    Pieces,
    /// The end was sent.
    Done,
}

/// What a catch-up wants done.
pub(super) enum Step<P> {
    Send(ToMember<P>),
    List { after: Option<ChunkId> },
    Read { chunk: ChunkId, offset: u64 },
    Done,
}

impl<P> CatchUp<P> {
    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// How far it is, for people.
    pub(super) fn progress(&self, node: NodeId) -> CatchUpProgress {
        CatchUpProgress {
            node,
            upto: self.upto,
            todo: self.todo.len() as u64 + u64::from(self.current.is_some()),
            copied_bytes: self.copied_bytes,
        }
    }
}

impl<P: Payload> CatchUp<P> {
    pub(super) fn start(position: Version) -> (Self, ToMember<P>) {
        let catch_up = Self {
            position: position.sequence,
            stage: Stage::Idle,
            held: Vec::new(),
            upto: None,
            todo: BTreeSet::new(),
            current: None,
            theirs: Vec::new(),
            theirs_end: false,
            pieces: 0,
            copied_bytes: 0,
        };
        (catch_up, ToMember::CatchUp { position })
    }

    /// A new operation: what the member must be sent of it now.
    pub(super) fn route(&mut self, entry: &Arc<Entry<P>>) -> Option<ToMember<P>> {
        if self.stage == Stage::Reading {
            self.held.push(entry.clone());
            return None;
        }
        Some(self.message(entry))
    }

    fn message(&mut self, entry: &Arc<Entry<P>>) -> ToMember<P> {
        let chunk = entry.op.chunk();
        let skip = ToMember::Skip {
            version: entry.version,
            writer: entry.writer,
        };
        if let Some(current) = self
            .current
            .as_mut()
            .filter(|current| current.chunk == chunk)
        {
            let clipped = match current.ignores(&entry.op) {
                true => None,
                false => clip::below(&entry.op, &entry.data, current.end),
            };
            let Some((op, data)) = clipped else {
                return skip;
            };
            let (version, writer) = (entry.version, entry.writer);
            return ToMember::Patch {
                entry: Arc::new(Entry {
                    version,
                    writer,
                    op,
                    data,
                }),
            };
        }
        if self.upto.is_none_or(|upto| chunk > upto) || self.todo.contains(&chunk) {
            return skip;
        }
        ToMember::Op {
            entry: entry.clone(),
            committed: Sequence(0),
            sync: false,
        }
    }

    /// Sends what was held, now that the read that held it up is accounted for.
    fn release(&mut self, steps: &mut Vec<Step<P>>) {
        self.stage = Stage::Idle;
        for entry in std::mem::take(&mut self.held) {
            steps.push(Step::Send(self.message(&entry)));
        }
        steps.extend(self.next_step());
    }

    pub(super) fn next_step(&mut self) -> Vec<Step<P>> {
        let mut steps = Vec::new();
        if self.stage != Stage::Idle {
            return steps;
        }
        if self.current.is_none()
            && let Some(chunk) = self.todo.pop_first()
        {
            // Nothing lies below byte 0, so that the rest does not matter before the first piece.
            self.current = Some(Current {
                chunk,
                end: 0,
                truncations: 0,
                deleted: false,
            });
            steps.push(Step::Send(ToMember::Copy(CopyStep::Begin { chunk })));
        }
        if let Some(Current {
            chunk, end: offset, ..
        }) = self.current
        {
            if self.pieces >= PIECES_MAX {
                self.stage = Stage::Pieces;
            } else {
                self.stage = Stage::Reading;
                steps.push(Step::Read { chunk, offset });
            }
        } else if self.upto == Some(ChunkId(u64::MAX)) {
            self.stage = Stage::Done;
            steps.push(Step::Done);
        } else if self.theirs.is_empty() && !self.theirs_end {
            self.stage = Stage::TheirList;
            steps.push(Step::Send(ToMember::List { after: self.upto }));
        } else {
            self.stage = Stage::Reading;
            steps.push(Step::List { after: self.upto });
        }
        steps
    }

    pub(super) fn on_listed(&mut self, chunks: Vec<ChunkState>, end: bool) -> Vec<Step<P>> {
        if self.stage != Stage::TheirList {
            return Vec::new();
        }
        self.theirs = chunks;
        self.theirs_end = end || self.theirs.is_empty();
        self.stage = Stage::Idle;
        self.next_step()
    }

    pub(super) fn on_own_list(&mut self, own: Vec<ChunkState>, end: bool) -> Vec<Step<P>> {
        let mut steps = Vec::new();
        if self.stage != Stage::Reading || self.current.is_some() {
            return steps;
        }
        let last_of = |chunks: &[ChunkState], end: bool| match chunks.last() {
            Some(last) if !end => last.chunk,
            _ => ChunkId(u64::MAX),
        };
        let upto = last_of(&own, end || own.is_empty()).min(last_of(&self.theirs, self.theirs_end));
        let same =
            |a: &ChunkState, b: &ChunkState| a.version == b.version && a.deleted == b.deleted;
        for mine in own.iter().take_while(|mine| mine.chunk <= upto) {
            let theirs = self
                .theirs
                .binary_search_by_key(&mine.chunk, |theirs| theirs.chunk);
            if !theirs.is_ok_and(|at| same(mine, &self.theirs[at])) {
                self.todo.insert(mine.chunk);
            }
        }
        for theirs in self.theirs.iter().take_while(|theirs| theirs.chunk <= upto) {
            if own
                .binary_search_by_key(&theirs.chunk, |mine| mine.chunk)
                .is_err()
            {
                let step = CopyStep::Drop {
                    chunk: theirs.chunk,
                };
                steps.push(Step::Send(ToMember::Copy(step)));
            }
        }
        self.theirs.retain(|theirs| theirs.chunk > upto);
        self.upto = Some(upto);
        self.release(&mut steps);
        steps
    }

    pub(super) fn on_piece(&mut self, piece: Piece<P>) -> Vec<Step<P>> {
        let mut steps = Vec::new();
        let expected = self
            .current
            .is_some_and(|current| current.chunk == piece.chunk);
        if self.stage != Stage::Reading || !expected {
            return steps;
        }
        let Piece {
            chunk,
            offset,
            checksums,
            data,
            truncations,
            end,
        } = piece;
        let copied = (offset + data.len() as u64).next_multiple_of(BLOCK_SIZE as u64);
        if !data.is_empty() {
            self.pieces += 1;
            self.copied_bytes += data.len() as u64;
            let step = CopyStep::Piece {
                chunk,
                offset,
                checksums,
                data,
            };
            steps.push(Step::Send(ToMember::Copy(step)));
        }
        self.current = Some(Current {
            chunk,
            end: copied,
            truncations,
            deleted: false,
        });
        if let Some(state) = end {
            steps.push(Step::Send(ToMember::Copy(CopyStep::End { state })));
            self.current = None;
        }
        self.release(&mut steps);
        steps
    }

    pub(super) fn on_copied(&mut self) -> Vec<Step<P>> {
        self.pieces = self.pieces.saturating_sub(1);
        if self.stage == Stage::Pieces {
            self.stage = Stage::Idle;
        }
        self.next_step()
    }
}
