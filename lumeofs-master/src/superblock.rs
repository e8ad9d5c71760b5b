//! The data directory's owner: one node of one cluster, and at most one process at a time.
//!
//! `superblock` is a text file of three lines (`format`, `cluster`, `node`). It is locked while the
//! process runs and checked at every start, so that neither a second process nor the directory of
//! another node can damage the logs.

use anyhow::{Context as _, Result};
use lumeofs_base::{Code, FsError};
use lumeofs_proto::auth::Identity;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

/// Version of everything below the data directory.
const FORMAT: u32 = 1;

/// Proof that this process owns the data directory, as long as it lives.
#[derive(Debug)]
pub(crate) struct Superblock {
    _locked: File,
}

impl Superblock {
    /// Locks the directory, and marks it as this node's if it is new.
    pub(crate) fn open(dir: &Path, identity: &Identity) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|error| {
            FsError::from_disk(
                &error,
                format_args!("create data directory {}", dir.display()),
            )
        })?;
        let path = dir.join("superblock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| FsError::from_disk(&error, format_args!("open {}", path.display())))?;
        let refused = |code, text: String| {
            let text = format!("data directory {} {text}", dir.display());
            Err(FsError::new(code, text).into())
        };
        if file.try_lock().is_err() {
            return refused(
                Code::Busy,
                "is in use by another process: each needs its own".into(),
            );
        }
        let mine = format!(
            "format = {FORMAT}\ncluster = \"{}\"\nnode = {}\n",
            identity.credentials.cluster,
            identity.node.get()
        );
        let mut found = String::new();
        file.read_to_string(&mut found)
            .with_context(|| format!("read {}", path.display()))?;
        if found.is_empty() {
            let holds = |name: &str| dir.join(name).exists();
            if holds("chunks") {
                // This process made it just now.
                let _ = std::fs::remove_file(&path);
                return refused(
                    Code::Refused,
                    "is that of a datanode: give the master its own".into(),
                );
            }
            if holds("controller") || holds("metadata") {
                return refused(
                    Code::Invalid,
                    format!(
                        "has lost its superblock: if it is that of this node and cluster, write these \
                         lines to {} and start again: {}",
                        path.display(),
                        mine.trim_end().replace('\n', " | ")
                    ),
                );
            }
            file.write_all(mine.as_bytes())?;
            file.sync_all()?;
            File::open(dir)?.sync_all()?;
        } else if let Some(format) = foreign_format(&found) {
            return refused(
                Code::Invalid,
                format!(
                    "has format {format:?}, this program knows {FORMAT}: run the release that wrote it"
                ),
            );
        } else if found != mine {
            let line = |text: &str| {
                let lines = text.lines().skip(1).collect::<Vec<_>>();
                lines.join(", ").replace('"', "")
            };
            return refused(
                Code::Refused,
                format!(
                    "belongs to another ({}; this process is {}): point it at its own directory, with \
                     its own id and secret file",
                    line(&found),
                    line(&mine)
                ),
            );
        }
        Ok(Self { _locked: file })
    }
}

/// The format of a directory that this program does not know.
fn foreign_format(found: &str) -> Option<&str> {
    let first = found.lines().next().unwrap_or_default();
    let format = first.strip_prefix("format = ").unwrap_or(first);
    (format != FORMAT.to_string()).then_some(format)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::{NodeId, NodeKind};
    use lumeofs_proto::auth::Credentials;

    #[test]
    fn a_directory_belongs_to_one_node_and_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut identity = Identity {
            credentials: Credentials::generate(),
            node: NodeId(1),
            kind: NodeKind::Master,
        };
        let first = Superblock::open(dir.path(), &identity).unwrap();
        let error = Superblock::open(dir.path(), &identity).unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        drop(first);
        Superblock::open(dir.path(), &identity).unwrap();
        identity.node = NodeId(2);
        let error = Superblock::open(dir.path(), &identity).unwrap_err();
        assert!(error.to_string().contains("belongs to another"), "{error}");
        std::fs::write(dir.path().join("superblock"), "format = 9\n").unwrap();
        let error = Superblock::open(dir.path(), &identity).unwrap_err();
        assert!(error.to_string().contains("run the release"), "{error}");
    }
}
