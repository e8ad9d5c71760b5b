//! The keeper's part of the state machine: space ahead of the writer, and segments given up.

use super::{Core, Segment, Spare};
use crate::format::BLOCK;
use lumeofs_base::limits::{WAL_FILL_AHEAD_BYTES, WAL_FILL_PIECE_BYTES};

/// What the keeper does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Chore<F> {
    /// Make the floor durable if there is one; then turn files into spares or, where `keep` is
    /// false, remove them; then make the names durable.
    Retire {
        floor: Option<u64>,
        files: Vec<(F, bool)>,
    },
    /// Write zeros.
    Fill { file: F, offset: u64, len: u64 },
    /// Create an empty spare; report it with [`Core::spare_created`].
    CreateSpare,
}

/// Space without which a record cannot be placed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    /// The last segment filled up to this offset.
    Tail(u64),
    /// A spare filled up to this offset.
    Spare(u64),
}

/// Which file a chore is filling.
#[derive(Clone, Copy)]
enum Filling {
    /// The segment that was last when the chore was given out.
    Tail(crate::format::Generation),
    /// The spare, which is taken off the list meanwhile.
    Spare,
}

pub(super) struct Keeping<F> {
    spares: Vec<Spare<F>>,
    /// The spare that the keeper is writing zeros to.
    filling_spare: Option<Spare<F>>,
    filling: Option<(Filling, u64)>,
    retired: Vec<Spare<F>>,
    retiring: Vec<(Spare<F>, bool)>,
    floor: Option<u64>,
    tail_needed: u64,
    spare_needed: u64,
    /// The disk was full: no more attempts until somebody needs space.
    paused: bool,
}

impl<F: Clone> Keeping<F> {
    pub(super) fn new(spares: Vec<Spare<F>>, retired: Vec<Spare<F>>) -> Self {
        Self {
            spares,
            filling_spare: None,
            filling: None,
            retired,
            retiring: Vec::new(),
            floor: None,
            tail_needed: 0,
            spare_needed: 0,
            paused: false,
        }
    }

    pub(super) fn need(&mut self, need: Need) {
        match need {
            Need::Tail(bytes) => self.tail_needed = bytes,
            Need::Spare(bytes) => self.spare_needed = bytes,
        }
    }

    /// Whether there is a spare with so many prepared bytes.
    pub(super) fn has_spare(&self, bytes: u64) -> bool {
        self.spares.iter().any(|spare| spare.filled >= bytes)
    }

    /// Takes the spare with the most prepared bytes, if those suffice.
    pub(super) fn take_spare(&mut self, bytes: u64) -> Option<Spare<F>> {
        let best = self
            .best_spare()
            .filter(|&index| self.spares[index].filled >= bytes)?;
        (self.tail_needed, self.spare_needed) = (0, 0);
        Some(self.spares.swap_remove(best))
    }

    fn best_spare(&self) -> Option<usize> {
        (0..self.spares.len()).max_by_key(|&index| self.spares[index].filled)
    }

    pub(super) fn retire(&mut self, segment: Segment<F>) {
        self.retired.push(Spare {
            file: segment.file,
            filled: segment.filled,
        });
    }

    /// Whether the disk was full at the last attempt.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn raise_floor(&mut self, base: u64) {
        self.floor = Some(base);
    }
}

impl<F: Clone> Core<F> {
    /// Lets the keeper try again after the disk was full.
    pub(crate) fn resume_filling(&mut self) {
        self.keeping.paused = false;
    }

    /// The keeper's chore failed because the disk is full. It comes back after
    /// [`Core::resume_filling`].
    pub(crate) fn pause_filling(&mut self) {
        self.keeping.paused = true;
        self.keeping.filling = None;
        if let Some(spare) = self.keeping.filling_spare.take() {
            self.keeping.spares.push(spare);
        }
    }

    /// What the keeper is to do now. It must be reported as done, or failed, before the next one.
    pub(crate) fn next_chore(&mut self) -> Option<Chore<F>> {
        let retirement = self.next_retirement();
        if retirement.is_some() || self.keeping.paused {
            return retirement;
        }
        self.fill_tail_chore().or_else(|| self.spare_chore())
    }

    /// Whether [`Core::next_chore`] has something to give out: waking the keeper for nothing would cost more
    /// than appending a small record.
    pub(crate) fn has_chore(&self) -> bool {
        !self.keeping.retired.is_empty()
            || !self.keeping.paused
                && (self.tail_to_fill().is_some() || self.spare_to_fill().is_some())
    }

    /// As [`Core::next_chore`], but nothing that only serves later records.
    pub(crate) fn next_retirement(&mut self) -> Option<Chore<F>> {
        if self.keeping.retired.is_empty() {
            return None;
        }
        let wanted = self
            .config
            .segments_kept_spare
            .saturating_sub(self.keeping.spares.len());
        let retired = std::mem::take(&mut self.keeping.retired);
        let numbered = retired.into_iter().enumerate();
        self.keeping.retiring = numbered
            .map(|(index, spare)| (spare, index < wanted))
            .collect();
        let files = self
            .keeping
            .retiring
            .iter()
            .map(|(spare, keep)| (spare.file.clone(), *keep));
        let files = files.collect();
        Some(Chore::Retire {
            floor: self.keeping.floor.take(),
            files,
        })
    }

    /// Prepared bytes of the last segment that are still ahead of the records.
    fn tail_ahead(&self) -> u64 {
        let (Some(tail), Some(next)) = (self.live.back(), self.next) else {
            return 0;
        };
        let used = self.open.as_ref().map_or(next, |batch| batch.end_with(0)) - tail.header.base;
        tail.filled.min(tail.header.capacity).saturating_sub(used)
    }

    /// The last segment, if it lacks prepared bytes.
    fn tail_to_fill(&self) -> Option<&Segment<F>> {
        let ahead = self.tail_ahead();
        let tail = self.live.back().filter(|_| self.next.is_some())?;
        let needed = tail.filled < self.keeping.tail_needed;
        let full = tail.filled >= tail.header.capacity;
        (!full && (ahead < WAL_FILL_AHEAD_BYTES || needed)).then_some(tail)
    }

    fn fill_tail_chore(&mut self) -> Option<Chore<F>> {
        let tail = self.tail_to_fill()?;
        let len = (WAL_FILL_PIECE_BYTES as u64).min(tail.header.capacity - tail.filled);
        let chore = Chore::Fill {
            file: tail.file.clone(),
            offset: tail.filled,
            len,
        };
        let filling = Filling::Tail(tail.header.generation);
        self.keeping.filling = Some((filling, tail.filled + len));
        Some(chore)
    }

    /// The place of the best spare if even that lacks prepared bytes, `None` inside if there is no spare.
    fn spare_to_fill(&self) -> Option<Option<usize>> {
        let ahead = WAL_FILL_AHEAD_BYTES.saturating_sub(self.tail_ahead());
        let wanted = ahead
            .max(self.keeping.spare_needed)
            .min(self.config.segment_bytes);
        if wanted < BLOCK {
            return None;
        }
        let best = self.keeping.best_spare();
        let lacks = best.is_none_or(|best| self.keeping.spares[best].filled < wanted);
        lacks.then_some(best)
    }

    fn spare_chore(&mut self) -> Option<Chore<F>> {
        let Some(best) = self.spare_to_fill()? else {
            return Some(Chore::CreateSpare);
        };
        let spare = self.keeping.spares.swap_remove(best);
        let filled = spare.filled;
        let len = (WAL_FILL_PIECE_BYTES as u64).min(self.config.segment_bytes - filled);
        let chore = Chore::Fill {
            file: spare.file.clone(),
            offset: filled,
            len,
        };
        self.keeping.filling = Some((Filling::Spare, filled + len));
        self.keeping.filling_spare = Some(spare);
        Some(chore)
    }

    /// A spare is there, with so many prepared bytes.
    pub(crate) fn spare_created(&mut self, file: F, filled: u64) {
        self.keeping.spares.push(Spare { file, filled });
    }

    /// A fill or retire chore is done.
    pub(crate) fn chore_done(&mut self) {
        if let Some((filling, filled)) = self.keeping.filling.take() {
            match filling {
                Filling::Tail(generation) => {
                    // The segment may have been cut off or given up meanwhile.
                    let segment = self
                        .live
                        .iter_mut()
                        .find(|it| it.header.generation == generation);
                    if let Some(segment) = segment {
                        segment.filled = segment.filled.max(filled);
                    }
                }
                Filling::Spare => {
                    let spare = self
                        .keeping
                        .filling_spare
                        .take()
                        .expect("it was being filled");
                    self.keeping.spares.push(Spare { filled, ..spare });
                }
            }
        }
        let kept = self.keeping.retiring.drain(..).filter(|(_, keep)| *keep);
        let kept: Vec<_> = kept.map(|(spare, _)| spare).collect();
        self.keeping.spares.extend(kept);
    }
}
