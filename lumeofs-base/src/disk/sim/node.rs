//! One simulated file: what reads see, what a power cut cannot take, and the changes in between.

use super::image::Image;
use crate::rng::SplitMix64;

/// Unit in which a disk writes atomically; an unsynced write may be torn between any two of them.
const SECTOR_BYTES: u64 = 512;

/// A change that is visible but was not made durable by a sync of the file.
pub(super) enum Change {
    Write {
        offset: u64,
        data: Vec<u8>,
        durable: bool,
    },
    SetLen(u64),
    Allocate {
        offset: u64,
        len: u64,
    },
}

impl Change {
    fn apply(&self, image: &mut Image) {
        match self {
            Change::Write { offset, data, .. } => image.write(*offset, data),
            Change::SetLen(len) => image.set_len(*len),
            Change::Allocate { offset, len } => image.allocate(*offset, *len),
        }
    }

    /// Durable by itself (a write of a dsync file), though changes before it are not.
    fn is_durable(&self) -> bool {
        matches!(self, Change::Write { durable: true, .. })
    }
}

/// How a power cut treats the unsynced changes of a file. The extremes are what real disks do most
/// often, so they get a good share of the seeds.
#[derive(Clone, Copy)]
pub(super) enum Fate {
    AllLost,
    AllKept,
    Each,
}

impl Fate {
    pub(super) fn draw(rng: &mut SplitMix64) -> Self {
        match rng.below(4) {
            0 => Fate::AllLost,
            1 => Fate::AllKept,
            _ => Fate::Each,
        }
    }

    pub(super) fn keeps(self, rng: &mut SplitMix64) -> bool {
        match self {
            Fate::AllLost => false,
            Fate::AllKept => true,
            Fate::Each => rng.percent(50),
        }
    }
}

#[derive(Default)]
pub(super) struct Node {
    /// What reads see.
    pub(super) volatile: Image,
    /// What a power cut cannot take.
    pub(super) durable: Image,
    /// In the order in which they were made.
    pub(super) unsynced: Vec<Change>,
    /// Open files of it; an unlinked node lives as long as one is left.
    pub(super) handles: usize,
}

impl Node {
    /// Makes a change. Unless `recorded`, not even a lucky crash keeps it.
    pub(super) fn change(&mut self, change: Change, recorded: bool) {
        change.apply(&mut self.volatile);
        if recorded {
            self.unsynced.push(change);
            let settled = self
                .unsynced
                .iter()
                .take_while(|change| change.is_durable())
                .count();
            for change in self.unsynced.drain(..settled) {
                change.apply(&mut self.durable);
            }
        }
    }

    pub(super) fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// What a failed sync does: the kernel marks the pages clean, so no later sync saves them.
    pub(super) fn fail_sync(&mut self) {
        let kept = self.unsynced.drain(..).filter(Change::is_durable);
        for change in kept {
            change.apply(&mut self.durable);
        }
    }

    /// The content that a power cut leaves.
    pub(super) fn after_crash(&self, rng: &mut SplitMix64) -> Image {
        let mut image = self.durable.clone();
        let fate = Fate::draw(rng);
        for change in &self.unsynced {
            if change.is_durable() {
                change.apply(&mut image);
            } else if fate.keeps(rng) {
                match (change, fate) {
                    (Change::Write { offset, data, .. }, Fate::Each) if rng.percent(70) => {
                        tear(&mut image, *offset, data, rng);
                    }
                    _ => change.apply(&mut image),
                }
            }
        }
        image
    }
}

/// Writes a random choice of the sectors of `data`: a prefix, a suffix or any subset.
fn tear(image: &mut Image, offset: u64, data: &[u8], rng: &mut SplitMix64) {
    let end = offset + data.len() as u64;
    let (first, count) = (
        offset / SECTOR_BYTES,
        end.div_ceil(SECTOR_BYTES) - offset / SECTOR_BYTES,
    );
    let shape = rng.below(3);
    let pivot = rng.below(count.max(1));
    for sector in 0..count {
        let keep = match shape {
            0 => sector < pivot,
            1 => sector > pivot,
            _ => rng.percent(50),
        };
        if keep {
            let start = ((first + sector) * SECTOR_BYTES).max(offset);
            let stop = ((first + sector + 1) * SECTOR_BYTES).min(end);
            image.write(
                start,
                &data[(start - offset) as usize..(stop - offset) as usize],
            );
        }
    }
}
