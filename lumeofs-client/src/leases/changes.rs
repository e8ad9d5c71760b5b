//! Mutations of this client, as its memory sees them: from before one is sent until its effects are known, nothing that it may
//! touch is answered from memory. Else another mount could see the change before this one's cache does.

use super::answers::Answer;
use crate::link::Link;
use crate::wait::{Patience, now};
use lumeofs_base::{FsResult, InodeId, SessionId};
use lumeofs_lease::{Holder, Touch};
use lumeofs_meta::op::{Mutation, Outcome, Reply};

/// A mutation that may be under way. When dropped, it has had no effect, or its effects were taken.
pub(crate) struct Changing<'a> {
    link: &'a Link,
    touches: Vec<Touch>,
}

impl Link {
    /// Begins a mutation of an inode, when the leader knows what it is about.
    pub(crate) fn begin_change(
        &self,
        patience: &Patience<'_>,
        ino: InodeId,
        mutation: &Mutation,
    ) -> FsResult<Changing<'_>> {
        let touches = touches(mutation);
        let named = match mutation {
            // By who tells the leader.
            Mutation::Make { .. } | Mutation::Reserve { .. } => Vec::new(),
            Mutation::Access { accesses } => accesses.iter().map(|access| access.ino).collect(),
            _ => vec![ino],
        };
        let is_ahead = |holder: &Holder| {
            let mut touches = touches.iter();
            named.iter().any(|ino| holder.is_ahead_in(*ino))
                || touches.any(|touch| holder.is_ahead_of(touch))
        };
        self.when_told(patience, is_ahead, |holder| holder.begin_change(&touches))?;
        Ok(Changing {
            link: self,
            touches,
        })
    }
}

impl<'a> Changing<'a> {
    /// Leaves it to [`Changing::taken_over`], without a gap.
    pub(super) fn leave(mut self) -> Vec<Touch> {
        // What is dropped then ends nothing.
        std::mem::take(&mut self.touches)
    }

    /// Goes on with what [`Changing::leave`] left.
    pub(super) fn taken_over(link: &'a Link, touches: Vec<Touch>) -> Self {
        Self { link, touches }
    }

    /// Takes what the mutation did under a session.
    pub(crate) fn did(&self, session: SessionId, answer: &Answer) {
        let (generation, number) = (answer.generation, answer.number);
        self.link.with_leases(|state| {
            if state.session != session {
                return;
            }
            let holder = &mut state.holder;
            match &answer.changes {
                Some(changes) => {
                    holder.did(now(), generation, number, changes, &answer.grants);
                }
                // It was done by an attempt whose reply was lost.
                None => holder.doubt(generation, number, &self.inodes(&answer.outcome)),
            }
            if let Ok(Reply::Created {
                attr,
                created: true,
                ..
            }) = &answer.outcome
            {
                holder.made(attr.ino);
            }
        });
    }

    /// All that it changed, as far as it had this outcome: also what its names meant.
    fn inodes(&self, outcome: &Outcome) -> Vec<InodeId> {
        let inodes = self.touches.iter().map(|touch| match touch {
            Touch::Name(ino, _) | Touch::Inode(ino) => *ino,
        });
        let mut inodes: Vec<_> = inodes.collect();
        match outcome {
            Ok(Reply::Attr(attr) | Reply::Created { attr, .. } | Reply::Removed { attr }) => {
                inodes.push(attr.ino);
            }
            Ok(Reply::Renamed { attr, other }) => {
                inodes.push(attr.ino);
                inodes.extend(other.as_ref().map(|other| other.ino));
            }
            _ => {}
        }
        inodes
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if !self.touches.is_empty() {
            let touches = &self.touches;
            self.link
                .with_leases(|state| state.holder.end_change(touches));
        }
    }
}

/// The names in directories and the inodes that a mutation is about.
fn touches(mutation: &Mutation) -> Vec<Touch> {
    match mutation {
        Mutation::Create { parent, name, .. }
        | Mutation::Unlink { parent, name }
        | Mutation::Rmdir { parent, name } => vec![Touch::Name(*parent, name.clone())],
        Mutation::Link { ino, parent, name } | Mutation::Restore { ino, parent, name } => {
            vec![Touch::Name(*parent, name.clone()), Touch::Inode(*ino)]
        }
        Mutation::Rename {
            parent,
            name,
            new_parent,
            new_name,
            ..
        } => vec![
            Touch::Name(*parent, name.clone()),
            Touch::Name(*new_parent, new_name.clone()),
        ],
        Mutation::SetAttr { ino, .. }
        | Mutation::SetXattr { ino, .. }
        | Mutation::RemoveXattr { ino, .. }
        | Mutation::Allocate { ino, .. }
        | Mutation::Publish { ino, .. }
        | Mutation::Append { ino, .. }
        | Mutation::TailClean { ino, .. }
        | Mutation::Extend { ino, .. }
        | Mutation::Flush { ino, .. }
        | Mutation::CutTail { ino } => vec![Touch::Inode(*ino)],
        // Nothing that is in memory depends on locks, nor on what nobody else knows yet.
        Mutation::Make { .. }
        | Mutation::Reserve { .. }
        | Mutation::CreateUnnamed { .. }
        // This client shows these times already.
        | Mutation::Access { .. }
        | Mutation::Lock { .. }
        | Mutation::Unlock { .. }
        | Mutation::ReturnLocks { .. }
        // Who has it open has heard that it has no name, and that stays so.
        | Mutation::EmptyTrash { .. }
        | Mutation::SetTrash { .. } => Vec::new(),
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
        let names = [
            Touch::Name(InodeId(1), b"a".to_vec()),
            Touch::Name(InodeId(2), b"b".to_vec()),
        ];
        assert_eq!(touches(&rename), names);
    }
}
