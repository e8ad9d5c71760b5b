//! Both ends of the log can be cut: the end when Raft finds that its last records are not the
//! leader's, the front when checkpoints have overtaken it.

use super::keeping::Need;
use super::{Core, Segment, Step};
use crate::Lsn;
use crate::format::{BLOCK, Generation};

impl<F: Clone> Core<F> {
    /// Asks for the records above `lsn` to be dropped. Nothing may be placed until
    /// [`Core::is_truncating`] ends.
    pub(crate) fn truncate_after(&mut self, lsn: Lsn) {
        self.truncation = Some(lsn);
    }

    pub(crate) fn is_truncating(&self) -> bool {
        self.truncation.is_some()
    }

    /// Gives up a truncation that waits for space. False if it is already under way.
    pub(crate) fn cancel_truncation(&mut self) -> bool {
        let cancelled = self.truncating_into.is_none();
        if cancelled {
            self.truncation = None;
        }
        cancelled
    }

    pub(super) fn next_truncation_step(&mut self) -> Option<Step<F>> {
        let keep = self.truncation?;
        if keep >= self.last {
            self.truncation = None;
            return None;
        }
        if self.truncating_into.is_none() {
            self.truncating_into = self.plan_segment(BLOCK, keep);
        }
        let Some(segment) = &self.truncating_into else {
            self.keeping.need(Need::Spare(BLOCK));
            return None;
        };
        Some(Step::Begin {
            file: segment.file.clone(),
            header: segment.header,
        })
    }

    /// The new segment's header is durable, so the log goes back from there, around what was cut.
    pub(super) fn finish_truncation(&mut self, segment: Segment<F>) {
        let keep = self.truncation.take().expect("it was under way");
        self.close_tail();
        let first_dropped = match segment.header.previous_generation {
            Generation(0) => 0,
            holder => {
                1 + self
                    .live
                    .iter()
                    .position(|it| it.header.generation == holder)
                    .expect("planned so")
            }
        };
        for dropped in self.live.split_off(first_dropped) {
            self.keeping.retire(dropped);
        }
        self.next = Some(segment.first());
        self.live.push_back(segment);
        self.last = keep;
        self.durable = keep;
        self.wanted = keep;
    }

    /// Gives up whole segments of records below `lsn`. Whether there are any.
    pub(crate) fn truncate_before(&mut self, lsn: Lsn) -> bool {
        let mut any = false;
        while self.live.len() > 1 && self.live[1].begun && self.live[1].first() <= lsn.0 {
            let segment = self.live.pop_front().expect("there are two");
            self.keeping.retire(segment);
            any = true;
        }
        if any {
            self.keeping.raise_floor(self.live[0].header.base);
        }
        any
    }
}
