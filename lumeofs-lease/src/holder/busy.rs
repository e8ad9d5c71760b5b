//! What mutations of this session that are under way may touch: it is not answered from memory.
//!
//! Others see the effects of a mutation as soon as it is applied, this session when the reply is here. A mutation also
//! touches the inode that a name means, which may be in memory by another name. If that is not known, every inode is
//! taken to be touched.

use super::Cached;
use lumeofs_base::InodeId;
use std::collections::HashMap;

/// What a mutation may touch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Touch {
    /// A name in a directory, that, and the inode that the name means.
    Name(InodeId, Vec<u8>),
    /// An inode.
    Inode(InodeId),
}

/// What is busy, and how many mutations touch it.
#[derive(Debug, Default)]
pub(super) struct Busy {
    names: HashMap<(InodeId, Vec<u8>), Name>,
    inodes: HashMap<InodeId, usize>,
    /// Names of which it is not known what they mean.
    unresolved: usize,
}

#[derive(Debug, Default)]
struct Name {
    count: usize,
    /// What it has meant since.
    targets: Vec<InodeId>,
    is_unresolved: bool,
}

impl Busy {
    /// A mutation begins; if it touches a name, that means `target`.
    pub(super) fn begin(&mut self, touch: &Touch, target: Cached<InodeId>) {
        match touch {
            Touch::Inode(ino) => *self.inodes.entry(*ino).or_default() += 1,
            Touch::Name(parent, name) => {
                *self.inodes.entry(*parent).or_default() += 1;
                let key = (*parent, name.clone());
                self.names.entry(key).or_default().count += 1;
                match target {
                    Cached::Is(ino) => self.resolve(*parent, name, Some(ino)),
                    Cached::Absent => {}
                    Cached::Unknown => self.unresolve_if(|other| other == (*parent, name)),
                }
            }
        }
    }

    /// A mutation is over.
    pub(super) fn end(&mut self, touch: &Touch) {
        let ino = match touch {
            Touch::Inode(ino) => *ino,
            Touch::Name(parent, name) => {
                self.end_name(*parent, name);
                *parent
            }
        };
        self.let_go(ino);
    }

    fn end_name(&mut self, parent: InodeId, name: &[u8]) {
        let key = (parent, name.to_vec());
        let Some(busy) = self.names.get_mut(&key) else {
            return;
        };
        busy.count -= 1;
        if busy.count > 0 {
            return;
        }
        let busy = self.names.remove(&key).expect("it was just there");
        self.unresolved -= usize::from(busy.is_unresolved);
        for ino in busy.targets {
            self.let_go(ino);
        }
    }

    fn let_go(&mut self, ino: InodeId) {
        if let Some(count) = self.inodes.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                self.inodes.remove(&ino);
            }
        }
    }

    /// A name means something else from now on. If it is busy, so is that.
    pub(super) fn resolve(&mut self, parent: InodeId, name: &[u8], to: Option<InodeId>) {
        if self.names.is_empty() {
            return;
        }
        let busy = self.names.get_mut(&(parent, name.to_vec()));
        if let (Some(busy), Some(ino)) = (busy, to)
            && !busy.targets.contains(&ino)
        {
            busy.targets.push(ino);
            *self.inodes.entry(ino).or_default() += 1;
        }
    }

    /// It is not heard any more what the names in a directory mean.
    pub(super) fn unresolve(&mut self, parent: InodeId) {
        self.unresolve_if(|(other, _)| other == parent);
    }

    /// The same of all directories.
    pub(super) fn unresolve_all(&mut self) {
        self.unresolve_if(|_| true);
    }

    fn unresolve_if(&mut self, is_meant: impl Fn((InodeId, &[u8])) -> bool) {
        for ((parent, name), busy) in &mut self.names {
            if is_meant((*parent, name)) && !std::mem::replace(&mut busy.is_unresolved, true) {
                self.unresolved += 1;
            }
        }
    }

    pub(super) fn has_name(&self, parent: InodeId, name: &[u8]) -> bool {
        // Mostly there is none, and a key would have to be made.
        !self.names.is_empty() && self.names.contains_key(&(parent, name.to_vec()))
    }

    pub(super) fn has_inode(&self, ino: InodeId) -> bool {
        self.unresolved > 0 || self.inodes.contains_key(&ino)
    }
}
