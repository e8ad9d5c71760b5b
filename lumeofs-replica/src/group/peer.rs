//! Another member, as its primary sees it.

use super::catchup::CatchUp;
use super::{ACK_SILENCE, REOPEN_AFTER_HANG, REOPEN_DOUBLINGS_MAX, SYNC_SILENCE};
use crate::message::StreamId;
use lumeofs_base::{Sequence, Version};
use std::time::Duration;

/// Another member, as its primary sees it.
pub(super) struct Member<P> {
    pub(super) stream: Option<StreamId>,
    pub(super) phase: Phase<P>,
    pub(super) applied: Sequence,
    pub(super) durable: Sequence,
    pub(super) sync_sent: Sequence,
    pub(super) told_committed: Sequence,
    /// Last sign of life.
    pub(super) heard: Duration,
    /// Last progress, or last moment without anything to do.
    pub(super) progress: Duration,
    /// Last time that its disk synced, or had nothing to sync.
    pub(super) synced: Duration,
    /// How often its disk has hung since it last synced.
    hangs: u32,
    pub(super) reopen_at: Duration,
    /// Since when it has not been live.
    pub(super) trouble: Option<Duration>,
    /// When it was attached last it said that it lacks something.
    pub(super) said_incomplete: bool,
    /// When the last beacon that it answered was sent.
    pub(super) beacon_acked: Option<Duration>,
    /// Its clock in its last answer, and when that was received.
    pub(super) answer: Option<(Duration, Duration)>,
    /// When the last answer that was echoed to it had been received: its read lease began before.
    pub(super) echoed: Option<Duration>,
    pub(super) low_space: bool,
    /// Since when it has been live, the last time that it was.
    pub(super) live_since: Duration,
}

/// How far a stream has got.
pub(super) enum Phase<P> {
    /// Not connected.
    Down,
    /// Connecting.
    Opening,
    /// Waits for `Attached`.
    Attaching,
    /// Attached; what to do with it is not decided yet.
    Attached(Attached),
    /// It sends operations that the primary lacks.
    Fetching(Attached),
    /// Is being caught up.
    CatchingUp(Box<CatchUp<P>>),
    /// Has the primary's history and receives every operation.
    Live,
}

/// What a member said when it was attached.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attached {
    pub(super) complete: bool,
    pub(super) last: Version,
    pub(super) tail_from: Sequence,
}

impl<P> Member<P> {
    pub(super) fn new(now: Duration) -> Self {
        Self {
            stream: None,
            phase: Phase::Down,
            applied: Sequence(0),
            durable: Sequence(0),
            sync_sent: Sequence(0),
            told_committed: Sequence(0),
            heard: now,
            progress: now,
            synced: now,
            hangs: 0,
            reopen_at: now,
            trouble: Some(now),
            said_incomplete: false,
            beacon_acked: None,
            answer: None,
            echoed: None,
            low_space: false,
            live_since: now,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// It restarted, or fell behind: it says so itself, so it holds no read lease.
    pub(super) fn is_known_incomplete(&self) -> bool {
        self.said_incomplete && matches!(self.phase, Phase::Attached(_) | Phase::CatchingUp(_))
    }

    /// Progress that it reports.
    pub(super) fn acknowledged(&mut self, applied: Sequence, durable: Sequence, now: Duration) {
        if applied > self.applied {
            self.progress = now;
        }
        if durable > self.durable {
            self.synced = now;
            self.hangs = 0;
        }
        self.applied = self.applied.max(applied);
        self.durable = self.durable.max(durable.min(applied));
    }

    /// Whether it has done nothing for too long of what it has to do up to `last`: its disk hangs.
    pub(super) fn hangs(&mut self, last: Sequence, now: Duration) -> bool {
        let patience = match &self.phase {
            // Its disk writes out what may be the whole group.
            Phase::CatchingUp(catch_up) if catch_up.is_done() => SYNC_SILENCE,
            // There is always a next step.
            Phase::CatchingUp(_) => ACK_SILENCE,
            _ => {
                if self.position() >= last {
                    self.progress = now;
                }
                ACK_SILENCE
            }
        };
        if self.durable >= self.sync_sent {
            self.synced = now;
        }
        now >= self.progress + patience || now >= self.synced + SYNC_SILENCE
    }

    /// Its stream was closed because its disk hangs.
    pub(super) fn hung(&mut self, in_sync: bool, now: Duration) {
        let doublings = match in_sync {
            true => 0,
            false => self.hangs.min(REOPEN_DOUBLINGS_MAX),
        };
        self.hangs += 1;
        self.reopen_at = now + REOPEN_AFTER_HANG * 2u32.pow(doublings);
    }

    /// How far it has followed the stream.
    pub(super) fn position(&self) -> Sequence {
        match &self.phase {
            Phase::CatchingUp(catch_up) => catch_up.position,
            Phase::Down
            | Phase::Opening
            | Phase::Attaching
            | Phase::Attached(_)
            | Phase::Fetching(_)
            | Phase::Live => self.applied,
        }
    }
}
