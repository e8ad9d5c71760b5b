//! Repairing damaged blocks: each is asked of the other members until one has what this member should have.
//!
//! The member keeps its place in the group meanwhile, so this also works in a group that cannot do without it. Nothing is
//! given up before something good is here: blocks that are damaged on all members but one, each on another one, all
//! come back.

use super::Scrub;
use crate::fetch;
use crate::group::Caller;
use crate::node::Node;
use crate::store::{Mended, Verified};
use lumeofs_base::clock::{Clock, SystemClock};
use lumeofs_base::error::Retry;
use lumeofs_base::limits::{DAMAGED_PIECES_MAX, SCRUB_PIECE_BYTES};
use lumeofs_base::{ChunkId, GroupConfig, GroupId, NodeId};
use std::time::Duration;

/// Between two attempts to repair a piece, at first; doubled with each.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_DOUBLINGS_MAX: u32 = 5;
/// How long a request waits for another thread that repairs.
const TURN_MAX: Duration = Duration::from_secs(1);

/// A piece with damaged blocks.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// As seen last; 0 before the first attempt.
    blocks: u64,
    attempts: u32,
    tried: Duration,
    due: Duration,
}

impl Waiting {
    pub(super) fn count(&self) -> u64 {
        self.blocks.max(1)
    }
}

impl Scrub {
    /// Takes over what reads came upon.
    pub(super) fn take_noted(&self) {
        let noted = self.store.take_damaged();
        if noted.is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        for piece in noted {
            // A further one is found again.
            if inner.waiting.len() < DAMAGED_PIECES_MAX {
                inner.waiting.entry(piece).or_default().due = Duration::ZERO;
            }
        }
    }

    /// Repairs what it is time for.
    pub(super) fn mend_due(&self, node: &Node) {
        let now = SystemClock.monotonic();
        let inner = self.inner.lock();
        let due = inner
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.due <= now);
        let due: Vec<_> = due.map(|(piece, _)| *piece).collect();
        drop(inner);
        for (chunk, offset) in due {
            if node.is_stopping() {
                return;
            }
            let _turn = self.mending.lock();
            self.mend_piece(node, chunk, offset);
        }
    }

    /// A request came upon damage in a range: repairs it at once. Whether all of the range is whole now.
    pub(crate) fn mend_range(&self, node: &Node, chunk: ChunkId, offset: u64, len: u64) -> bool {
        let Some(_turn) = self.mending.try_lock_for(TURN_MAX) else {
            return false;
        };
        let piece = SCRUB_PIECE_BYTES as u64;
        let mut start = offset / piece * piece;
        let mut is_whole = true;
        while start < offset.saturating_add(len.max(1)) {
            is_whole &= !self.was_just_tried((chunk, start)) && self.mend_piece(node, chunk, start);
            start += piece;
        }
        is_whole
    }

    /// Whether nobody could help with the piece a moment ago.
    fn was_just_tried(&self, piece: (ChunkId, u64)) -> bool {
        let now = SystemClock.monotonic();
        let inner = self.inner.lock();
        let waiting = inner.waiting.get(&piece);
        waiting.is_some_and(|waiting| waiting.attempts > 0 && now < waiting.tried + RETRY_FIRST)
    }

    /// One attempt to repair a piece. Whether it is whole.
    fn mend_piece(&self, node: &Node, chunk: ChunkId, offset: u64) -> bool {
        let Ok(verified) = self.store.verify(chunk, offset) else {
            return false;
        };
        let seen = verified.damaged.len() as u64;
        self.count_seen((chunk, offset), &verified);
        let left = match self.store.owner(chunk) {
            Some(group) if seen > 0 => self.mend_blocks(node, group, chunk, verified),
            // It was deleted meanwhile, or is whole.
            Some(_) | None => 0,
        };
        self.count_left((chunk, offset), seen, left);
        left == 0
    }

    /// Tells of damage that was not known.
    fn count_seen(&self, piece: (ChunkId, u64), verified: &Verified) {
        let Some(first) = verified.damaged.first() else {
            return;
        };
        let seen = verified.damaged.len() as u64;
        let mut inner = self.inner.lock();
        let waiting = inner.waiting.entry(piece).or_default();
        let known = waiting.blocks;
        waiting.blocks = seen;
        if seen > known {
            inner.record.damaged += seen - known;
            inner.kept_at = None;
            let error = &first.error;
            tracing::error!(blocks = seen, %error, "damaged on the disk: asking other replicas for it");
        }
    }

    fn count_left(&self, piece: (ChunkId, u64), seen: u64, left: u64) {
        let now = SystemClock.monotonic();
        let mut inner = self.inner.lock();
        inner.record.repaired += seen - left;
        if seen > left {
            inner.kept_at = None;
            tracing::info!(chunk = %piece.0, blocks = seen - left, "damaged blocks are repaired");
        }
        if left == 0 {
            inner.waiting.remove(&piece);
            return;
        }
        let waiting = inner.waiting.entry(piece).or_default();
        waiting.blocks = left;
        waiting.tried = now;
        waiting.due = now + RETRY_FIRST * 2u32.pow(waiting.attempts.min(RETRY_DOUBLINGS_MAX));
        waiting.attempts = waiting.attempts.saturating_add(1);
        if waiting.attempts == 1 {
            tracing::warn!(chunk = %piece.0, blocks = left, "no replica has a good copy now; trying again");
        }
    }

    /// How many blocks are still damaged afterwards.
    fn mend_blocks(&self, node: &Node, group: GroupId, chunk: ChunkId, verified: Verified) -> u64 {
        let Some(driver) = node.group(group) else {
            return verified.damaged.len() as u64;
        };
        let config = driver.with(Caller::Quick, |core, _| core.config().clone());
        let (version, mut left) = (verified.version, verified.damaged);
        for member in others(&config, node.identity.node) {
            let mut answers = true;
            left.retain(|block| {
                if !answers {
                    return true;
                }
                match fetch::block(node, member, group, chunk, block.offset) {
                    Ok(good) => {
                        let mended = self.store.mend(group, chunk, version, block, &good);
                        !matches!(mended, Ok(Mended::Whole | Mended::Gone))
                    }
                    Err(error) => {
                        tracing::debug!(%member, %chunk, %error, "a replica has no good copy");
                        answers = error.code.retry() == Retry::Never;
                        true
                    }
                }
            });
            if left.is_empty() {
                break;
            }
        }
        left.len() as u64
    }
}

/// The other members, those in sync first: they have as many operations, or soon will.
pub(crate) fn others(config: &GroupConfig, me: NodeId) -> Vec<NodeId> {
    let mut others = config.members.clone();
    others.retain(|node| *node != me);
    others.sort_by_key(|node| !config.is_in_sync(*node));
    others
}
