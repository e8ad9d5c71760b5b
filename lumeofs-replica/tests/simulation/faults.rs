//! What goes wrong, by dice.

use crate::network::Stream;
use crate::world::{Disk, Event, World, id, ms};
use lumeofs_replica::{Group, Local, StreamId};

impl World {
    pub(crate) fn start_node(&mut self, node: usize) {
        let now = self.clock(node);
        if !self.config.members.contains(&id(node)) {
            return self.retire(node);
        }
        let state = &mut self.nodes[node];
        state.outside = false;
        state.incarnation += 1;
        state.work.clear();
        state.working = false;
        state.disk = Disk::Works;
        let local = Local {
            last: state.store.now.last,
            note: state.store.now.note.clone(),
        };
        let nonce = (node as u64 + 1) << 16 | u64::from(state.incarnation);
        let last = local.last;
        state.core = Some(Group::new(id(node), self.config.clone(), local, nonce, now));
        self.trace(|| format!("{node} starts with {last:?}"));
        self.carry_out(node);
    }

    pub(crate) fn crash_node(&mut self, node: usize) {
        let rng = &mut self.rng;
        let state = &mut self.nodes[node];
        state.core = None;
        state.store.crash(rng);
        self.end_streams(node);
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
        self.trace(|| format!("{node} crashes"));
        self.clients.on_crash(node);
    }

    pub(crate) fn fault(&mut self) {
        if self.is_quiet() {
            self.cut.clear();
            self.controller_down = false;
            for node in 0..self.nodes.len() {
                self.nodes[node].slow = 1;
                self.nodes[node].disk = Disk::Works;
                self.at(self.now + ms(10), Event::Restart(node));
            }
            return;
        }
        let count = self.nodes.len() as u64;
        let node = self.rng.below(count) as usize;
        let other = self.rng.below(count) as usize;
        match self.rng.below(15) {
            13 | 14 => self.move_replica(),
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
            11 => {
                let syncs = self.rng.percent(50);
                self.nodes[node].disk = if syncs { Disk::HangsSyncs } else { Disk::Hangs };
                self.trace(|| format!("{node}'s disk {:?}", self.nodes[node].disk));
                self.after(500_000, 16_000_000, Event::DiskWorks(node));
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

    /// Cuts the way between two nodes; both notice.
    pub(crate) fn cut_off(&mut self, one: usize, other: usize) {
        let between = |stream: &Stream| {
            stream.open
                && [(stream.from, stream.to), (stream.to, stream.from)].contains(&(one, other))
        };
        let streams = self.streams.iter().filter(|(_, stream)| between(stream));
        let streams: Vec<StreamId> = streams.map(|(id, _)| *id).collect();
        streams
            .into_iter()
            .for_each(|stream| self.end_stream(stream));
        self.cut.insert((one.min(other), one.max(other)));
    }

    /// Cuts a node off; half of the time connections are reset, which one side notices first.
    pub(crate) fn cut_and_reset(&mut self, node: usize, others: &[usize]) {
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
}
