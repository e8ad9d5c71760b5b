//! Nodes, network, controller and faults, driven by one seed through one queue of events.

use crate::clients::Clients;
pub(crate) use crate::event::Event;
use crate::network::Stream;
use crate::store::Store;
use lumeofs_base::limits::BEACON_INTERVAL;
use lumeofs_base::rng::SplitMix64;
use lumeofs_base::{Epoch, GroupConfig, GroupId, NodeId};
use lumeofs_replica::{Effect, Group, StreamId, ToMember, Work, WriteRequest};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

pub(crate) type Core = Group<Vec<u8>>;

pub(crate) struct Node {
    pub(crate) core: Option<Core>,
    pub(crate) store: Store,
    pub(crate) incarnation: u32,
    pub(crate) work: VecDeque<Work<Vec<u8>>>,
    pub(crate) working: bool,
    /// Its clock is this far ahead of the world's.
    pub(crate) offset: Duration,
    /// Store work takes this many times longer.
    pub(crate) slow: u64,
    pub(crate) disk: Disk,
    /// It is up and no member.
    pub(crate) outside: bool,
}

/// What a disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disk {
    Works,
    /// Nothing is done, and nothing fails.
    Hangs,
    /// The same of syncs only.
    HangsSyncs,
}

pub(crate) struct World {
    pub(crate) rng: SplitMix64,
    pub(crate) now: Duration,
    pub(crate) nodes: Vec<Node>,
    pub(crate) config: GroupConfig,
    events: BinaryHeap<Reverse<(Duration, u64)>>,
    bodies: BTreeMap<u64, Event>,
    next_event: u64,
    pub(crate) streams: BTreeMap<StreamId, Stream>,
    pub(crate) cut: BTreeSet<(usize, usize)>,
    pub(crate) controller_down: bool,
    pub(crate) faults_until: Duration,
    pub(crate) clients_until: Duration,
    traced: bool,
    /// After a restart of the group only what was synced must be there.
    pub(crate) forgiving: bool,
    /// How long the controller thinks.
    pub(crate) decision_delay: Duration,
    pub(crate) clients: Clients,
    /// Accepted takeovers, by kind, to know that the simulation reaches them.
    pub(crate) restarts: usize,
    pub(crate) proposals: usize,
    pub(crate) takeovers: usize,
    pub(crate) catch_ups: usize,
    pub(crate) patches: usize,
    pub(crate) skips: usize,
    pub(crate) pieces: usize,
    pub(crate) moves: usize,
}

pub(crate) fn id(index: usize) -> NodeId {
    NodeId(101 + index as u64)
}

pub(crate) fn index(node: NodeId) -> usize {
    (node.get() - 101) as usize
}

/// A configuration for people who read a trace.
pub(crate) fn show(config: &GroupConfig) -> String {
    let in_sync: Vec<_> = config.in_sync.iter().map(|node| index(*node)).collect();
    format!(
        "epoch {}: {} leads {in_sync:?}",
        config.epoch,
        index(config.primary)
    )
}

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl World {
    /// `spares` further nodes are no members at first.
    pub(crate) fn new(seed: u64, members: usize, spares: usize, faults: Duration) -> Self {
        let mut rng = SplitMix64::new(seed);
        let ids: Vec<NodeId> = (0..members).map(id).collect();
        let config = GroupConfig {
            group: GroupId(1),
            epoch: Epoch(1),
            primary: ids[0],
            members: ids.clone(),
            in_sync: ids,
            leaving: Vec::new(),
            replicas: members as u32,
        };
        let mut world = Self {
            now: Duration::ZERO,
            nodes: Vec::new(),
            config,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            next_event: 0,
            streams: BTreeMap::new(),
            cut: BTreeSet::new(),
            controller_down: false,
            faults_until: faults,
            clients_until: faults + ms(6_000),
            traced: std::env::var_os("LUMEOFS_TRACE").is_some(),
            forgiving: true,
            decision_delay: Duration::ZERO,
            clients: Clients::new(rng.split()),
            restarts: 0,
            proposals: 0,
            takeovers: 0,
            catch_ups: 0,
            patches: 0,
            skips: 0,
            pieces: 0,
            moves: 0,
            rng,
        };
        for index in 0..members + spares {
            let offset = ms(world.rng.below(1_000_000));
            world.nodes.push(Node {
                core: None,
                store: Store::default(),
                incarnation: 0,
                work: VecDeque::new(),
                working: false,
                offset,
                slow: 1,
                disk: Disk::Works,
                outside: false,
            });
            world.start_node(index);
            world.at(ms(50 + index as u64), Event::Tick(index));
            world.at(ms(60 + index as u64 * 7), Event::Beacons(index));
            world.at(ms(70 + index as u64 * 13), Event::Heartbeat(index));
        }
        if !faults.is_zero() {
            world.at(ms(4000), Event::Fault);
        }
        if spares > 0 {
            world.at(ms(1500), Event::Plan);
        }
        world.at(ms(1000), Event::Ghost);
        for client in 0..world.clients.count() {
            world.at(ms(500), Event::Client(client));
        }
        world
    }

    pub(crate) fn at(&mut self, time: Duration, event: Event) {
        self.next_event += 1;
        self.events
            .push(Reverse((time.max(self.now), self.next_event)));
        self.bodies.insert(self.next_event, event);
    }

    pub(crate) fn after(&mut self, from_us: u64, to_us: u64, event: Event) {
        let delay = Duration::from_micros(from_us + self.rng.below(to_us - from_us));
        self.at(self.now + delay, event);
    }

    pub(crate) fn clock(&self, node: usize) -> Duration {
        self.now + self.nodes[node].offset
    }

    /// Shows what happens, if `LUMEOFS_TRACE` is set.
    pub(crate) fn trace(&self, what: impl FnOnce() -> String) {
        if self.traced {
            eprintln!("{:>10.4} {}", self.now.as_secs_f64(), what());
        }
    }

    pub(crate) fn is_up(&self, node: usize) -> bool {
        self.nodes[node].core.is_some()
    }

    /// Gives a core an event and carries out its effects.
    pub(crate) fn with<R>(
        &mut self,
        node: usize,
        event: impl FnOnce(&mut Core, Duration) -> R,
    ) -> Option<R> {
        let now = self.clock(node);
        let before = self.nodes[node].core.as_ref().map(Core::role);
        let result = self.nodes[node].core.as_mut().map(|core| event(core, now));
        if let Some(core) = &self.nodes[node].core
            && before != Some(core.role())
        {
            let state = core.state(now);
            let last = (state.last, state.committed);
            self.trace(|| {
                format!(
                    "{node} is {:?}, {last:?}, epoch {}",
                    state.role, state.config.epoch
                )
            });
        }
        self.carry_out(node);
        result
    }

    pub(crate) fn carry_out(&mut self, node: usize) {
        let Some(core) = &mut self.nodes[node].core else {
            return;
        };
        let complete = core.peer_state().complete;
        for effect in core.take_effects() {
            match effect {
                Effect::Work(work) => {
                    self.nodes[node].work.push_back(work);
                    self.schedule_work(node);
                }
                Effect::Send {
                    stream, message, ..
                } => {
                    self.catch_ups += usize::from(matches!(message, ToMember::Done { .. }));
                    self.patches += usize::from(matches!(message, ToMember::Patch { .. }));
                    self.skips += usize::from(matches!(message, ToMember::Skip { .. }));
                    self.pieces += usize::from(matches!(message, ToMember::Copy(_)));
                    if let Some(state) = self.streams.get_mut(&stream).filter(|state| state.open) {
                        state.messages.push_back(message);
                        self.after(20, 2000, Event::Deliver(stream));
                    }
                }
                Effect::Answer { stream, message } => {
                    if let Some(state) = self.streams.get_mut(&stream).filter(|state| state.open) {
                        state.answers.push_back(message);
                        self.after(20, 2000, Event::DeliverAnswer(stream));
                    }
                }
                Effect::Open { to, stream } => {
                    self.after(
                        50,
                        3000,
                        Event::Connect {
                            from: node,
                            to: index(to),
                            stream,
                        },
                    );
                }
                Effect::Close { stream, .. } | Effect::Hangup { stream } => self.end_stream(stream),
                Effect::Reply { ticket, result } => {
                    let again = self.clients.on_reply(self.now, ticket, result);
                    self.wake_client(again);
                }
                Effect::Propose { expected, config } => {
                    self.proposals += 1;
                    self.trace(|| format!("{node} proposes {}", show(&config)));
                    let restart = !complete && config.primary == id(node);
                    let proposal = Event::Proposal {
                        from: node,
                        expected,
                        config,
                        restart,
                    };
                    if self.is_quiet() {
                        self.at(self.now + self.decision_delay + ms(10), proposal);
                    } else if !self.rng.percent(5) {
                        // The controller may be busy electing its leader.
                        let late = if self.rng.percent(10) {
                            6_000_000
                        } else {
                            30_000
                        };
                        self.after(300, late, proposal);
                    }
                }
                Effect::Ask { node: to } => {
                    self.after(
                        50,
                        3000,
                        Event::Ask {
                            from: node,
                            to: index(to),
                        },
                    );
                }
                Effect::Refresh => self.after(300, 20_000, Event::Fetch(node)),
                Effect::BeaconNow => self.send_beacons(node),
                Effect::Changed => {
                    for client in self.clients.waiting_at(node) {
                        self.after(1, 50, Event::Client(client));
                    }
                }
            }
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.now >= self.faults_until
    }

    pub(crate) fn wake_client(&mut self, client: Option<usize>) {
        if let Some(client) = client {
            self.after(10, 3000, Event::Client(client));
        }
    }

    /// Runs until `end`, checking after every event that at most one primary serves.
    pub(crate) fn run_until(&mut self, end: Duration) {
        while let Some(Reverse((time, _))) = self.events.peek() {
            if *time > end {
                break;
            }
            let Reverse((time, number)) = self.events.pop().unwrap();
            self.now = time;
            let event = self.bodies.remove(&number).unwrap();
            self.handle(event);
            self.check_one_primary();
            if number % 16 == 0 {
                self.check_equal_histories();
            }
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick(node) => {
                let state = &self.nodes[node];
                if state.work.is_empty() && !state.working {
                    let last = state.store.now.last;
                    self.with(node, |core, _| core.on_store_works(last));
                }
                self.with(node, Core::on_tick);
                self.at(self.now + ms(100), Event::Tick(node));
            }
            Event::Beacons(node) => {
                self.send_beacons(node);
                self.at(self.now + BEACON_INTERVAL, Event::Beacons(node));
            }
            Event::Work(node, incarnation) => {
                if self.nodes[node].incarnation != incarnation || !self.is_up(node) {
                } else if self.is_held(node) {
                    self.after(20_000, 60_000, Event::Work(node, incarnation));
                } else {
                    self.do_work(node);
                }
            }
            Event::Durable(node, incarnation, upto) => {
                if self.nodes[node].incarnation != incarnation || !self.is_up(node) {
                } else if self.nodes[node].disk != Disk::Works {
                    self.after(20_000, 60_000, Event::Durable(node, incarnation, upto));
                } else {
                    self.nodes[node].store.sync();
                    self.with(node, |core, now| core.on_durable(upto, now));
                }
            }
            Event::Connect { from, to, stream } => self.connect(from, to, stream),
            Event::Deliver(stream) => self.deliver(stream),
            Event::DeliverAnswer(stream) => self.deliver_answer(stream),
            Event::Closed { stream, opener } => self.closed(stream, opener),
            Event::Beacon {
                from,
                to,
                item,
                sent,
            } => self.beacon(from, to, item, sent),
            Event::BeaconAnswer {
                from,
                to,
                answer,
                sent,
                answered,
            } => {
                if !self.is_cut(from, to) {
                    self.with(to, |core, now| {
                        core.on_beacon_answer(id(from), answer, sent, answered, now);
                    });
                }
            }
            Event::Reset { at, from } => {
                self.with(at, |core, _| core.on_primary_reset(id(from)));
            }
            Event::Ask { from, to } => {
                if !self.is_cut(from, to)
                    && let Some(core) = &self.nodes[to].core
                {
                    let state = core.peer_state();
                    self.after(50, 3000, Event::State { to: from, state });
                }
            }
            Event::State { to, state } => {
                self.with(to, |core, now| core.on_peer_state(state, now));
            }
            Event::Proposal {
                from,
                expected,
                config,
                restart,
            } => {
                self.decide(from, expected, config, restart);
            }
            Event::Proposed { to, config } => {
                self.with(to, |core, now| core.on_proposed(&config, now));
            }
            Event::Fetch(node) => {
                if !self.controller_down {
                    let config = self.config.clone();
                    self.after(300, 10_000, Event::Config { to: node, config });
                }
            }
            Event::Config { to, config } => self.learn(to, &config),
            Event::Plan => {
                self.let_go();
                self.at(self.now + ms(500), Event::Plan);
            }
            Event::Heartbeat(node) => {
                self.after(100, 10_000, Event::Fetch(node));
                self.at(self.now + ms(1000), Event::Heartbeat(node));
            }
            Event::Restart(node) => {
                if !self.is_up(node) && !self.nodes[node].outside {
                    self.start_node(node);
                }
            }
            Event::Fault => self.fault(),
            Event::Client(client) => self.client(client),
            Event::Ghost => {
                let primary = index(self.config.primary);
                if let Some(request) = self.clients.ghost() {
                    // The epoch was refreshed on the way, by a secondary that handed it on.
                    let request = WriteRequest {
                        epoch: self.config.epoch,
                        ..request
                    };
                    self.with(primary, |core, now| core.write(&request, now));
                }
                let mut clients = std::mem::take(&mut self.clients);
                let fenced = clients.fenced_ghost(self);
                self.clients = clients;
                if let Some(request) = fenced {
                    let admission = self.with(primary, |core, now| core.write(&request, now));
                    let session = request.writer.session;
                    self.clients.fenced_ghost_was(session, admission.as_ref());
                }
                self.after(5_000, 300_000, Event::Ghost);
            }
            Event::Crash(node) => {
                if self.is_up(node) && !self.is_quiet() {
                    self.crash_node(node);
                    self.after(500_000, 9_000_000, Event::Restart(node));
                }
            }
            Event::DiskWorks(node) => self.nodes[node].disk = Disk::Works,
            Event::ClientLate(client, ticket) => {
                let (late, node) = self.clients.on_late(client, ticket);
                if let Some(node) = node {
                    self.with(node, |core, _| core.forget(ticket));
                }
                self.wake_client(late);
            }
        }
    }

    fn client(&mut self, client: usize) {
        let mut clients = std::mem::take(&mut self.clients);
        let stop = self.now >= self.clients_until;
        if let Some((ticket, wait)) = clients.act(self, client, stop) {
            self.at(self.now + wait, Event::ClientLate(client, ticket));
        }
        let wake = clients.take_wake();
        self.clients.absorb(clients);
        for client in wake {
            self.wake_client(Some(client));
        }
    }

    /// A random node that is up, mostly the one that should be primary.
    pub(crate) fn target(&mut self) -> Option<usize> {
        let primary = index(self.config.primary);
        let node = match self.rng.percent(70) {
            true => primary,
            false => self.rng.below(self.nodes.len() as u64) as usize,
        };
        self.is_up(node).then_some(node)
    }
}
