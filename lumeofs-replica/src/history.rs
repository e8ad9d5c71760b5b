//! Where each epoch begins in a member's history: what tells a lost operation from a kept one (D2).

use lumeofs_base::{Epoch, Fence, Sequence, Version};
use serde::{Deserialize, Serialize};

/// Epoch starts that are kept. An older epoch than all of them counts as one.
pub const EPOCH_STARTS_MAX: usize = 64;

/// What a member keeps on disk about a group beside its chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// First operation of each epoch that has one, in order.
    pub starts: Vec<(Epoch, Sequence)>,
    /// A catch-up began and did not end: chunks may be missing or older than the others, so this
    /// member must not lead after a restart of the whole group.
    pub torn: bool,
    /// It has been a member since the group was founded, or since a catch-up. Without, chunks are missing: the
    /// disk was emptied.
    pub member: bool,
    /// The newest fence heard of. It is true whatever becomes of the operation that told it.
    pub fence: Fence,
}

impl Note {
    /// Takes note of an operation that extends the history. True if the note changed.
    pub fn record(&mut self, version: Version) -> bool {
        if self
            .starts
            .last()
            .is_some_and(|(epoch, _)| *epoch >= version.epoch)
        {
            return false;
        }
        self.starts.push((version.epoch, version.sequence));
        if self.starts.len() > EPOCH_STARTS_MAX {
            self.starts.remove(0);
        }
        true
    }

    /// Whether a history that ends with `last` contains the operation `wanted`.
    pub fn contains(&self, last: Version, wanted: Version) -> bool {
        if wanted.sequence == Sequence(0) {
            return true;
        }
        if wanted.sequence > last.sequence {
            return false;
        }
        let next = self.starts.iter().find(|(epoch, _)| *epoch > wanted.epoch);
        let own = self.starts.iter().find(|(epoch, _)| *epoch == wanted.epoch);
        next.is_none_or(|(_, first)| wanted.sequence < *first)
            && own.is_none_or(|(_, first)| wanted.sequence >= *first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(epoch: u64, sequence: u64) -> Version {
        Version {
            epoch: Epoch(epoch),
            sequence: Sequence(sequence),
        }
    }

    #[test]
    fn an_operation_is_contained_up_to_the_start_of_the_next_epoch() {
        let mut note = Note::default();
        for (epoch, sequence) in [(1, 1), (1, 2), (4, 3), (4, 4)] {
            note.record(version(epoch, sequence));
        }
        let last = version(4, 4);
        assert!(note.contains(last, version(0, 0)));
        assert!(note.contains(last, version(1, 2)));
        assert!(note.contains(last, version(4, 3)));
        assert!(
            !note.contains(last, version(1, 3)),
            "lost before epoch 4 began"
        );
        assert!(!note.contains(last, version(4, 5)), "beyond the end");
        assert!(!note.contains(last, version(4, 2)), "another branch");
    }

    #[test]
    fn old_epochs_are_forgotten_safely() {
        let mut note = Note::default();
        for epoch in 1..=100 {
            note.record(version(epoch, epoch));
        }
        assert_eq!(note.starts.len(), EPOCH_STARTS_MAX);
        let last = version(100, 100);
        assert!(note.contains(last, version(2, 2)));
        assert!(!note.contains(last, version(2, 40)));
    }
}
