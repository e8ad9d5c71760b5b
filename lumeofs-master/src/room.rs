//! Whether the own disk has room for more metadata.
//!
//! Raft cannot go on without a log, so the last of a disk is not for new files: with little left, the
//! leader refuses what makes the namespace grow with ENOSPC, and all else (reading, removing,
//! elections) goes on in the part that is kept. First, though, it lets a master lead that has room.

use crate::raft::Group;
use lumeofs_base::disk::Disk as _;
use lumeofs_base::disk::os::OsDisk;
use lumeofs_base::{Code, FsError, FsResult};
use lumeofs_meta::op::Mutation;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// Free space that is kept, if the disk is large.
const KEPT_BYTES: u64 = 256 << 20;
/// The part of a small disk that is kept.
const KEPT_PART: u64 = 16;

/// Room on the disk of a data directory.
#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<State>);

#[derive(Debug)]
struct State {
    directory: PathBuf,
    is_short: AtomicBool,
}

impl Room {
    /// Of this directory, as it is now.
    pub(crate) fn of(directory: &Path) -> Self {
        let room = Self(Arc::new(State {
            directory: directory.to_owned(),
            is_short: AtomicBool::new(false),
        }));
        room.look();
        room
    }

    /// Runs for ever: looks at the disk again and again, and tells the groups that live on it.
    pub(crate) async fn watch(self, groups: [Arc<Group>; 2]) {
        loop {
            sleep(LOOK).await;
            self.look();
            let short = self.0.is_short.load(Ordering::Relaxed);
            groups.iter().for_each(|group| group.set_short(short));
        }
    }

    /// Fails if there is no room for what a mutation adds.
    pub(crate) fn check(&self, mutation: &Mutation) -> FsResult<()> {
        if !self.is_short() || !grows(mutation) {
            return Ok(());
        }
        let text = format!(
            "the disk of the master's {} is nearly full",
            self.0.directory.display()
        );
        Err(FsError::new(Code::NoSpace, text))
    }

    /// Whether there is too little for new files.
    pub(crate) fn is_short(&self) -> bool {
        self.0.is_short.load(Ordering::Relaxed)
    }

    /// Bytes of the disk, bytes free, and whether these are too few for new files.
    pub(crate) fn space(&self) -> (u64, u64, bool) {
        let space = OsDisk::new(&self.0.directory).space(Path::new(""));
        let (total, free) = space.unwrap_or((0, 0));
        (total, free, self.is_short())
    }

    fn look(&self) {
        // A disk that cannot say it is none that is short; it fails where it is used.
        let Ok((total, free)) = OsDisk::new(&self.0.directory).space(Path::new("")) else {
            return;
        };
        let short = free < KEPT_BYTES.min(total / KEPT_PART);
        if self.0.is_short.swap(short, Ordering::Relaxed) == short {
            return;
        }
        let (directory, free_mib) = (self.0.directory.display(), free >> 20);
        if short {
            tracing::error!(%directory, free_mib, "disk nearly full: no new files until there is space");
        } else {
            tracing::info!(%directory, free_mib, "there is space again");
        }
    }
}

/// Whether a mutation needs space that removing things would give back. What goes with data that is
/// already written, such as a file's new size, is let through.
fn grows(mutation: &Mutation) -> bool {
    match mutation {
        Mutation::Create { .. }
        | Mutation::CreateUnnamed { .. }
        | Mutation::Link { .. }
        | Mutation::Restore { .. }
        | Mutation::SetXattr { .. }
        | Mutation::Allocate { .. }
        | Mutation::Append { .. }
        | Mutation::Reserve { .. }
        | Mutation::Lock { .. } => true,
        Mutation::Unlink { .. }
        | Mutation::Rmdir { .. }
        | Mutation::Rename { .. }
        | Mutation::SetAttr { .. }
        | Mutation::Access { .. }
        | Mutation::RemoveXattr { .. }
        | Mutation::Publish { .. }
        | Mutation::Extend { .. }
        | Mutation::CutTail { .. }
        | Mutation::Flush { .. }
        | Mutation::TailClean { .. }
        | Mutation::Unlock { .. }
        | Mutation::ReturnLocks { .. }
        | Mutation::EmptyTrash { .. }
        | Mutation::SetTrash { .. }
        // What its callers have been told is done; the answer says that no more is to come.
        | Mutation::Make { .. } => false,
    }
}
