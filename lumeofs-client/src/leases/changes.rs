//! Mutations of this client, as its memory sees them: from before one is sent until its effects are known, nothing that it may
//! touch is answered from memory. Else another mount could see the change before this one's cache does.

use super::answers::Answer;
use crate::link::{Asker, Link};
use crate::wait::now;
use lumeofs_base::{Attr, FsResult, InodeId, SessionId};
use lumeofs_lease::{Cached, Touch};
use lumeofs_meta::change::Change;
use lumeofs_meta::op::{Mutation, Query, Reply};

/// What a mutation under way may touch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    touches: Vec<Touch>,
    /// It may touch anything.
    unclear: bool,
}

/// A mutation that may be under way. When dropped, it has had no effect, or its effects were taken.
pub(crate) struct Changing<'a> {
    link: &'a Link,
    touched: Touched,
}

impl Link {
    /// Begins a mutation. What it names must be known by its inode, and an open file that may lose its last name by
    /// the leader: so this may ask.
    pub(crate) fn begin_change(
        &self,
        asker: &Asker<'_>,
        mutation: &Mutation,
    ) -> FsResult<Changing<'_>> {
        let (names, inodes) = named(mutation);
        let mut touched = Touched::default();
        touched.touches.extend(inodes.into_iter().map(Touch::Inode));
        let loses_names = matches!(
            mutation,
            Mutation::Unlink { .. } | Mutation::Rmdir { .. } | Mutation::Rename { .. }
        );
        let mut losing = Vec::new();
        for (parent, name) in names {
            if loses_names {
                match self.meaning(asker, parent, name) {
                    Some(Some(ino)) => {
                        touched.touches.push(Touch::Inode(ino));
                        losing.push(ino);
                    }
                    Some(None) => {}
                    None => touched.unclear = true,
                }
            }
            touched.touches.push(Touch::Name(parent, name.to_vec()));
        }
        self.with_leases(|state| {
            state.holder.begin_change(&touched.touches);
            state.unclear += usize::from(touched.unclear);
        });
        let changing = Changing::taken_over(self, touched);
        // From now on nobody opens it without a word.
        for ino in losing {
            self.state_open(asker, ino)?;
        }
        Ok(changing)
    }

    /// What a name means, if that is known: `Some(None)` is nothing.
    fn meaning(&self, asker: &Asker<'_>, parent: InodeId, name: &[u8]) -> Option<Option<InodeId>> {
        match self.with_leases(|state| state.holder.lookup(now(), parent, name)) {
            Cached::Is(attr) => return Some(Some(attr.ino)),
            Cached::Absent => return Some(None),
            Cached::Unknown => {}
        }
        let name = name.to_vec();
        let query = Query::Lookup { parent, name };
        match self.ask(&asker.trusted(), parent, &query) {
            Ok(Reply::Attr(attr)) => Some(Some(attr.ino)),
            _ => None,
        }
    }
}

impl Changing<'_> {
    /// Takes what the mutation did under a session.
    pub(crate) fn did(&self, session: SessionId, answer: &Answer) {
        let orphans = self.link.with_leases(|state| {
            if state.session != session {
                return Vec::new();
            }
            let (generation, number) = (answer.generation, answer.number);
            let holder = &mut state.holder;
            match (&answer.changes, &answer.outcome) {
                (Some(changes), _) => {
                    holder.did(now(), generation, number, changes, &answer.grants);
                    changes.iter().filter_map(orphan).collect()
                }
                // Done by an attempt whose reply was lost.
                (None, Ok(_)) => {
                    holder.doubt(generation, number, &self.touched.inodes());
                    self.touched.inodes()
                }
                // Nothing has changed.
                (None, Err(_)) => Vec::new(),
            }
        });
        self.link.state_orphans(&orphans);
        self.link.leases.changed.notify_all();
    }

    /// Leaves it to [`Changing::taken_over`], without a gap.
    pub(super) fn leave(mut self) -> Touched {
        let touched = std::mem::take(&mut self.touched);
        // What is dropped now ends nothing.
        drop(self);
        touched
    }
}

impl<'a> Changing<'a> {
    /// Goes on with what [`Changing::leave`] left.
    pub(super) fn taken_over(link: &'a Link, touched: Touched) -> Self {
        Self { link, touched }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.link.with_leases(|state| {
            state.holder.end_change(&self.touched.touches);
            state.unclear -= usize::from(self.touched.unclear);
        });
    }
}

impl Touched {
    fn inodes(&self) -> Vec<InodeId> {
        let inodes = self.touches.iter().map(|touch| match touch {
            Touch::Name(ino, _) | Touch::Inode(ino) => *ino,
        });
        inodes.collect()
    }
}

/// An inode that has lost its last name.
fn orphan(change: &Change) -> Option<InodeId> {
    match change {
        Change::Attr(Attr { ino, nlink: 0, .. }) => Some(*ino),
        Change::Attr(_) | Change::Name { .. } | Change::Xattr { .. } | Change::Gone { .. } => None,
    }
}

/// The names in directories and the inodes that a mutation is about.
fn named(mutation: &Mutation) -> (Vec<(InodeId, &[u8])>, Vec<InodeId>) {
    match mutation {
        Mutation::Create { parent, name, .. }
        | Mutation::Unlink { parent, name }
        | Mutation::Rmdir { parent, name } => (vec![(*parent, name)], vec![]),
        Mutation::Link { ino, parent, name } => (vec![(*parent, name)], vec![*ino]),
        Mutation::Rename {
            parent,
            name,
            new_parent,
            new_name,
            ..
        } => (vec![(*parent, name), (*new_parent, new_name)], vec![]),
        Mutation::SetAttr { ino, .. }
        | Mutation::SetXattr { ino, .. }
        | Mutation::RemoveXattr { ino, .. }
        | Mutation::Allocate { ino, .. }
        | Mutation::Publish { ino, .. }
        | Mutation::Append { ino, .. }
        | Mutation::TailClean { ino, .. }
        | Mutation::Extend { ino, .. }
        | Mutation::Flush { ino, .. }
        | Mutation::CutTail { ino } => (vec![], vec![*ino]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_meta::op::RenameMode;

    #[test]
    fn a_rename_is_about_two_names() {
        let rename = Mutation::Rename {
            parent: InodeId(1),
            name: b"a".to_vec(),
            new_parent: InodeId(2),
            new_name: b"b".to_vec(),
            mode: RenameMode::Replace,
        };
        let (names, inodes) = named(&rename);
        assert_eq!(names, [(InodeId(1), &b"a"[..]), (InodeId(2), &b"b"[..])]);
        assert!(inodes.is_empty());
    }
}
