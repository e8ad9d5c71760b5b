//! Nodes' disks: store work in order, one piece at a time, some of it slow and some of it failing.

use crate::world::{Disk, Event, World};
use lumeofs_base::{Code, FsError};
use lumeofs_replica::{CopyStep, Work};

impl World {
    pub(crate) fn schedule_work(&mut self, node: usize) {
        let state = &mut self.nodes[node];
        if !state.working && !state.work.is_empty() {
            state.working = true;
            let (slow, incarnation) = (state.slow, state.incarnation);
            self.after(5 * slow, 300 * slow, Event::Work(node, incarnation));
        }
    }

    /// Whether the next piece of work finds the disk hanging.
    pub(crate) fn is_held(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        let syncs = matches!(node.work.front(), Some(Work::Note(_) | Work::Finish { .. }));
        match node.disk {
            Disk::Works => false,
            Disk::Hangs => true,
            Disk::HangsSyncs => syncs,
        }
    }

    pub(crate) fn do_work(&mut self, node: usize) {
        self.nodes[node].working = false;
        let Some(work) = self.nodes[node].work.pop_front() else {
            return;
        };
        let fails = !self.is_quiet() && self.rng.below(20_000) == 0;
        let store = &mut self.nodes[node].store;
        if fails && !matches!(work, Work::ListOwn { .. } | Work::ReadPiece { .. }) {
            let last = store.now.last;
            self.nodes[node].work.clear();
            let codes = [Code::NoSpace, Code::Io];
            let error = FsError::new(codes[self.rng.below(2) as usize], "simulated");
            self.trace(|| format!("{node}'s store fails"));
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
}
