//! Steps of one program that goes from mount to mount: each answer must be that of a single copy.

use super::look;
use super::operations::{Held, Operation};
use super::shrink::shrink;
use crate::chaos::Random;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Attempts to shorten a list that failed.
const ATTEMPTS: u32 = 300;

/// A call through one of the mounts.
#[derive(Clone, Debug)]
pub struct Step {
    mount: usize,
    operation: Operation,
}

/// Draws steps that go through these mounts, by their numbers.
pub fn random_steps(random: &mut Random, count: usize, mounts: &[usize]) -> Vec<Step> {
    let step = |_| Step {
        mount: random.of(mounts),
        operation: Operation::random(random),
    };
    (0..count).map(step).collect()
}

/// A directory that several mounts share, and one on a local filesystem in which the same is done.
#[derive(Debug)]
pub struct Interleaving {
    local: PathBuf,
    shared: Vec<PathBuf>,
    /// What is open on each mount, and of what was done locally for it.
    held: Vec<(Held, Held)>,
    /// Local inodes whose time was set while a mount had written to them and not closed them: the time of that write is
    /// published later, and may take the place of the one that was set.
    uncertain: BTreeSet<u64>,
}

impl Interleaving {
    /// In new directories of this name.
    pub fn new(local: &Path, mounts: &[PathBuf], name: &str) -> Self {
        let (local, below) = (local.join(name), |mount: &PathBuf| mount.join(name));
        std::fs::create_dir(&local).expect("a local directory");
        let shared: Vec<_> = mounts.iter().map(below).collect();
        // Mounts show the first one's; directories that are not shared, in tests of this file, are made each.
        for directory in &shared {
            match std::fs::create_dir(directory) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    panic!("{}: {error}", directory.display())
                }
                _ => {}
            }
        }
        let held = shared.iter().map(|_| Default::default()).collect();
        Self {
            local,
            shared,
            held,
            uncertain: BTreeSet::new(),
        }
    }

    /// Makes the steps, up to the first whose answer is wrong.
    ///
    /// # Errors
    ///
    /// Its number, the step, the right answer and the wrong one.
    pub fn run(&mut self, steps: &[Step]) -> Result<(), (usize, String)> {
        for (at, step) in steps.iter().enumerate() {
            let (held, held_locally) = &mut self.held[step.mount];
            let mut right = step.operation.apply(&self.local, held_locally);
            let got = step.operation.apply(&self.shared[step.mount], held);
            if !self.time_is_certain(&step.operation) {
                right.mtime = None;
            }
            if !right.allows(&got) {
                let told = format!("step {at} {step:?}\n  right {right:?}\n  got   {got:?}");
                return Err((at, told));
            }
        }
        Ok(())
    }

    /// Whether a time that a call shows is the right one. Notes times that are set.
    fn time_is_certain(&mut self, operation: &Operation) -> bool {
        let stat = operation
            .path_of_time()
            .and_then(|path| rustix::fs::lstat(self.local.join(path)).ok());
        let Some(inode) = stat.map(|stat| stat.st_ino) else {
            return true;
        };
        if operation.sets_time() {
            let mut held = self.held.iter();
            if held.any(|(_, locally)| locally.has_written(inode)) {
                self.uncertain.insert(inode);
            } else {
                self.uncertain.remove(&inode);
            }
        }
        !self.uncertain.contains(&inode)
    }

    /// Compares everything that one mount shows.
    ///
    /// # Errors
    ///
    /// `Err(None)`: a call failed, so nothing can be said. Else what differs.
    pub fn compare(&self, mount: usize) -> Result<(), Option<String>> {
        let right = look::tree(&self.local).expect("the local directory can be read");
        let got = look::tree(&self.shared[mount]).map_err(|_| None)?;
        if right == got {
            return Ok(());
        }
        Err(Some(format!(
            "mount {mount} shows\n{got}instead of\n{right}"
        )))
    }

    /// Syncs every file through a mount and closes what is open: whatever happens to the mount now, nothing is lost.
    ///
    /// # Errors
    ///
    /// Of the first call that failed.
    pub fn quiesce(&mut self, mount: usize) -> std::io::Result<()> {
        let mut left = vec![self.shared[mount].clone()];
        while let Some(directory) = left.pop() {
            for entry in std::fs::read_dir(directory)? {
                let (path, kind) =
                    entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
                if kind.is_dir() {
                    left.push(path);
                } else if kind.is_file() {
                    std::fs::File::open(path)?.sync_all()?;
                }
            }
        }
        self.held[mount].0.clear();
        self.held[mount].1.clear();
        Ok(())
    }

    /// Draws steps from a seed and makes them; what fails is shortened and told with its seed.
    ///
    /// # Errors
    ///
    /// The shortest list of steps that was found to fail.
    pub fn explore(
        local: &Path,
        mounts: &[PathBuf],
        seed: u64,
        count: usize,
    ) -> Result<(), String> {
        let all: Vec<_> = (0..mounts.len()).collect();
        let steps = random_steps(&mut Random::new(seed), count, &all);
        let mut attempt = 0;
        let mut try_them = |steps: &[Step]| {
            attempt += 1;
            let name = format!("seed-{seed}-{}-mounts-{attempt}", mounts.len());
            let mut interleaving = Self::new(local, mounts, &name);
            interleaving.run(steps)?;
            for mount in 0..mounts.len() {
                let compared = interleaving.compare(mount);
                compared.map_err(|told| (steps.len(), told.unwrap_or("an error".into())))?;
            }
            Ok(())
        };
        let Err((at, first)) = try_them(&steps) else {
            return Ok(());
        };
        let end = (at + 1).min(steps.len());
        let shortest = shrink(&steps[..end], ATTEMPTS, |steps| try_them(steps).is_err());
        let list: Vec<_> = shortest.iter().map(|step| format!("  {step:?}")).collect();
        let list = list.join("\n");
        Err(format!(
            "seed {seed}: {first}\nshortest list that fails:\n{list}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::temporary;

    fn directories(names: &[&str]) -> (tempfile::TempDir, Vec<PathBuf>) {
        let directory = temporary();
        let paths: Vec<_> = names
            .iter()
            .map(|name| directory.path().join(name))
            .collect();
        for path in &paths {
            std::fs::create_dir_all(path).unwrap();
        }
        (directory, paths)
    }

    #[test]
    fn two_ways_to_one_local_directory_are_coherent() {
        let (_guard, paths) = directories(&["local", "shared"]);
        let mounts = [paths[1].clone(), paths[1].clone()];
        for seed in 0..4 {
            Interleaving::explore(&paths[0], &mounts, seed, 2000).unwrap();
        }
    }

    #[test]
    fn a_mount_that_sees_nothing_of_the_other_is_found_with_two_steps() {
        let (_guard, paths) = directories(&["local", "one", "other"]);
        let told = Interleaving::explore(&paths[0], &paths[1..], 1, 2000).unwrap_err();
        let (_, list) = told.split_once("fails:\n").unwrap();
        assert!((1..=2).contains(&list.lines().count()), "{told}");
    }
}
