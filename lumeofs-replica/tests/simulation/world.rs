//! Nodes, network, controller and faults, driven by one seed through one queue of events.

use crate::clients::Clients;
use crate::store::Store;
use lumeofs_base::limits::BEACON_INTERVAL;
use lumeofs_base::rng::SplitMix64;
use lumeofs_base::{ChunkId, Code, Epoch, FsError, GroupConfig, GroupId, NodeId};
use lumeofs_replica::{
    BeaconAnswer, BeaconItem, CopyStep, Effect, Group, Local, PeerState, Role, StreamId, ToMember,
    ToPrimary, Work, WriteRequest,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

pub(crate) type Core = Group<Vec<u8>>;

/// Something that will happen. Nodes are indexes; `u32` beside one is its incarnation.
#[derive(Debug)]
enum Event {
    Tick(usize),
    Beacons(usize),
    Work(usize, u32),
    Durable(usize, u32, lumeofs_base::Sequence),
    Connect {
        from: usize,
        to: usize,
        stream: StreamId,
    },
    Deliver(StreamId),
    DeliverAnswer(StreamId),
    /// The end of a stream reaches its opener, or the other side.
    Closed {
        stream: StreamId,
        opener: bool,
    },
    Beacon {
        from: usize,
        to: usize,
        item: BeaconItem,
        sent: Duration,
    },
    BeaconAnswer {
        from: usize,
        to: usize,
        answer: BeaconAnswer,
        sent: Duration,
        answered: Duration,
    },
    Reset {
        at: usize,
        from: usize,
    },
    Ask {
        from: usize,
        to: usize,
    },
    State {
        to: usize,
        state: PeerState,
    },
    Proposal {
        from: usize,
        expected: Epoch,
        config: GroupConfig,
        restart: bool,
    },
    Proposed {
        to: usize,
        config: GroupConfig,
    },
    Fetch(usize),
    Config {
        to: usize,
        config: GroupConfig,
    },
    Heartbeat(usize),
    Restart(usize),
    Fault,
    Client(usize),
    ClientLate(usize, u64),
    Ghost,
    Crash(usize),
}

pub(crate) struct Node {
    pub(crate) core: Option<Core>,
    pub(crate) store: Store,
    incarnation: u32,
    work: VecDeque<Work<Vec<u8>>>,
    working: bool,
    /// Its clock is this far ahead of the world's.
    offset: Duration,
    /// Store work takes this many times longer.
    slow: u64,
}

struct Stream {
    from: usize,
    to: usize,
    incarnations: (u32, u32),
    open: bool,
    messages: VecDeque<ToMember<Vec<u8>>>,
    answers: VecDeque<ToPrimary<Vec<u8>>>,
}

pub(crate) struct World {
    pub(crate) rng: SplitMix64,
    pub(crate) now: Duration,
    pub(crate) nodes: Vec<Node>,
    pub(crate) config: GroupConfig,
    events: BinaryHeap<Reverse<(Duration, u64)>>,
    bodies: BTreeMap<u64, Event>,
    next_event: u64,
    streams: BTreeMap<StreamId, Stream>,
    cut: BTreeSet<(usize, usize)>,
    controller_down: bool,
    faults_until: Duration,
    pub(crate) clients: Clients,
    /// Accepted takeovers, by kind, to know that the simulation reaches them.
    pub(crate) restarts: usize,
    pub(crate) takeovers: usize,
    pub(crate) catch_ups: usize,
    pub(crate) patches: usize,
    pub(crate) skips: usize,
    pub(crate) pieces: usize,
}

fn id(index: usize) -> NodeId {
    NodeId(101 + index as u64)
}

fn index(node: NodeId) -> usize {
    (node.get() - 101) as usize
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl World {
    pub(crate) fn new(seed: u64, members: usize, faults: Duration) -> Self {
        let mut rng = SplitMix64::new(seed);
        let ids: Vec<NodeId> = (0..members).map(id).collect();
        let config = GroupConfig {
            group: GroupId(1),
            epoch: Epoch(1),
            primary: ids[0],
            members: ids.clone(),
            in_sync: ids,
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
            clients: Clients::new(rng.split()),
            restarts: 0,
            takeovers: 0,
            catch_ups: 0,
            patches: 0,
            skips: 0,
            pieces: 0,
            rng,
        };
        for index in 0..members {
            let offset = ms(world.rng.below(1_000_000));
            world.nodes.push(Node {
                core: None,
                store: Store::default(),
                incarnation: 0,
                work: VecDeque::new(),
                working: false,
                offset,
                slow: 1,
            });
            world.start_node(index);
            world.at(ms(50 + index as u64), Event::Tick(index));
            world.at(ms(60 + index as u64 * 7), Event::Beacons(index));
            world.at(ms(70 + index as u64 * 13), Event::Heartbeat(index));
        }
        world.at(ms(4000), Event::Fault);
        world.at(ms(1000), Event::Ghost);
        for client in 0..world.clients.count() {
            world.at(ms(500), Event::Client(client));
        }
        world
    }

    fn at(&mut self, time: Duration, event: Event) {
        self.next_event += 1;
        self.events
            .push(Reverse((time.max(self.now), self.next_event)));
        self.bodies.insert(self.next_event, event);
    }

    fn after(&mut self, from_us: u64, to_us: u64, event: Event) {
        let delay = Duration::from_micros(from_us + self.rng.below(to_us - from_us));
        self.at(self.now + delay, event);
    }

    fn clock(&self, node: usize) -> Duration {
        self.now + self.nodes[node].offset
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn is_up(&self, node: usize) -> bool {
        self.nodes[node].core.is_some()
    }

    fn start_node(&mut self, node: usize) {
        let now = self.clock(node);
        let state = &mut self.nodes[node];
        state.incarnation += 1;
        state.work.clear();
        state.working = false;
        let local = Local {
            last: state.store.now.last,
            note: state.store.now.note.clone(),
        };
        let nonce = (node as u64 + 1) << 16 | u64::from(state.incarnation);
        state.core = Some(Group::new(id(node), self.config.clone(), local, nonce, now));
        self.carry_out(node);
    }

    fn crash_node(&mut self, node: usize) {
        let rng = &mut self.rng;
        let state = &mut self.nodes[node];
        state.core = None;
        state.store.crash(rng);
        let streams: Vec<StreamId> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.from == node || stream.to == node)
            .map(|(id, _)| *id)
            .collect();
        for stream in streams {
            self.end_stream(stream);
        }
        for other in 0..self.nodes.len() {
            if other != node && !self.is_cut(node, other) {
                self.after(
                    100,
                    50_000,
                    Event::Reset {
                        at: other,
                        from: node,
                    },
                );
            }
        }
        self.clients.on_crash(node);
    }

    /// A stream ends: what is on its way is lost, each side hears of it in its own time.
    fn end_stream(&mut self, stream: StreamId) {
        let Some(state) = self.streams.get_mut(&stream) else {
            return;
        };
        if !std::mem::replace(&mut state.open, false) {
            return;
        }
        state.messages.clear();
        state.answers.clear();
        // A cut hides the end until TCP gives up.
        let (from, to) = (state.from, state.to);
        let late = if self.is_cut(from, to) { 5_000_000 } else { 0 };
        self.after(
            late + 10,
            late + 100_000,
            Event::Closed {
                stream,
                opener: true,
            },
        );
        self.after(
            late + 10,
            late + 100_000,
            Event::Closed {
                stream,
                opener: false,
            },
        );
    }

    /// Gives a core an event and carries out its effects.
    pub(crate) fn with<R>(
        &mut self,
        node: usize,
        event: impl FnOnce(&mut Core, Duration) -> R,
    ) -> Option<R> {
        let now = self.clock(node);
        let result = self.nodes[node].core.as_mut().map(|core| event(core, now));
        self.carry_out(node);
        result
    }

    fn carry_out(&mut self, node: usize) {
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
                    let restart = !complete && config.primary == id(node);
                    let proposal = Event::Proposal {
                        from: node,
                        expected,
                        config,
                        restart,
                    };
                    if !self.rng.percent(5) || self.is_quiet() {
                        self.after(300, 30_000, proposal);
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

    fn schedule_work(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        if !state.working && !state.work.is_empty() {
            state.working = true;
            let (slow, incarnation) = (state.slow, state.incarnation);
            self.after(5 * slow, 300 * slow, Event::Work(node, incarnation));
        }
    }

    fn do_work(&mut self, node: usize) {
        self.nodes[node].working = false;
        let Some(work) = self.nodes[node].work.pop_front() else {
            return;
        };
        let fails = !self.is_quiet() && self.rng.below(20_000) == 0;
        let store = &mut self.nodes[node].store;
        if fails && !matches!(work, Work::ListOwn { .. } | Work::ReadPiece { .. }) {
            let last = store.now.last;
            self.nodes[node].work.clear();
            let error = FsError::new(Code::NoSpace, "simulated");
            self.with(node, |core, _| core.on_store_failed(&error, last));
            return;
        }
        match work {
            Work::Apply { entry } => {
                let outcome = store.apply(&entry);
                self.with(node, |core, now| {
                    core.on_applied(entry.version, outcome, now)
                });
            }
            Work::Follow {
                entry,
                partial,
                stream,
            } => {
                if partial {
                    store.patch(&entry);
                } else {
                    store.apply(&entry);
                }
                self.with(node, |core, _| core.on_followed(stream, entry.version));
            }
            Work::Note(note) => {
                store.set_note(note);
                store.sync();
            }
            Work::Sync { upto } => {
                let incarnation = self.nodes[node].incarnation;
                self.after(200, 8000, Event::Durable(node, incarnation, upto));
            }
            Work::ListOwn {
                member,
                stream,
                after,
            } => {
                let (chunks, end) = store.list(after, 3);
                self.with(node, |core, now| {
                    core.on_own_list(member, stream, chunks, end, now)
                });
            }
            Work::ReadPiece {
                member,
                stream,
                chunk,
                offset,
            } => {
                let piece = store.piece(chunk, offset);
                self.with(node, |core, now| core.on_piece(member, stream, piece, now));
            }
            Work::ListForPrimary { stream, after } => {
                let (chunks, end) = store.list(after, 3);
                self.with(node, |core, _| core.on_listed(stream, chunks, end));
            }
            Work::Copy { stream, step } => {
                let piece = matches!(step, CopyStep::Piece { .. });
                store.copy(step);
                if piece {
                    self.with(node, |core, _| core.on_copied(stream));
                }
            }
            Work::Finish { stream, last, note } => {
                store.set_last(last);
                store.sync();
                store.set_note(note);
                store.sync();
                self.with(node, |core, _| core.on_finished(stream));
            }
        }
        self.schedule_work(node);
    }

    fn send_beacons(&mut self, node: usize) {
        for to in (0..self.nodes.len()).filter(|to| *to != node) {
            let sent = self.clock(node);
            let Some(core) = &mut self.nodes[node].core else {
                return;
            };
            if let Some(item) = core.beacon(id(to), sent) {
                self.after(
                    50,
                    3000,
                    Event::Beacon {
                        from: node,
                        to,
                        item,
                        sent,
                    },
                );
            }
        }
    }

    fn is_quiet(&self) -> bool {
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

    /// Members with the same history have the same contents.
    fn check_equal_histories(&self) {
        let complete = |node: &&Node| {
            node.core.as_ref().is_some_and(|core| {
                core.peer_state().complete && node.store.now.last.sequence.get() > 0
            })
        };
        let mut by_last: BTreeMap<lumeofs_base::Version, &Node> = BTreeMap::new();
        for node in self.nodes.iter().filter(complete) {
            let contents = &node.store.now;
            let other = by_last.entry(contents.last).or_insert(node);
            if other.store.now.chunks != contents.chunks {
                let differ =
                    |id: &ChunkId| other.store.now.chunks.get(id) != contents.chunks.get(id);
                let ids: Vec<_> = contents.chunks.keys().filter(|id| differ(id)).collect();
                let show = |node: &Node| {
                    ids.iter()
                        .map(|id| node.store.now.chunks.get(id).cloned())
                        .collect::<Vec<_>>()
                };
                panic!(
                    "equal histories up to {:?}, chunks differ: {ids:?}: {:?} {:?}",
                    contents.last,
                    show(node),
                    show(other)
                );
            }
        }
    }

    fn check_one_primary(&self) {
        let serves = |node: usize| {
            let core = self.nodes[node].core.as_ref()?;
            let state = core.state(self.clock(node));
            (state.role == Role::Primary && !state.lease_left.is_zero()).then_some(state)
        };
        let serving: Vec<_> = (0..self.nodes.len()).filter_map(serves).collect();
        assert!(serving.len() <= 1, "two primaries serve: {serving:?}");
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Tick(node) => {
                self.with(node, Core::on_tick);
                self.at(self.now + ms(100), Event::Tick(node));
            }
            Event::Beacons(node) => {
                self.send_beacons(node);
                self.at(self.now + BEACON_INTERVAL, Event::Beacons(node));
            }
            Event::Work(node, incarnation) => {
                if self.nodes[node].incarnation == incarnation && self.is_up(node) {
                    self.do_work(node);
                }
            }
            Event::Durable(node, incarnation, upto) => {
                if self.nodes[node].incarnation == incarnation && self.is_up(node) {
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
            } => {
                if self.is_cut(from, to) || !self.is_up(to) || !self.is_up(from) {
                    return;
                }
                let answered = self.clock(to);
                let answer = self.with(to, |core, _| core.on_beacon(id(from), item, answered));
                if let Some(answer) = answer {
                    let event = Event::BeaconAnswer {
                        from: to,
                        to: from,
                        answer,
                        sent,
                        answered,
                    };
                    self.after(50, 3000, event);
                }
            }
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
            Event::Config { to, config } => {
                self.with(to, |core, now| core.on_config(&config, now));
            }
            Event::Heartbeat(node) => {
                self.after(100, 10_000, Event::Fetch(node));
                self.at(self.now + ms(1000), Event::Heartbeat(node));
            }
            Event::Restart(node) => {
                if !self.is_up(node) {
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
                self.after(5_000, 300_000, Event::Ghost);
            }
            Event::Crash(node) => {
                if self.is_up(node) && !self.is_quiet() {
                    self.crash_node(node);
                    self.after(500_000, 9_000_000, Event::Restart(node));
                }
            }
            Event::ClientLate(client, ticket) => {
                let (late, node) = self.clients.on_late(client, ticket);
                if let Some(node) = node {
                    self.with(node, |core, _| core.forget(ticket));
                }
                self.wake_client(late);
            }
        }
    }

    fn connect(&mut self, from: usize, to: usize, stream: StreamId) {
        if !self.is_up(from) {
            return;
        }
        if self.is_cut(from, to) || !self.is_up(to) {
            let failed = Event::Closed {
                stream,
                opener: true,
            };
            let incarnations = (self.nodes[from].incarnation, 0);
            let (messages, answers) = Default::default();
            let state = Stream {
                from,
                to,
                incarnations,
                open: false,
                messages,
                answers,
            };
            self.streams.insert(stream, state);
            return self.after(10, 1_000_000, failed);
        }
        let incarnations = (self.nodes[from].incarnation, self.nodes[to].incarnation);
        let (messages, answers) = Default::default();
        let state = Stream {
            from,
            to,
            incarnations,
            open: true,
            messages,
            answers,
        };
        self.streams.insert(stream, state);
        self.with(from, |core, now| core.on_stream_open(id(to), stream, now));
    }

    fn deliver(&mut self, stream: StreamId) {
        let Some(state) = self.streams.get_mut(&stream) else {
            return;
        };
        let (from, to) = (state.from, state.to);
        if self.is_cut(from, to) {
            return self.after(20_000, 200_000, Event::Deliver(stream));
        }
        let state = self.streams.get_mut(&stream).expect("just there");
        if let Some(message) = state.messages.pop_front() {
            self.with(to, |core, now| {
                core.on_message(id(from), stream, message, now)
            });
        }
    }

    fn deliver_answer(&mut self, stream: StreamId) {
        let Some(state) = self.streams.get_mut(&stream) else {
            return;
        };
        let (from, to) = (state.from, state.to);
        if self.is_cut(from, to) {
            return self.after(20_000, 200_000, Event::DeliverAnswer(stream));
        }
        let state = self.streams.get_mut(&stream).expect("just there");
        if let Some(answer) = state.answers.pop_front() {
            self.with(from, |core, now| {
                core.on_answer(id(to), stream, answer, now)
            });
        }
    }

    fn closed(&mut self, stream: StreamId, opener: bool) {
        let Some(state) = self.streams.get(&stream) else {
            return;
        };
        let (from, to, incarnations) = (state.from, state.to, state.incarnations);
        if opener && self.nodes[from].incarnation == incarnations.0 {
            self.with(from, |core, now| core.on_stream_closed(id(to), stream, now));
        } else if !opener && self.nodes[to].incarnation == incarnations.1 {
            self.with(to, |core, _| core.on_stream_lost(stream));
        }
    }

    fn decide(&mut self, from: usize, expected: Epoch, config: GroupConfig, restart: bool) {
        if self.controller_down {
            return;
        }
        let valid = config.epoch == self.config.epoch.next()
            && config.in_sync.len() >= config.write_quorum()
            && config.in_sync.contains(&config.primary);
        if expected == self.config.epoch && valid {
            self.takeovers += usize::from(config.primary != self.config.primary);
            let grown = config
                .in_sync
                .iter()
                .any(|node| !self.config.is_in_sync(*node));
            if grown && self.rng.percent(20) {
                self.after(10, 40_000, Event::Crash(from));
            }
            self.config = config;
            if restart {
                self.restarts += 1;
                self.clients.on_restart();
            }
        }
        // The answer may be lost; the proposer then hears of it some other way.
        if !self.rng.percent(10) || self.is_quiet() {
            let config = self.config.clone();
            self.after(300, 30_000, Event::Proposed { to: from, config });
        }
    }

    fn fault(&mut self) {
        if self.is_quiet() {
            self.cut.clear();
            self.controller_down = false;
            for node in 0..self.nodes.len() {
                self.nodes[node].slow = 1;
                self.at(self.now + ms(10), Event::Restart(node));
            }
            return;
        }
        let count = self.nodes.len() as u64;
        let node = self.rng.below(count) as usize;
        let other = self.rng.below(count) as usize;
        match self.rng.below(12) {
            0..=2 if self.is_up(node) => {
                self.crash_node(node);
                // Sometimes back before anybody noticed, sometimes for long.
                let quick = self.rng.percent(50);
                let (least, most) = if quick {
                    (1_000, 300_000)
                } else {
                    (500_000, 9_000_000)
                };
                self.after(least, most, Event::Restart(node));
            }
            3 if self.rng.percent(30) => {
                for node in 0..self.nodes.len() {
                    if self.is_up(node) {
                        self.crash_node(node);
                    }
                    self.after(100_000, 5_000_000, Event::Restart(node));
                }
            }
            4 if node != other => {
                self.cut.insert((node.min(other), node.max(other)));
            }
            5 if node != other => self.cut_and_reset(node, &[other]),
            6 => {
                let others: Vec<usize> = (0..self.nodes.len())
                    .filter(|other| *other != node)
                    .collect();
                if self.rng.percent(30) {
                    // It lives on alone while all others lose power.
                    for &other in &others {
                        if self.is_up(other) {
                            self.crash_node(other);
                        }
                        self.after(1_000, 400_000, Event::Restart(other));
                    }
                }
                self.cut_and_reset(node, &others);
            }
            7 => self.cut.clear(),
            8 => self.controller_down = !self.controller_down,
            9 => {
                let open: Vec<StreamId> = self
                    .streams
                    .iter()
                    .filter(|(_, s)| s.open)
                    .map(|(id, _)| *id)
                    .collect();
                if !open.is_empty() {
                    let chosen = open[self.rng.below(open.len() as u64) as usize];
                    self.end_stream(chosen);
                }
            }
            10 => self.nodes[node].slow = 1 + self.rng.below(200),
            _ => {
                self.cut.clear();
                self.controller_down = false;
                self.nodes[node].slow = 1;
            }
        }
        let next = if self.now + ms(3000) > self.faults_until {
            self.faults_until
        } else {
            self.now + ms(50 + self.rng.below(2500))
        };
        self.at(next, Event::Fault);
    }

    /// Cuts a node off; half of the time connections are reset, which one side notices first.
    fn cut_and_reset(&mut self, node: usize, others: &[usize]) {
        let reset = self.rng.percent(50);
        for &other in others {
            let streams: Vec<StreamId> = self
                .streams
                .iter()
                .filter(|(_, s)| {
                    s.open && [(s.from, s.to), (s.to, s.from)].contains(&(node, other))
                })
                .map(|(id, _)| *id)
                .collect();
            if reset {
                streams
                    .into_iter()
                    .for_each(|stream| self.end_stream(stream));
                self.after(
                    10,
                    100_000,
                    Event::Reset {
                        at: other,
                        from: node,
                    },
                );
                self.after(
                    10,
                    100_000,
                    Event::Reset {
                        at: node,
                        from: other,
                    },
                );
            }
            self.cut.insert((node.min(other), node.max(other)));
        }
    }

    fn client(&mut self, client: usize) {
        let mut clients = std::mem::take(&mut self.clients);
        let stop = self.now >= self.faults_until + ms(6_000);
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

    /// Why the group is not as it should be after all faults have ended.
    pub(crate) fn converged(&self) -> Result<(), String> {
        let states: Vec<_> = (0..self.nodes.len())
            .map(|node| {
                self.nodes[node]
                    .core
                    .as_ref()
                    .map(|core| core.state(self.clock(node)))
            })
            .collect();
        let fail = |what: &str| Err(format!("{what}: {:?} {states:#?}", self.config));
        if self.config.in_sync.len() != self.config.members.len() {
            return fail("not all in sync");
        }
        let primary = index(self.config.primary);
        if states[primary]
            .as_ref()
            .is_none_or(|state| state.lease_left.is_zero())
        {
            return fail("the primary has no lease");
        }
        for node in &self.nodes[1..] {
            if node.store.now.chunks != self.nodes[0].store.now.chunks {
                return fail("stores differ");
            }
        }
        Ok(())
    }
}
