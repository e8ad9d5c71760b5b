//! Names of the simulated disk: the visible tree, the durable tree, and the operations in between.

use super::node::Fate;
use crate::rng::SplitMix64;
use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Identifies a file apart from its names.
pub(super) type NodeNumber = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    File(NodeNumber),
    Directory,
}

/// A change of names that no directory sync covered yet.
#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Create { path: PathBuf, entry: Entry },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
}

pub(super) type Names = BTreeMap<PathBuf, Entry>;

impl NameChange {
    fn touches(&self, directory: &Path) -> bool {
        match self {
            NameChange::Create { path, .. } | NameChange::Remove { path } => {
                path.parent() == Some(directory)
            }
            NameChange::Rename { from, to } => {
                from.parent() == Some(directory) || to.parent() == Some(directory)
            }
        }
    }

    /// Applies the change where it still can be: its source may have been lost in a crash.
    fn apply(&self, names: &mut Names) {
        match self {
            NameChange::Create { path, entry } => {
                names.insert(path.clone(), *entry);
            }
            NameChange::Rename { from, to } => {
                if let Some(entry) = names.remove(from) {
                    names.insert(to.clone(), entry);
                }
            }
            NameChange::Remove { path } => {
                names.remove(path);
            }
        }
    }
}

#[derive(Default)]
pub(super) struct Tree {
    pub(super) volatile: Names,
    pub(super) durable: Names,
    pub(super) unsynced: Vec<NameChange>,
}

impl Tree {
    pub(super) fn file(&self, path: &Path) -> io::Result<NodeNumber> {
        match self.volatile.get(path) {
            Some(Entry::File(number)) => Ok(*number),
            Some(Entry::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(not_found(path)),
        }
    }

    pub(super) fn require_directory(&self, path: &Path) -> io::Result<()> {
        match self.volatile.get(path) {
            Some(Entry::Directory) => Ok(()),
            None if path.as_os_str().is_empty() => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(not_found(path)),
        }
    }

    pub(super) fn require_parent(&self, path: &Path) -> io::Result<()> {
        self.require_directory(path.parent().unwrap_or(Path::new("")))
    }

    /// Makes a change. Unless `recorded`, not even a lucky crash keeps it.
    pub(super) fn change(&mut self, change: NameChange, recorded: bool) {
        change.apply(&mut self.volatile);
        if recorded {
            self.unsynced.push(change);
        }
    }

    pub(super) fn sync(&mut self, directory: &Path) {
        let durable = &mut self.durable;
        self.unsynced.retain(|change| {
            let synced = change.touches(directory);
            if synced {
                change.apply(durable);
            }
            !synced
        });
    }

    pub(super) fn list(&self, directory: &Path) -> Vec<PathBuf> {
        let children = self
            .volatile
            .keys()
            .filter(|path| path.parent() == Some(directory));
        children
            .filter_map(|path| path.file_name().map(PathBuf::from))
            .collect()
    }

    /// The names that a power cut leaves.
    pub(super) fn after_crash(&self, rng: &mut SplitMix64) -> Names {
        let mut names = self.durable.clone();
        let fate = Fate::draw(rng);
        for change in &self.unsynced {
            if fate.keeps(rng) {
                change.apply(&mut names);
            }
        }
        let orphans: Vec<_> = names
            .keys()
            .filter(|path| !is_reachable(&names, path))
            .cloned()
            .collect();
        for path in orphans {
            names.remove(&path);
        }
        names
    }

    /// Whether any name, lost or kept, may still lead to a file.
    pub(super) fn refers_to(&self, number: NodeNumber) -> bool {
        let wanted = Entry::File(number);
        self.volatile
            .values()
            .chain(self.durable.values())
            .any(|entry| *entry == wanted)
            || self.unsynced.iter().any(
                |change| matches!(change, NameChange::Create { entry, .. } if *entry == wanted),
            )
    }
}

fn is_reachable(names: &Names, path: &Path) -> bool {
    path.ancestors()
        .skip(1)
        .filter(|ancestor| !ancestor.as_os_str().is_empty())
        .all(|ancestor| names.get(ancestor) == Some(&Entry::Directory))
}

/// A path without `.` and root, as the key of a tree.
pub(super) fn normal(path: &Path) -> PathBuf {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect()
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("no such file: {}", path.display()),
    )
}
