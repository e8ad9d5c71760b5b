//! Streams and beacons between nodes, late, cut and broken.

use crate::world::{Event, World, id};
use lumeofs_replica::{BeaconItem, BeaconSent, StreamId, ToMember, ToPrimary};
use std::collections::VecDeque;
use std::time::Duration;

pub(crate) struct Stream {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) incarnations: (u32, u32),
    pub(crate) open: bool,
    pub(crate) messages: VecDeque<ToMember<Vec<u8>>>,
    pub(crate) answers: VecDeque<ToPrimary<Vec<u8>>>,
}

impl World {
    pub(crate) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    /// A stream ends: what is on its way is lost, each side hears of it in its own time.
    pub(crate) fn end_stream(&mut self, stream: StreamId) {
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

    pub(crate) fn send_beacons(&mut self, node: usize) {
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

    pub(crate) fn connect(&mut self, from: usize, to: usize, stream: StreamId) {
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

    pub(crate) fn deliver(&mut self, stream: StreamId) {
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

    pub(crate) fn deliver_answer(&mut self, stream: StreamId) {
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

    pub(crate) fn closed(&mut self, stream: StreamId, opener: bool) {
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

    pub(crate) fn beacon(&mut self, from: usize, to: usize, item: BeaconItem, sent: Duration) {
        if self.is_cut(from, to) || !self.is_up(to) || !self.is_up(from) {
            return;
        }
        let answered = self.clock(to);
        let answer = self.with(to, |core, _| core.on_beacon(id(from), item, answered));
        if let Some(answer) = answer {
            let sent = BeaconSent {
                epoch: item.epoch,
                at: sent,
            };
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
}
