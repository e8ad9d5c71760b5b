//! Clocks, network and the queue of events, all from one seed.

use crate::bugs::Bug;
use crate::calls::{Ask, From, Tell};
use crate::data::{BLOCKS, Data};
use crate::history::{self, History, Register, caller};
use crate::masters::{Group, MASTERS, Master, Touched};
use crate::mounts::Mount;
use lumeofs_base::rng::SplitMix64;
use lumeofs_base::{FileKind, InodeId, SessionId, Timestamp};
use lumeofs_lease::TableLimits;
use lumeofs_meta::op::{Command, Internal, Mutation, NewNode, Reply};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

/// How long things go wrong, and how long operations begin.
pub(crate) const FAULTS_UNTIL: Duration = Duration::from_secs(40);
pub(crate) const OPS_UNTIL: Duration = Duration::from_secs(46);
const END: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(crate) enum Event {
    ToMaster {
        at: usize,
        from: From,
        ask: Ask,
    },
    ToData {
        from: From,
        ask: Ask,
    },
    ToMount {
        to: From,
        tell: Tell,
    },
    Confirm {
        at: usize,
        term: u64,
        received: Duration,
        from: From,
        ask: Ask,
    },
    /// A mutation that may be proposed is.
    Propose {
        term: u64,
        command: Command,
        touched: Touched,
        from: From,
    },
    Commit {
        term: u64,
        proposal: u64,
    },
    Apply {
        at: usize,
        up_to: usize,
    },
    Tick(usize),
    Elect,
    Fence(SessionId),
    Fault,
    Mount {
        mount: usize,
        incarnation: u32,
        what: MountEvent,
    },
    Restart(usize),
}

#[derive(Clone, Debug)]
pub(crate) enum MountEvent {
    NewOp,
    Step(u64),
    Complete(u64),
    Poll,
    Flush(InodeId),
    /// Something that was made is to be told.
    Tell,
    TimeOut {
        call: u64,
        attempt: u32,
    },
}

/// What happened, to know that the simulation is not idle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) ops: usize,
    pub(crate) hits: usize,
    pub(crate) data_hits: usize,
    pub(crate) recalls: usize,
    pub(crate) blocked: usize,
    pub(crate) offered: usize,
    pub(crate) elections: usize,
    pub(crate) ended: usize,
    pub(crate) given_back: usize,
    pub(crate) buffered: usize,
    pub(crate) through: usize,
    pub(crate) voids: usize,
    pub(crate) crashes: usize,
    pub(crate) stops: usize,
    pub(crate) lost: usize,
    pub(crate) repeated: usize,
    pub(crate) evicted: usize,
    pub(crate) made: usize,
    pub(crate) told: usize,
    pub(crate) lost_made: usize,
    pub(crate) set_ahead: usize,
}

impl Counts {
    fn all(&mut self) -> [&mut usize; 21] {
        [
            &mut self.ops,
            &mut self.hits,
            &mut self.data_hits,
            &mut self.recalls,
            &mut self.blocked,
            &mut self.offered,
            &mut self.elections,
            &mut self.ended,
            &mut self.given_back,
            &mut self.buffered,
            &mut self.through,
            &mut self.voids,
            &mut self.crashes,
            &mut self.stops,
            &mut self.lost,
            &mut self.repeated,
            &mut self.evicted,
            &mut self.made,
            &mut self.told,
            &mut self.lost_made,
            &mut self.set_ahead,
        ]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let mut other = other.clone();
        for (own, other) in self.all().into_iter().zip(other.all()) {
            *own += *other;
        }
    }

    /// After a hundred seeds.
    pub(crate) fn check_enough(&self) {
        let mut all = self.clone();
        let least = all.all().into_iter().map(|count| *count).min();
        assert!(least > Some(10), "the simulation is idle: {self:?}");
    }
}

pub(crate) struct World {
    pub(crate) bug: Option<Bug>,
    pub(crate) rng: SplitMix64,
    pub(crate) now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64)>>,
    bodies: BTreeMap<u64, Event>,
    next_event: u64,
    pub(crate) group: Group,
    pub(crate) masters: Vec<Master>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) data: Data,
    pub(crate) history: History,
    /// Sessions whose fence is on its way.
    pub(crate) fencing: BTreeSet<SessionId>,
    /// All that ever were.
    pub(crate) inodes: BTreeMap<InodeId, FileKind>,
    last_time: u64,
    pub(crate) next_attempt: u64,
    clocks: Vec<(Duration, u32)>,
    traced: bool,
    pub(crate) log_hash: u64,
    pub(crate) counts: Counts,
}

pub(crate) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut world = Self {
            bug,
            rng: SplitMix64::new(seed),
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            next_event: 0,
            group: Group::default(),
            masters: Vec::new(),
            mounts: Vec::new(),
            data: Data::default(),
            history: History::default(),
            fencing: BTreeSet::new(),
            inodes: BTreeMap::new(),
            last_time: 0,
            next_attempt: 0,
            clocks: Vec::new(),
            traced: std::env::var_os("LUMEOFS_TRACE").is_some() && bug.is_none(),
            log_hash: 0,
            counts: Counts::default(),
        };
        let limits = match seed % 4 == 3 {
            // Leases run short.
            true => TableLimits {
                leases_max: 10,
                leases_per_session_max: 5,
            },
            false => TableLimits::default(),
        };
        let masters = std::iter::repeat_with(|| Master::new(limits));
        world.masters.extend(masters.take(MASTERS));
        for _ in 0..MASTERS {
            let clock = (
                ms(world.rng.below(1_000_000)),
                960 + world.rng.below(81) as u32,
            );
            world.clocks.push(clock);
        }
        world.make_tree();
        world.after(0, 1000, Event::Elect);
        for at in 0..MASTERS {
            world.after(0, 100_000, Event::Tick(at));
        }
        for mount in 0..2 + world.rng.below(3) as usize {
            let clock = (
                ms(world.rng.below(1_000_000)),
                930 + world.rng.below(141) as u32,
            );
            world.clocks.push(clock);
            world.mounts.push(Mount::default());
            world.start_mount(mount);
        }
        world.after(3_000_000, 5_000_000, Event::Fault);
        world
    }

    fn make_tree(&mut self) {
        let open = Internal::OpenSession {
            nonce: 0,
            description: String::new(),
        };
        let Ok(Reply::Session(session)) = self.set_up(&Command::Internal(open)) else {
            panic!("no session");
        };
        let mut sequence = 0;
        let mut make = |world: &mut Self, parent, name: &[u8], node| {
            sequence += 1;
            let command = Command::Mutate {
                session,
                sequence,
                acked_below: sequence,
                caller: caller(),
                mutation: Mutation::Create {
                    parent,
                    name: name.to_vec(),
                    node,
                    mode: 0o755.into(),
                    exclusive: true,
                },
            };
            match world.set_up(&command) {
                Ok(Reply::Created { attr, .. }) => attr.ino,
                other => panic!("{other:?}"),
            }
        };
        self.inodes.insert(InodeId::ROOT, FileKind::Directory);
        let dir = make(self, InodeId::ROOT, b"d", NewNode::Directory);
        make(self, InodeId::ROOT, b"a", NewNode::Regular);
        make(self, InodeId::ROOT, b"b", NewNode::Regular);
        make(self, dir, b"a", NewNode::Regular);
        let closed = self.set_up(&Command::Internal(Internal::CloseSession { session }));
        assert_eq!(closed, Ok(Reply::Done));
    }

    pub(crate) fn at(&mut self, time: Duration, event: Event) {
        self.next_event += 1;
        self.events
            .push(Reverse((time.max(self.now), self.next_event)));
        self.bodies.insert(self.next_event, event);
    }

    /// In so many microseconds.
    pub(crate) fn after(&mut self, from: u64, to: u64, event: Event) {
        let delay = Duration::from_micros(from + self.rng.below((to - from).max(1)));
        self.at(self.now + delay, event);
    }

    /// A time that was never told before.
    pub(crate) fn unique_time(&mut self) -> Timestamp {
        let nanos = 1_000_000_000_000 + self.now.as_nanos() as u64;
        self.last_time = nanos.max(self.last_time + 1);
        Timestamp {
            secs: (self.last_time / 1_000_000_000) as i64,
            nanos: (self.last_time % 1_000_000_000) as u32,
        }
    }

    fn clock(&self, of: usize) -> Duration {
        let (offset, rate) = self.clocks[of];
        offset + self.now * rate / 1000
    }

    pub(crate) fn master_clock(&self, at: usize) -> Duration {
        self.clock(at)
    }

    pub(crate) fn mount_clock(&self, mount: usize) -> Duration {
        self.clock(MASTERS + mount)
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.now >= FAULTS_UNTIL
    }

    /// Notes what happens: shown if `LUMEOFS_TRACE` is set.
    pub(crate) fn trace(&mut self, what: impl FnOnce() -> String) {
        let line = format!("{:>10.6} {}", self.now.as_secs_f64(), what());
        for byte in line.bytes() {
            self.log_hash = (self.log_hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.traced {
            eprintln!("{line}");
        }
    }

    /// How long a message takes; `None` if it is lost.
    fn delay(&mut self) -> Option<u64> {
        if self.is_quiet() {
            return Some(50 + self.rng.below(2_000));
        }
        match self.rng.below(100) {
            0 => None,
            1 => Some(self.rng.below(9_000_000)),
            2..=5 => Some(self.rng.below(400_000)),
            _ => Some(50 + self.rng.below(4_000)),
        }
    }

    pub(crate) fn send(&mut self, event: Event, is_cut: bool) {
        if let Some(delay) = self.delay()
            && !is_cut
        {
            self.at(self.now + Duration::from_micros(delay), event);
        }
    }

    /// A reply on its way.
    pub(crate) fn tell(&mut self, to: From, tell: Tell) {
        let is_cut = self.is_cut(to.mount);
        self.send(Event::ToMount { to, tell }, is_cut);
    }

    fn on_data(&mut self, from: From, ask: Ask) {
        let tell = match ask {
            Ask::Read { ino, block } => Tell::Data(self.data.read(ino, block)),
            Ask::Write {
                session,
                ino,
                attempt,
                blocks,
            } => match self.data.write(session, ino, attempt, &blocks) {
                true => {
                    for (block, value) in blocks {
                        self.history.reached(Register::Block(ino, block), value);
                    }
                    Tell::Written { attempt }
                }
                false => Tell::Fenced,
            },
            _ => panic!("that is for a master"),
        };
        self.tell(from, tell);
    }

    pub(crate) fn run(&mut self) {
        while let Some(Reverse((time, id))) = self.events.pop() {
            if time > END {
                break;
            }
            self.now = time;
            let event = self.bodies.remove(&id).expect("each event has a body");
            self.on_event(event);
        }
        self.counts.lost = self.history.lost;
        self.counts.lost_made = self.history.lost_made;
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::ToMaster { at, from, ask } => self.on_ask(at, from, ask),
            Event::ToData { from, ask } => self.on_data(from, ask),
            Event::Confirm {
                at,
                term,
                received,
                from,
                ask,
            } => self.on_confirm(at, term, received, from, ask),
            Event::Propose {
                term,
                command,
                touched,
                from,
            } => self.on_propose(term, command, touched, from),
            Event::Commit { term, proposal } => self.on_commit(term, proposal),
            Event::Apply { at, up_to } => self.on_apply(at, up_to),
            Event::Tick(at) => self.on_tick(at),
            Event::Elect => self.elect(),
            Event::Fence(session) => self.on_fence(session),
            Event::Fault => self.fault(),
            Event::Restart(mount) => self.start_mount(mount),
            Event::ToMount { to, ref tell } => {
                if let Some(until) = self.is_stopped(to.mount) {
                    return self.at(until, event);
                }
                let tell = tell.clone();
                self.on_tell(to, tell);
            }
            Event::Mount {
                mount,
                incarnation,
                ref what,
            } => {
                if let Some(until) = self.is_stopped(mount) {
                    return self.at(until, event);
                }
                if self.mounts[mount].incarnation == incarnation {
                    let what = what.clone();
                    self.on_mount_event(mount, what);
                }
            }
        }
    }

    /// What must hold when everything has come to rest.
    pub(crate) fn check_end(&mut self) {
        let now = self.now;
        let leader = self.group.leader.expect("there is one in the end");
        let table = &self.masters[leader].table;
        assert_eq!(
            table.awaited(),
            0,
            "the first time of the leadership does not end"
        );
        assert_eq!(
            table.unacknowledged(),
            0,
            "recalls that nobody acknowledges"
        );
        assert_eq!(
            self.masters[leader].waiting.len(),
            0,
            "requests wait for ever"
        );
        for index in 0..self.mounts.len() {
            let clock = self.mount_clock(index);
            let mount = &mut self.mounts[index];
            assert!(mount.ops.is_empty(), "{index} at {now:?}: {:?}", mount.ops);
            assert!(!mount.holder.has_made(), "mount {index} does not tell");
            assert!(
                mount.holder.is_valid(clock),
                "mount {index} has no term in the end"
            );
            for (ino, kind) in &self.inodes {
                let is = history::attr(&self.group.tables, *ino);
                if let lumeofs_lease::Cached::Is(attr) = mount.holder.attr(clock, *ino) {
                    assert_eq!(Some(attr), is, "mount {index}");
                }
                if *kind == FileKind::Directory {
                    mount.check_directory(clock, *ino, &self.group.tables);
                }
                if mount.holder.caches_data(clock, *ino).is_none() {
                    continue;
                }
                for block in 0..BLOCKS {
                    if let Some(value) = mount.cached(*ino, block) {
                        assert_eq!(Some(value), self.data.read(*ino, block), "mount {index}");
                    }
                }
            }
        }
    }
}
