//! The list of what was installed, so that it can be told from what somebody changed or brought.

use super::below;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Paths as the installed system sees them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct List {
    installed: BTreeMap<PathBuf, Entry>,
}

/// What was installed at a path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    /// A file with this CRC-32C.
    File(u32),
    /// A link to this path.
    Link(PathBuf),
    /// A directory that was not there before.
    Directory,
}

impl List {
    /// The list of a prefix; empty if nothing is installed.
    pub(super) fn load(root: &Path, list: &Path) -> anyhow::Result<Self> {
        let file = below(root, list);
        let text = match std::fs::read(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            text => text.with_context(|| format!("read {}", file.display()))?,
        };
        serde_json::from_slice(&text).with_context(|| format!("{}", file.display()))
    }

    /// As it is stored.
    pub(super) fn to_text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("paths that were given as text");
        text.push(b'\n');
        text
    }

    pub(super) fn is_empty(&self) -> bool {
        self.installed.is_empty()
    }

    pub(super) fn get(&self, path: &Path) -> Option<&Entry> {
        self.installed.get(path)
    }

    pub(super) fn insert(&mut self, path: &Path, entry: Entry) {
        self.installed.insert(path.to_owned(), entry);
    }

    pub(super) fn forget(&mut self, path: &Path) {
        self.installed.remove(path);
    }

    /// All, what is in a directory before the directory.
    pub(super) fn entries(&self) -> Vec<(PathBuf, Entry)> {
        let entries = self.installed.clone().into_iter();
        entries.rev().collect()
    }
}
