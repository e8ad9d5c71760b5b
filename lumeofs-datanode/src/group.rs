//! A replica group's threads: the core under a mutex, and what its effects become.
//!
//! Effects are carried out under that mutex, so in order, and all of them are cheap: they put something
//! into a queue or wake somebody. Store work and sends happen outside, in queues that keep the order.

use crate::data::Data;
use crate::inbound::Inbound;
use crate::node::Node;
use crate::store::ChunkStore;
use crate::streams::Outgoing;
use crate::work::WorkQueue;
use lumeofs_base::clock::Clock;
use lumeofs_base::{FsError, FsResult, GroupConfig, GroupId, NodeId, Version};
use lumeofs_replica::{Effect, Group, Local, Note, StreamId, Ticket, ToMember, ToPrimary};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Whether the calling thread may do store work and block on sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// It serves one connection and has nothing better to do.
    Patient,
    /// Others depend on it.
    Quick,
}

/// A group at this datanode.
pub(crate) struct GroupDriver {
    pub(crate) id: GroupId,
    pub(crate) store: Arc<ChunkStore>,
    pub(crate) node: Weak<Node>,
    pub(crate) me: Weak<GroupDriver>,
    inner: Mutex<Inner>,
    changed: Condvar,
    pub(crate) work: WorkQueue,
}

/// What the mutex guards.
pub(crate) struct Inner {
    pub(crate) core: Group<Data>,
    waiters: HashMap<Ticket, Arc<Waiter>>,
    next_ticket: Ticket,
    outgoing: HashMap<NodeId, (StreamId, Arc<Outgoing>)>,
    inbound: HashMap<StreamId, Arc<Inbound>>,
}

/// Where a request's thread waits for its reply.
#[derive(Default)]
pub(crate) struct Waiter {
    result: Mutex<Option<FsResult<Version>>>,
    done: Condvar,
}

/// What to do once the mutex is free again.
#[derive(Default)]
struct Afterwards {
    outgoing: Vec<Arc<Outgoing>>,
    inbound: Vec<Arc<Inbound>>,
    hangups: Vec<Arc<Inbound>>,
    work: bool,
}

impl Waiter {
    fn complete(&self, result: FsResult<Version>) {
        *self.result.lock() = Some(result);
        self.done.notify_one();
    }

    /// The reply, unless the deadline passes first.
    pub(crate) fn wait_until(&self, deadline: Instant) -> Option<FsResult<Version>> {
        let mut result = self.result.lock();
        while result.is_none() && !self.done.wait_until(&mut result, deadline).timed_out() {}
        result.take()
    }
}

impl GroupDriver {
    pub(crate) fn new(node: &Arc<Node>, store: Arc<ChunkStore>, config: GroupConfig) -> Arc<Self> {
        let id = config.group;
        let note = store.group_note(id);
        // A note that cannot be read makes this member one that must be caught up.
        let note = match postcard::from_bytes(&note) {
            Ok(note) => note,
            Err(_) => Note {
                torn: !note.is_empty(),
                ..Note::default()
            },
        };
        let local = Local {
            last: store.last(id),
            note,
        };
        let now = node.clock.monotonic();
        let core = Group::new(node.identity.node, config, local, node.next_nonce(), now);
        let driver = Arc::new_cyclic(|me| Self {
            id,
            store,
            node: Arc::downgrade(node),
            me: me.clone(),
            inner: Mutex::new(Inner {
                core,
                waiters: HashMap::new(),
                next_ticket: 1,
                outgoing: HashMap::new(),
                inbound: HashMap::new(),
            }),
            changed: Condvar::new(),
            work: WorkQueue::default(),
        });
        let worker = driver.clone();
        node.spawn(&format!("group-{id}"), move || worker.run_worker());
        driver.with(Caller::Quick, |_, _| ());
        driver
    }

    pub(crate) fn now(&self) -> Duration {
        lumeofs_base::clock::SystemClock.monotonic()
    }

    /// Gives the core an event and carries out what it wants.
    pub(crate) fn with<R>(
        &self,
        caller: Caller,
        event: impl FnOnce(&mut Group<Data>, Duration) -> R,
    ) -> R {
        let mut inner = self.inner.lock();
        let result = event(&mut inner.core, self.now());
        let afterwards = self.carry_out(&mut inner);
        drop(inner);
        self.finish(afterwards, caller);
        result
    }

    /// As [`GroupDriver::with`] for a request: `attempt` gets a fresh ticket with its waiter registered;
    /// it says whether to try again after a change.
    pub(crate) fn request<R>(
        &self,
        deadline: Instant,
        mut attempt: impl FnMut(&mut Group<Data>, Ticket, Duration) -> Attempt<R>,
    ) -> Option<(R, Arc<Waiter>, Ticket)> {
        let mut inner = self.inner.lock();
        let ticket = inner.next_ticket;
        inner.next_ticket += 1;
        let waiter = Arc::new(Waiter::default());
        inner.waiters.insert(ticket, waiter.clone());
        loop {
            let outcome = attempt(&mut inner.core, ticket, self.now());
            let afterwards = self.carry_out(&mut inner);
            match outcome {
                Attempt::Done(result) => {
                    drop(inner);
                    self.finish(afterwards, Caller::Patient);
                    return Some((result, waiter, ticket));
                }
                Attempt::Over(result) => {
                    inner.waiters.remove(&ticket);
                    drop(inner);
                    self.finish(afterwards, Caller::Patient);
                    return Some((result, waiter, ticket));
                }
                Attempt::Wait => {
                    self.finish_locked(afterwards);
                    if self.stopping() || self.changed.wait_until(&mut inner, deadline).timed_out()
                    {
                        inner.waiters.remove(&ticket);
                        return None;
                    }
                }
            }
        }
    }

    /// Asks the core again after every change until it has an answer.
    pub(crate) fn poll<R>(
        &self,
        deadline: Instant,
        mut attempt: impl FnMut(&mut Group<Data>, Duration) -> Option<R>,
    ) -> Option<R> {
        let mut inner = self.inner.lock();
        loop {
            let result = attempt(&mut inner.core, self.now());
            let afterwards = self.carry_out(&mut inner);
            self.finish_locked(afterwards);
            if result.is_some() {
                return result;
            }
            if self.stopping() || self.changed.wait_until(&mut inner, deadline).timed_out() {
                return None;
            }
        }
    }

    /// Nobody waits for the ticket any longer.
    pub(crate) fn forget(&self, ticket: Ticket) {
        let mut inner = self.inner.lock();
        inner.waiters.remove(&ticket);
        inner.core.forget(ticket);
    }

    fn stopping(&self) -> bool {
        self.node.upgrade().is_none_or(|node| node.is_stopping())
    }

    /// The store failed: what is queued for it is void.
    pub(crate) fn store_failed(&self, error: &FsError) {
        let last = self.store.last(self.id);
        let mut inner = self.inner.lock();
        if inner.core.peer_state().complete {
            tracing::error!(group = %self.id, %error, "group falls out of sync: its store failed");
        } else {
            tracing::debug!(group = %self.id, %error, "the store still fails");
        }
        inner.core.on_store_failed(error, last);
        self.work.clear();
        self.work.begin_history();
        let afterwards = self.carry_out(&mut inner);
        drop(inner);
        self.finish(afterwards, Caller::Quick);
    }

    /// The store answers: if it had failed, the group can reckon with this member again.
    pub(crate) fn store_works(&self) {
        let mut inner = self.inner.lock();
        if !self.work.is_idle() {
            return;
        }
        // Nothing is queued without the lock, so the store stands still.
        let last = self.store.last(self.id);
        if inner.core.on_store_works(last) {
            tracing::info!(group = %self.id, "the store serves again");
            self.work.begin_history();
        }
    }

    /// A stream from a primary has been accepted.
    pub(crate) fn add_inbound(&self, stream: StreamId, inbound: Arc<Inbound>) {
        self.inner.lock().inbound.insert(stream, inbound);
    }

    pub(crate) fn remove_inbound(&self, stream: StreamId) {
        self.inner.lock().inbound.remove(&stream);
        self.with(Caller::Quick, |core, _| core.on_stream_lost(stream));
    }

    /// Ends all streams and wakes everybody who waits.
    pub(crate) fn stop(&self) {
        let mut inner = self.inner.lock();
        inner
            .outgoing
            .drain()
            .for_each(|(_, (_, outgoing))| outgoing.outbox.close());
        inner
            .inbound
            .drain()
            .for_each(|(_, inbound)| inbound.outbox.close());
        drop(inner);
        self.changed.notify_all();
        self.work.stop();
    }

    fn carry_out(&self, inner: &mut MutexGuard<'_, Inner>) -> Afterwards {
        let mut afterwards = Afterwards::default();
        let effects = inner.core.take_effects();
        let Some(node) = self.node.upgrade() else {
            return afterwards;
        };
        for effect in effects {
            match effect {
                Effect::Work(work) => {
                    self.work.push(work);
                    afterwards.work = true;
                }
                Effect::Send {
                    to,
                    stream,
                    message,
                } => {
                    if let Some((current, outgoing)) = inner.outgoing.get(&to)
                        && *current == stream
                    {
                        outgoing.outbox.push(message, supersedes_message);
                        if !afterwards
                            .outgoing
                            .iter()
                            .any(|other| Arc::ptr_eq(other, outgoing))
                        {
                            afterwards.outgoing.push(outgoing.clone());
                        }
                    }
                }
                Effect::Answer { stream, message } => {
                    if let Some(inbound) = inner.inbound.get(&stream) {
                        inbound.outbox.push(message, supersedes_answer);
                        if !afterwards
                            .inbound
                            .iter()
                            .any(|other| Arc::ptr_eq(other, inbound))
                        {
                            afterwards.inbound.push(inbound.clone());
                        }
                    }
                }
                Effect::Open { to, stream } => {
                    if let Some(me) = self.me.upgrade() {
                        let outgoing = Outgoing::open(&node, &me, to, stream);
                        inner.outgoing.insert(to, (stream, outgoing));
                    }
                }
                Effect::Close { to, stream } => {
                    if inner
                        .outgoing
                        .get(&to)
                        .is_some_and(|(current, _)| *current == stream)
                        && let Some((_, outgoing)) = inner.outgoing.remove(&to)
                    {
                        outgoing.outbox.close();
                    }
                }
                Effect::Hangup { stream } => {
                    if let Some(inbound) = inner.inbound.remove(&stream) {
                        afterwards.hangups.push(inbound);
                    }
                }
                Effect::Reply { ticket, result } => {
                    if let Some(waiter) = inner.waiters.remove(&ticket) {
                        waiter.complete(result);
                    }
                }
                Effect::Propose { expected, config } => node.control.propose(expected, config),
                Effect::Ask { node: peer } => node.peers.ask(&node, peer, self.id),
                Effect::Refresh => node.control.refresh(),
                Effect::BeaconNow => node.peers.beacon_now(&node, inner.core.config()),
                Effect::Changed => {
                    self.changed.notify_all();
                }
            }
        }
        afterwards
    }

    fn finish(&self, afterwards: Afterwards, caller: Caller) {
        for inbound in afterwards.inbound {
            inbound.outbox.flush();
        }
        for inbound in afterwards.hangups {
            inbound.outbox.finish();
        }
        for outgoing in afterwards.outgoing {
            match caller {
                Caller::Patient => outgoing.outbox.flush(),
                Caller::Quick => outgoing.outbox.nudge(),
            }
        }
        if afterwards.work {
            match caller {
                Caller::Patient => self.run_some_work(),
                Caller::Quick => self.work.nudge(),
            }
        }
    }

    /// As [`GroupDriver::finish`] while the mutex is held: leaves everything to other threads.
    fn finish_locked(&self, afterwards: Afterwards) {
        afterwards
            .outgoing
            .iter()
            .for_each(|outgoing| outgoing.outbox.nudge());
        afterwards
            .inbound
            .iter()
            .for_each(|inbound| inbound.outbox.flush());
        afterwards
            .hangups
            .iter()
            .for_each(|inbound| inbound.outbox.finish());
        if afterwards.work {
            self.work.nudge();
        }
    }
}

/// What an attempt of a request came to.
pub(crate) enum Attempt<R> {
    /// Its ticket will be answered.
    Done(R),
    /// It is over, nothing follows.
    Over(R),
    /// Try again after a change.
    Wait,
}

fn supersedes_message(_: &ToMember<Data>, _: &ToMember<Data>) -> bool {
    false
}

/// Progress is cumulative.
fn supersedes_answer(old: &ToPrimary<Data>, new: &ToPrimary<Data>) -> bool {
    matches!((old, new), (ToPrimary::Ack { .. }, ToPrimary::Ack { .. }))
}
