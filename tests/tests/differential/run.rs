//! The same steps on a local filesystem and on mounts: every answer and every look must be the same.

use crate::call::{Call, Step, Whence};
use crate::draw;
use crate::place::Place;
use crate::view::{Clocks, View, look};
use lumeofs_tests::coherence::shrink;
use rustix::fs::{FallocateFlags, Mode};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Attempts to shorten a sequence that failed.
const ATTEMPTS: u32 = 400;

/// The directory below that of a sequence in which everything happens.
const TREE: &str = "tree";

/// Where the same is done.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// A directory of ext4.
    pub(crate) local: PathBuf,
    /// The same directory of a cluster through each of its mounts.
    pub(crate) mounts: Vec<PathBuf>,
}

/// One tree on both.
struct Pair {
    /// What each mount has open has its counterpart among what is open locally.
    local: Vec<Place>,
    mounts: Vec<Place>,
    local_clocks: Clocks,
    clocks: Clocks,
    /// Local inodes of which ranges were reserved.
    reserved: BTreeSet<u64>,
}

impl Pair {
    fn new(places: &Places, name: &str) -> Self {
        let (local_clocks, clocks) = (Clocks::new(), Clocks::new());
        let make = |parent: &Path| {
            // Where links lead out of the tree is a directory of this sequence too.
            let outer = parent.join(name);
            for directory in [outer.join(TREE), outer] {
                std::fs::create_dir_all(&directory).expect("a new directory");
                rustix::fs::chmod(&directory, Mode::from(0o777)).expect("for everybody");
            }
        };
        make(&places.local);
        make(&places.mounts[0]);
        let place = |parent: &PathBuf| Place::new(&parent.join(name).join(TREE));
        Self {
            local: places.mounts.iter().map(|_| place(&places.local)).collect(),
            mounts: places.mounts.iter().map(place).collect(),
            local_clocks,
            clocks,
            reserved: BTreeSet::new(),
        }
    }

    fn run(&mut self, steps: &[Step]) -> Result<(), (usize, String)> {
        for (at, step) in steps.iter().enumerate() {
            self.step(step)
                .map_err(|told| (at, format!("step {step:?}\n{told}")))?;
        }
        for mount in 0..self.mounts.len() {
            let compared = self.compare(mount);
            compared.map_err(|told| (steps.len(), format!("at the end\n{told}")))?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        if self.is_left_open(step) {
            return Ok(());
        }
        let right = self.local[step.mount].make(step);
        let got = self.mounts[step.mount].make(step);
        if right != got {
            return Err(format!("  right {right}\n  got   {got}"));
        }
        if self.mounts.len() > 1 {
            self.settle(step);
        }
        step.look.map_or(Ok(()), |mount| self.compare(mount))
    }

    /// Whether POSIX leaves the answer open, and ext4 gives another one: of a range that `fallocate` has reserved it takes
    /// for data what somebody has read.
    fn is_left_open(&mut self, step: &Step) -> bool {
        let local = &self.local[step.mount];
        match &step.call {
            Call::Allocate { slot, how, .. } if !how.contains(FallocateFlags::PUNCH_HOLE) => {
                self.reserved.extend(local.inode(*slot));
                false
            }
            Call::Seek {
                slot,
                whence: Whence::Data | Whence::Hole,
                ..
            } => {
                let inode = local.inode(*slot);
                inode.is_some_and(|inode| self.reserved.contains(&inode))
            }
            _ => false,
        }
    }

    /// What is left open while several mounts write to a file: the position after an append, as another mount may have
    /// moved the end; and for how long others see the former time, but for a close.
    fn settle(&self, step: &Step) {
        let (slot, appends) = match &step.call {
            Call::Write { slot, .. } | Call::WriteMany { slot, .. } => (slot, true),
            Call::WriteAt { slot, .. } | Call::Store { slot, .. } => (slot, false),
            Call::Copy { to, .. } => (to, false),
            _ => return,
        };
        for place in [&self.local[step.mount], &self.mounts[step.mount]] {
            if appends {
                place.rewind_append(*slot);
            }
            place.close_another(*slot);
        }
    }

    /// Compares everything that one mount shows.
    fn compare(&mut self, mount: usize) -> Result<(), String> {
        let right = look(&self.local[mount], &mut self.local_clocks);
        let got = look(&self.mounts[mount], &mut self.clocks);
        match right == got {
            true => Ok(()),
            false => Err(differences(&right, &got)),
        }
    }
}

/// What differs, line by line.
fn differences(right: &View, got: &View) -> String {
    let mut text = String::new();
    let names = right.keys().chain(got.keys());
    let names: BTreeSet<_> = names.collect();
    let nothing = String::from("nothing");
    for name in names {
        let right = right.get(name).unwrap_or(&nothing);
        let got = got.get(name).unwrap_or(&nothing);
        if right != got {
            let _ = write!(text, "  {name}\n    right {right}\n    got   {got}\n");
        }
    }
    text
}

/// Makes the sequence of a seed; of one that fails a part that still does is told.
///
/// # Errors
///
/// What differed first, the steps that are left, and how they are made again.
pub(crate) fn explore(
    places: &Places,
    seed: u64,
    count: usize,
    kept: Option<&[usize]>,
) -> Result<(), String> {
    let mut steps = draw::steps(seed, count, places.mounts.len());
    steps.retain(|step| kept.is_none_or(|kept| kept.contains(&step.number)));
    let mut attempt = 0;
    let mut run = |steps: &[Step]| {
        attempt += 1;
        let name = format!("seed-{seed}-{attempt}");
        let ran = Pair::new(places, &name).run(steps);
        for parent in [&places.local, &places.mounts[0]] {
            std::fs::remove_dir_all(parent.join(&name)).expect("root can remove everything");
        }
        ran
    };
    let Err((at, first)) = run(&steps) else {
        return Ok(());
    };
    let end = (at + 1).min(steps.len());
    let shortest = shrink(&steps[..end], ATTEMPTS, |steps| run(steps).is_err());
    let last = match run(&shortest) {
        Err((_, told)) => told,
        Ok(()) => format!("nothing this time; the first time:\n{first}"),
    };
    let list: Vec<_> = shortest.iter().map(|step| format!("  {step:?}")).collect();
    let numbers: Vec<_> = shortest
        .iter()
        .map(|step| step.number.to_string())
        .collect();
    Err(format!(
        "seed {seed}:\n{}\n{last}\nagain: LUMEOFS_SEED_FIRST={seed} LUMEOFS_SEEDS=1 LUMEOFS_STEPS={count} LUMEOFS_KEPT={}",
        list.join("\n"),
        numbers.join(",")
    ))
}
