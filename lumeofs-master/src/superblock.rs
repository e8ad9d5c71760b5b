//! The data directory's owner: one node of one cluster, and at most one process at a time.
//!
//! `superblock` is a text file of three lines (`format`, `cluster`, `node`). It is locked while the
//! process runs and checked at every start, so that neither a second process nor the directory of
//! another node can damage the logs.

use anyhow::{Context as _, Result, bail};
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
        std::fs::create_dir_all(dir)
            .with_context(|| format!("create data directory {}", dir.display()))?;
        let path = dir.join("superblock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        if file.try_lock().is_err() {
            bail!(
                "data directory {} is in use by another process",
                dir.display()
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
            file.write_all(mine.as_bytes())?;
            file.sync_all()?;
            File::open(dir)?.sync_all()?;
        } else if found != mine {
            bail!(
                "data directory {} belongs to something else:\n{found}but this process is:\n{mine}",
                dir.display()
            );
        }
        Ok(Self { _locked: file })
    }
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
        assert!(
            error.to_string().contains("belongs to something else"),
            "{error}"
        );
    }
}
