//! Changes that were applied: who must hear of them.

use super::{Table, Unheard};
use crate::wire::{Grant, Kind, What};
use lumeofs_base::{Attr, FileKind, InodeId, SessionId};
use lumeofs_meta::change::{Applied, Change};
use lumeofs_meta::namespace;
use lumeofs_meta::op::{Command, Mutation, Reply, Step};
use lumeofs_meta::tables::Tables;
use std::time::Duration;

/// What a change led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// What the reply waits for: it shows besides what others have changed there before.
    pub unheard: Unheard,
    /// A number for the reply, among those of grants and recalls.
    pub number: u64,
    /// What the reply grants.
    pub grants: Vec<Grant>,
    /// Inodes without a name that may be open at the changer, since it has a lease by which it would open them without a
    /// word. They count as open there until it says otherwise.
    pub opened: Vec<InodeId>,
}

/// What a command has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created<'a> {
    /// Nothing that its session gets a lease on.
    Nothing,
    /// This.
    Now {
        /// It.
        attr: &'a Attr,
        /// The directory above the one that it was made in.
        above: Option<InodeId>,
    },
    /// These, which its session had in its memory.
    Ahead(Vec<InodeId>),
}

impl<'a> Created<'a> {
    /// What this command has made, of which the tables know.
    pub fn by(command: &Command, applied: &'a Applied, tables: &impl Tables) -> Self {
        let Command::Mutate { mutation, .. } = command else {
            return Self::Nothing;
        };
        match (mutation, &applied.outcome) {
            // It was granted then.
            _ if applied.repeated => Self::Nothing,
            (
                Mutation::Create { .. } | Mutation::CreateUnnamed { .. },
                Ok(Reply::Created {
                    attr,
                    created: true,
                    ..
                }),
            ) => Self::Now {
                attr,
                above: parent_of(attr.ino, &applied.changes)
                    .and_then(|dir| namespace::parent(tables, dir)),
            },
            (Mutation::Make { steps }, Ok(Reply::Made(made))) => {
                let made = steps.iter().zip(made).filter(|(_, made)| made.is_ok());
                let made = made.filter_map(|(step, _)| match step {
                    Step::Make(object) => Some(object.ino),
                    Step::Set { .. } => None,
                });
                Self::Ahead(made.collect())
            }
            _ => Self::Nothing,
        }
    }
}

impl Table {
    /// Takes a command of this leadership that is being applied: what it changed, and what it made, if anything.
    pub fn changed(
        &mut self,
        now: Duration,
        session: SessionId,
        changes: &[Change],
        created: &Created<'_>,
    ) -> Changed {
        let mut opened = Vec::new();
        let is_alone = self.is_alone(session, changes);
        for change in changes {
            self.recall_change(now, session, change, is_alone);
            if let Change::Attr(attr) = change
                && attr.nlink == 0
                && self.has_lease(session, attr.ino)
            {
                opened.push(attr.ino);
            }
        }
        self.last += 1;
        let number = self.last;
        let mut grants = Vec::new();
        match created {
            Created::Nothing => {}
            Created::Now { attr, above } => {
                let parent = parent_of(attr.ino, changes);
                let is_alone = parent.is_some_and(|ino| !self.is_changed_by_another(session, ino));
                // Of the directory that it was made in too.
                let is_alone_above =
                    above.is_some_and(|ino| !self.is_changed_by_another(session, ino));
                grants.extend(match attr.kind {
                    FileKind::Regular => self.grant_created(now, session, attr.ino),
                    // Else somebody may be about to remove it.
                    FileKind::Directory if is_alone => self.grant_created(now, session, attr.ino),
                    _ => self.grant_shared(now, session, attr.ino),
                });
                let parent = parent.filter(|_| is_alone_above);
                grants.extend(parent.and_then(|ino| self.grant_parent(now, session, ino)));
            }
            Created::Ahead(inodes) => {
                let inodes = inodes.iter();
                grants.extend(inodes.filter_map(|ino| self.grant_made(now, session, *ino)));
            }
        }
        Changed {
            unheard: self.unheard_of(changes.iter().map(Change::ino)),
            number,
            grants,
            opened,
        }
    }

    /// Whether at most one other session has leases on what was changed, and all others have heard of everything before.
    fn is_alone(&self, changer: SessionId, changes: &[Change]) -> bool {
        let leases = changes
            .iter()
            .filter_map(|change| self.inodes.get(&change.ino()));
        let holders = leases.flat_map(|leases| &leases.held);
        let mut others = holders
            .map(|lease| lease.session)
            .filter(|session| *session != changer);
        let other = others.next();
        let standing = other.and_then(|other| self.sessions.get(&other));
        others.all(|another| Some(another) == other)
            && self.telling.len() == standing.map_or(0, |standing| standing.telling)
    }

    fn recall_change(
        &mut self,
        now: Duration,
        changer: SessionId,
        change: &Change,
        is_alone: bool,
    ) {
        let ino = change.ino();
        let Some(leases) = self.inodes.get(&ino) else {
            return;
        };
        let others: Vec<(SessionId, Kind)> = leases
            .held
            .iter()
            .filter(|lease| lease.session != changer)
            .map(|lease| (lease.session, lease.kind))
            .collect();
        for (session, kind) in others {
            let what = match change {
                // Who writes through keeps no attributes, but may have the file open.
                Change::Attr(attr) if kind == Kind::Through && attr.nlink > 0 => continue,
                Change::Attr(attr) => What::Attr(attr.clone()),
                Change::Name { name, entry, .. } => What::Name {
                    name: name.clone(),
                    entry: entry.clone(),
                },
                Change::Xattr { .. } => What::Xattr,
                Change::Gone { .. } => What::Drop,
            };
            if !what.takes() && !self.takes_part(session) {
                // It begins anew, and asks before it shows anything.
                continue;
            }
            self.recall(now, session, ino, what, is_alone);
        }
    }

    /// The exclusive right on the directory in which something was made, if its maker is alone there: what comes next it
    /// makes in its memory.
    fn grant_parent(
        &mut self,
        now: Duration,
        session: SessionId,
        parent: InodeId,
    ) -> Option<Grant> {
        let leases = self.inodes.get(&parent)?;
        let is_alone = leases.held.iter().all(|lease| lease.session == session)
            && leases.changers.iter().all(|changer| *changer == session)
            && leases.taking.is_empty()
            && leases.telling.is_empty();
        let is_free = is_alone && now >= leases.contended_until && self.window.is_none();
        (is_free && self.has_lease(session, parent) && self.takes_part(session))
            .then(|| self.enter(now, session, parent, Kind::Exclusive))
    }

    /// The right on what a session has made in its memory, and has all the while used under it.
    fn grant_made(&mut self, now: Duration, session: SessionId, ino: InodeId) -> Option<Grant> {
        self.sessions
            .contains_key(&session)
            .then(|| self.enter(now, session, ino, Kind::Exclusive))
    }

    /// A right on something that nobody else can know yet.
    fn grant_created(&mut self, now: Duration, session: SessionId, ino: InodeId) -> Option<Grant> {
        self.generation(session)?;
        self.has_room(session)
            .then(|| self.enter(now, session, ino, Kind::Exclusive))
    }
}

/// The directory in which something was made.
fn parent_of(made: InodeId, changes: &[Change]) -> Option<InodeId> {
    changes.iter().find_map(|change| match change {
        Change::Name {
            parent,
            entry: Some(entry),
            ..
        } if entry.ino == made => Some(*parent),
        _ => None,
    })
}
