//! A replica group at one of its members.

mod beacon;
mod catchup;
mod election;
mod fence;
mod in_sync;
mod insight;
mod member;
mod peer;
mod primary;
pub mod read;
mod requests;
mod streams;
mod watch;
mod yielding;

pub use catchup::CatchUpProgress;
pub use insight::Waits;

use crate::effect::{Effect, Outcome, Pending, SyncPoint, Ticket, Work};
use crate::history::Note;
use crate::message::{Entry, Payload, PeerState, Writer};
use crate::tail::Tail;
use crate::writers::Writers;
use lumeofs_base::limits::READ_LEASE;
use lumeofs_base::{
    ChunkOp, Code, Epoch, FsError, FsResult, GroupConfig, NodeId, Sequence, Version,
};
use std::sync::Arc;
use std::time::Duration;

/// Left unused at the end of every lease: clocks of two machines drift apart by less in its time.
pub const LEASE_MARGIN: Duration = Duration::from_millis(20);
/// Silence of a member after which its primary gives its stream up: three beacons.
pub const MEMBER_SILENCE: Duration = Duration::from_millis(1500);
/// A member that has operations to apply and applies none for this long has failed: its disk hangs.
pub const ACK_SILENCE: Duration = Duration::from_secs(5);
/// The same of a sync. Longer, since a loaded disk that works may take seconds for one.
pub const SYNC_SILENCE: Duration = Duration::from_secs(10);
/// How long a primary tries to reach an in-sync member again before it removes it.
pub const RECONNECT_GRACE: Duration = Duration::from_millis(700);
/// Between two attempts to open a stream.
pub const REOPEN_AFTER: Duration = Duration::from_millis(300);
/// The same after the member's disk hung: longer than its removal takes, which a member that is back
/// before would escape.
pub const REOPEN_AFTER_HANG: Duration = Duration::from_millis(2000);
/// Doublings of that for a member that is not in sync: writers wait for it in vain each time.
pub const REOPEN_DOUBLINGS_MAX: u32 = 4;
/// A proposal without an answer is made again after this.
pub const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Secondaries take over one after the other, so that they do not compete.
pub const RANK_DELAY: Duration = Duration::from_millis(150);
/// Between two questions to members while the group has no primary.
pub const ASK_INTERVAL: Duration = Duration::from_millis(200);
/// An answer to such a question counts this long.
pub const ANSWER_VALID: Duration = Duration::from_secs(1);
/// A new primary gives members that restarted this long to catch up before it removes them.
pub const SETTLE_GRACE: Duration = Duration::from_secs(2);
/// A primary that restarted with too few others waits this long for an in-sync member that is away: if
/// that one did not restart, it has acknowledged operations that are on no disk.
pub const ABSENT_GRACE: Duration = Duration::from_secs(10);

const _: () = assert!(
    RECONNECT_GRACE.as_millis() < REOPEN_AFTER_HANG.as_millis()
        && READ_LEASE.as_millis() < REOPEN_AFTER_HANG.as_millis(),
    "a member whose disk hangs is removable before it is connected again"
);

/// How long a primary that yields waits for the answers to what is under way before it goes on leading.
pub const YIELD_PATIENCE: Duration = Duration::from_secs(1);

/// Epoch of a group's first configuration, in which no member lacks anything.
const FOUNDING: Epoch = Epoch(1);

/// What the store knows of a group when its datanode starts.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// Last operation.
    pub last: Version,
    /// The note kept beside it.
    pub note: Note,
}

/// What a member is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Orders operations.
    Primary,
    /// Named primary, and makes the others agree with it first.
    Reconciling,
    /// In sync.
    Secondary,
    /// Has the primary's history again, waits to be counted in.
    Joining,
    /// Its history may be incomplete.
    OutOfSync,
}

impl Role {
    /// As shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Reconciling => "reconciling",
            Role::Secondary => "secondary",
            Role::Joining => "joining",
            Role::OutOfSync => "out-of-sync",
        }
    }
}

/// A group's state, for people and tests.
#[derive(Clone, Debug)]
pub struct State {
    /// Configuration in force here.
    pub config: GroupConfig,
    /// What this member is.
    pub role: Role,
    /// Last operation that it has.
    pub last: Version,
    /// On disk up to here.
    pub durable: Sequence,
    /// Committed up to here, as far as it knows.
    pub committed: Sequence,
    /// What is left of its lease to serve or to read.
    pub lease_left: Duration,
}

/// An operation of a client.
#[derive(Clone, Debug)]
pub struct WriteRequest<P> {
    /// Names the request in [`Effect::Reply`].
    pub ticket: Ticket,
    /// Epoch that the client knows.
    pub epoch: Epoch,
    /// Who writes.
    pub writer: Writer,
    /// What.
    pub op: ChunkOp,
    /// Data of a write.
    pub data: P,
    /// Answer when it is on the disks of all in-sync members.
    pub durable: bool,
}

/// What becomes of a client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Taken; [`Effect::Reply`] follows, unless the group's primary changes without a word: wait with a
    /// deadline.
    Taken,
    /// Not now: ask again after [`Effect::Changed`].
    Wait,
    /// This is the primary.
    Forward(NodeId),
    /// No.
    Refused(FsError),
}

/// The core of a group. See the crate's documentation.
pub struct Group<P> {
    me: NodeId,
    config: GroupConfig,
    created: Duration,
    note: Note,
    /// End of the own history: ordered here, or received.
    last: Version,
    applied: Sequence,
    durable: Sequence,
    committed: Sequence,
    /// Counts how often the history was cut or replaced.
    history: u64,
    sync_wanted: Sequence,
    sync_asked: Sequence,
    tail: Tail<P>,
    writers: Writers,
    watch: watch::StoreWatch,
    /// Has all that an in-sync member must have. False after a restart (D6).
    complete: bool,
    low_space: bool,
    /// Another member is to lead, since the own copy is damaged.
    step_down: bool,
    follower: member::Follower,
    primary: Option<primary::Primary<P>>,
    election: election::Election,
    next_stream: u64,
    effects: Vec<Effect<P>>,
}

impl<P: Payload> Group<P> {
    /// The group at a datanode that has just started, or just become a member. `nonce` makes the names
    /// of its streams differ from those of earlier processes.
    pub fn new(me: NodeId, config: GroupConfig, local: Local, nonce: u64, now: Duration) -> Self {
        let mut group = Self {
            me,
            config,
            created: now,
            last: local.last,
            applied: local.last.sequence,
            durable: local.last.sequence,
            note: local.note,
            committed: Sequence(0),
            history: 0,
            sync_wanted: Sequence(0),
            sync_asked: local.last.sequence,
            tail: Tail::default(),
            writers: Writers::default(),
            watch: watch::StoreWatch::new(now),
            complete: false,
            low_space: false,
            step_down: false,
            follower: member::Follower::new(now),
            primary: None,
            election: election::Election::default(),
            next_stream: nonce << 24,
            effects: Vec::new(),
        };
        if group.config.epoch == FOUNDING && !group.note.member {
            group.note.member = true;
            let note = group.note.clone();
            group.effects.push(Effect::Work(Work::Note(note)));
        }
        group.on_tick(now);
        group
    }

    /// What is to be done since the last call.
    pub fn take_effects(&mut self) -> Vec<Effect<P>> {
        std::mem::take(&mut self.effects)
    }

    /// The configuration in force here.
    pub fn config(&self) -> &GroupConfig {
        &self.config
    }

    /// What this member is.
    pub fn role(&self) -> Role {
        match &self.primary {
            Some(primary) if primary.serving => Role::Primary,
            Some(_) => Role::Reconciling,
            None if !self.complete => Role::OutOfSync,
            None if self.config.is_in_sync(self.me) => Role::Secondary,
            None => Role::Joining,
        }
    }

    /// Whether everything is as it should be here: no need to ask the controller often.
    pub fn is_settled(&self) -> bool {
        self.config.is_full() && matches!(self.role(), Role::Primary | Role::Secondary)
    }

    /// The state, for people and tests.
    pub fn state(&self, now: Duration) -> State {
        let until = match &self.primary {
            Some(_) => self.lease_until(),
            None => self.follower.read_until,
        };
        State {
            config: self.config.clone(),
            role: self.role(),
            last: self.last,
            durable: self.durable,
            committed: self.committed,
            lease_left: until.saturating_sub(now).min(Duration::from_secs(3600)),
        }
    }

    /// What this member answers when another asks.
    pub fn peer_state(&self) -> PeerState {
        PeerState {
            node: self.me,
            epoch: self.config.epoch,
            complete: self.complete,
            eligible: self.is_eligible(),
            last: self.last,
        }
    }

    /// Whether the own chunks are a state that the group had, on a disk that works.
    fn is_eligible(&self) -> bool {
        let note = &self.note;
        note.member && !note.torn && self.follower.unfinished.is_none() && !self.watch.is_suspect()
    }

    /// The own disk is nearly full, or no longer: writes are refused before they are ordered.
    pub fn set_low_space(&mut self, low: bool) {
        self.low_space = low;
    }

    /// A configuration from the controller, or from a primary: the same, since an epoch has only one.
    pub fn on_config(&mut self, config: &GroupConfig, now: Duration) {
        if config.epoch > self.config.epoch {
            self.adopt(config.clone(), now);
        }
    }

    /// The controller's answer to a proposal: the configuration in force.
    pub fn on_proposed(&mut self, config: &GroupConfig, now: Duration) {
        self.election.proposed_at = None;
        self.on_config(config, now);
        self.on_tick(now);
    }

    /// Time passes. Call about every 100 ms.
    pub fn on_tick(&mut self, now: Duration) {
        self.watch_store(now);
        if self.primary.is_some() {
            self.primary_tick(now);
        } else {
            self.election_tick(now);
        }
    }

    /// An [`Work::Apply`] was done.
    pub fn on_applied(&mut self, version: Version, outcome: Outcome, now: Duration) {
        self.watch.applied(now);
        self.applied = self.applied.max(version.sequence);
        if let (Outcome::Refused(code), Some(primary)) = (outcome, &mut self.primary) {
            primary.requests.refused(version, code);
        }
        self.ask_sync();
        self.progressed(now);
    }

    /// A [`Work::Sync`] was done.
    pub fn on_durable(&mut self, upto: SyncPoint, now: Duration) {
        if upto.history != self.history {
            return;
        }
        self.watch.synced(now);
        self.durable = self.durable.max(upto.sequence);
        self.progressed(now);
    }

    /// The store failed to apply, copy or sync. `last` is what it has. The member falls out of sync; if
    /// it leads, it stops: it never answers for what it does not have.
    pub fn on_store_failed(&mut self, error: &FsError, last: Version) {
        self.complete = false;
        self.cut_history(last);
        if error.code != Code::NoSpace {
            self.watch.broke();
        }
        if self.follower.unfinished.take().is_some() {
            // What was queued before its end is void, and with it the end.
            self.note.torn = true;
        }
        // What became of the requests the next primary will tell: the disk of one member is nothing to a client.
        self.resign(&FsError::new(
            Code::StaleEpoch,
            format!("the primary's store failed, another datanode takes over: {error}"),
        ));
        self.drop_stream(Some(error.code));
        self.follower.catching = None;
        self.effects.push(Effect::Changed);
    }

    /// A store that failed or hung serves again, and nothing that was asked of it is under way. `last` is what it has.
    /// The member is then like one that was restarted: if nobody else is left, it can lead. Returns whether anything
    /// changed.
    pub fn on_store_works(&mut self, last: Version) -> bool {
        let is_idle = self.primary.is_none()
            && self.follower.stream.is_none()
            && self.follower.unfinished.is_none();
        let heals = self.watch.is_broken() && !self.complete && is_idle;
        if heals {
            self.cut_history(last);
            self.watch.healed();
        }
        heals
    }

    /// The history ends with `last` now; what was known of it beyond is void.
    fn cut_history(&mut self, last: Version) {
        self.history += 1;
        self.last = last;
        self.applied = last.sequence;
        self.durable = self.durable.min(last.sequence);
        self.committed = self.committed.min(last.sequence);
        (self.sync_wanted, self.sync_asked) = (self.durable, self.durable);
        self.tail.clear();
    }

    fn progressed(&mut self, now: Duration) {
        if self.primary.is_some() {
            self.advance(now);
        } else {
            self.acknowledge();
        }
    }

    /// Extends the own history by one operation and has it applied.
    fn extend(&mut self, entry: &Arc<Entry<P>>) {
        self.last = entry.version;
        self.writers.admit(entry.writer);
        let is_new_epoch = self.note.record(entry.version);
        if self.learn_fence(&entry.op) || is_new_epoch {
            // In the log before the operation: else a history could hide what it lost.
            self.effects
                .push(Effect::Work(Work::Note(self.note.clone())));
        }
        self.tail.push(entry.clone());
        self.effects.push(Effect::Work(Work::Apply {
            entry: entry.clone(),
        }));
    }

    /// Asks the store for durability as far as somebody waits for it and operations are applied.
    fn ask_sync(&mut self) {
        let due = self.sync_wanted > self.sync_asked && self.applied >= self.sync_wanted;
        if due {
            self.sync_asked = self.applied;
            self.effects.push(Effect::Work(Work::Sync {
                upto: SyncPoint {
                    sequence: self.applied,
                    history: self.history,
                },
            }));
        }
    }

    fn want_sync(&mut self, upto: Sequence) {
        self.sync_wanted = self.sync_wanted.max(upto);
        self.ask_sync();
    }

    /// First operation that can still be sent to others.
    fn tail_from(&self) -> Sequence {
        self.tail.first().unwrap_or(self.last.sequence.next())
    }

    fn adopt(&mut self, config: GroupConfig, now: Duration) {
        let same_primary = config.primary == self.config.primary;
        let next = config.epoch == self.config.epoch.next();
        self.config = config;
        self.election.proposed_at = None;
        self.election.states.clear();
        self.effects.push(Effect::Changed);
        if self.config.primary == self.me {
            if same_primary && next && self.primary.is_some() {
                self.primary_continues(now);
            } else {
                self.resign(&FsError::new(
                    Code::StaleEpoch,
                    "the group was reconfigured",
                ));
                self.drop_stream(None);
                // Not if another change of the same epoch was accepted instead.
                let claimed = self.election.claimed.as_ref() == Some(&self.config);
                if self.complete {
                    self.lead(false, now);
                } else if claimed && self.is_eligible() {
                    // The group's history is this member's from here on.
                    self.complete = true;
                    self.lead(true, now);
                }
            }
            return;
        }
        self.resign(&FsError::new(
            Code::StaleEpoch,
            "another datanode is primary now",
        ));
        if !same_primary {
            self.drop_stream(None);
        }
        self.follower.reconfigured(now);
        if !self.config.is_in_sync(self.me) && self.follower.stream.is_none() {
            // On an unbroken stream it still receives everything, and will be counted in again.
            self.complete = false;
        }
        if !self.complete {
            self.tail.clear();
        }
    }

    /// Ends the own time as primary, if it was one.
    fn resign(&mut self, error: &FsError) {
        let Some(primary) = self.primary.take() else {
            return;
        };
        self.step_down = false;
        if primary.recovered && !primary.serving {
            // The others never agreed that its history is the group's.
            self.complete = false;
            self.tail.clear();
        }
        for pending in primary.requests.all() {
            let result = Err(error.clone());
            self.effects.push(Effect::Reply {
                ticket: pending.ticket,
                result,
            });
        }
        for (to, stream) in primary.open_streams() {
            self.effects.push(Effect::Close { to, stream });
        }
        self.effects.push(Effect::Changed);
    }

    fn reply(&mut self, pending: &Pending) {
        let result: FsResult<Version> = match pending.refused {
            None => Ok(pending.version),
            Some(code) => Err(FsError::new(
                code,
                format!(
                    "operation {:?} of session {}",
                    pending.version, pending.writer.session
                ),
            )),
        };
        self.effects.push(Effect::Reply {
            ticket: pending.ticket,
            result,
        });
    }
}
