//! What operations there are, and how often.

use crate::data::BLOCKS;
use crate::world::World;
use lumeofs_base::{FileKind, InodeId, Timestamp};
use lumeofs_lease::Touch;
use lumeofs_meta::op::{Mutation, NewNode, RenameMode, SetAttr, SetTime, XattrMode};

pub(crate) const NAMES: &[&[u8]] = &[b"a", b"b", b"c", b"d", b"e", b"f"];
/// So many inodes may be made at once, and another one each second.
const INODES_MIN: usize = 8;

#[derive(Clone, Debug)]
pub(crate) enum Plan {
    Lookup {
        parent: InodeId,
        name: Vec<u8>,
    },
    Attr {
        ino: InodeId,
    },
    /// A page after the last one, until there is none.
    List {
        dir: InodeId,
        after: u64,
        count: usize,
    },
    Xattr {
        ino: InodeId,
    },
    Mutate {
        mutation: Mutation,
    },
    Read {
        ino: InodeId,
        block: u8,
    },
    Write {
        ino: InodeId,
        block: u8,
        value: u64,
        time: Timestamp,
    },
    Sync {
        ino: InodeId,
    },
}

impl Plan {
    /// What it writes, one operation of a mount at a time.
    pub(super) fn locks(&self) -> Option<InodeId> {
        match self {
            Self::Write { ino, .. } => Some(*ino),
            Self::Mutate {
                mutation: Mutation::SetAttr { ino, .. },
            } => Some(*ino),
            _ => None,
        }
    }
}

/// What a mutation may touch.
pub(super) fn touches(mutation: &Mutation) -> Vec<Touch> {
    match mutation {
        Mutation::Create { parent, name, .. }
        | Mutation::Unlink { parent, name }
        | Mutation::Rmdir { parent, name } => vec![Touch::Name(*parent, name.clone())],
        Mutation::Link { ino, parent, name } => {
            vec![Touch::Inode(*ino), Touch::Name(*parent, name.clone())]
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
        Mutation::SetAttr { ino, .. } | Mutation::SetXattr { ino, .. } => vec![Touch::Inode(*ino)],
        // Nobody else sees the file before it is given back.
        _ => Vec::new(),
    }
}

impl World {
    fn pick(&mut self, mount: usize, is_wanted: impl Fn(FileKind) -> bool) -> InodeId {
        // Of what was made and not told nobody else can know.
        let made = &self.mounts[mount].making.made;
        let made: Vec<InodeId> = made
            .iter()
            .filter(|(_, kind)| is_wanted(**kind))
            .map(|(ino, _)| *ino)
            .collect();
        if !made.is_empty() && self.rng.percent(20) {
            return made[self.rng.below(made.len() as u64) as usize];
        }
        let wanted = self.inodes.iter().filter(|(_, kind)| is_wanted(**kind));
        let wanted: Vec<InodeId> = wanted.map(|(ino, _)| *ino).collect();
        // Mostly the same few.
        let (from, bound) = match self.rng.below(100) {
            0..=59 => (0, wanted.len().min(3)),
            60..=79 => (wanted.len().saturating_sub(6), wanted.len().min(6)),
            _ => (0, wanted.len()),
        };
        wanted[from + self.rng.below(bound as u64) as usize]
    }

    fn pick_name(&mut self, mount: usize) -> (InodeId, Vec<u8>) {
        let dir = self.pick(mount, |kind| kind == FileKind::Directory);
        let name = NAMES[self.rng.below(NAMES.len() as u64) as usize];
        (dir, name.to_vec())
    }

    pub(super) fn plan(&mut self, mount: usize) -> Plan {
        let file = self.pick(mount, |kind| kind == FileKind::Regular);
        let any = self.pick(mount, |_| true);
        let (dir, name) = self.pick_name(mount);
        // Mostly its own.
        let whose = match self.rng.percent(80) {
            true => mount,
            false => self.rng.below(self.mounts.len() as u64) as usize,
        };
        if let Some(home) = self.mounts[whose].making.home
            && (whose == mount || self.inodes.contains_key(&home))
            && self.rng.percent(40)
        {
            return self.plan_at(home, name);
        }
        let block = self.rng.below(u64::from(BLOCKS)) as u8;
        match self.rng.below(100) {
            0..=17 => Plan::Lookup { parent: dir, name },
            18..=30 => Plan::Attr { ino: any },
            31..=40 => Plan::List {
                dir,
                after: 0,
                count: if self.rng.percent(50) { 2 } else { 100 },
            },
            41..=45 => Plan::Xattr { ino: any },
            46..=62 => Plan::Read { ino: file, block },
            63..=76 => {
                let time = self.unique_time();
                Plan::Write {
                    ino: file,
                    block,
                    value: crate::history::number_of(time),
                    time,
                }
            }
            77..=79 => Plan::Sync { ino: file },
            _ => Plan::Mutate {
                mutation: self.plan_mutation(mount, (file, any), dir, name),
            },
        }
    }

    /// What is done in a directory that was made lately.
    fn plan_at(&mut self, dir: InodeId, name: Vec<u8>) -> Plan {
        match self.rng.below(14) {
            0..=6 => Plan::Mutate {
                mutation: self.plan_create(dir, name),
            },
            7 => Plan::Mutate {
                mutation: Mutation::Rmdir { parent: dir, name },
            },
            8 => Plan::Lookup { parent: dir, name },
            9 => Plan::Attr { ino: dir },
            10 => Plan::Sync { ino: dir },
            11 | 12 => {
                let time = self.unique_time();
                let mode = 0o700 + self.rng.below(64) as u16;
                let set = match self.rng.percent(50) {
                    true => SetAttr {
                        atime: Some(SetTime::At(time)),
                        ..SetAttr::default()
                    },
                    false => SetAttr {
                        mode: Some(mode),
                        ..SetAttr::default()
                    },
                };
                Plan::Mutate {
                    mutation: Mutation::SetAttr { ino: dir, set },
                }
            }
            _ => Plan::List {
                dir,
                after: 0,
                count: 100,
            },
        }
    }

    fn plan_create(&mut self, parent: InodeId, name: Vec<u8>) -> Mutation {
        Mutation::Create {
            parent,
            name,
            node: match self.rng.below(10) {
                0..=5 => NewNode::Regular,
                6 => NewNode::Symlink(b"a".to_vec()),
                _ => NewNode::Directory,
            },
            mode: 0o755.into(),
            exclusive: self.rng.percent(50),
        }
    }

    fn plan_mutation(
        &mut self,
        mount: usize,
        (file, any): (InodeId, InodeId),
        parent: InodeId,
        name: Vec<u8>,
    ) -> Mutation {
        let is_full = self.inodes.len() >= INODES_MIN + self.now.as_secs() as usize;
        match self.rng.below(12) {
            0..=2 if !is_full => self.plan_create(parent, name),
            0 | 3 => Mutation::Link {
                ino: file,
                parent,
                name,
            },
            1 | 4 => Mutation::Unlink { parent, name },
            5 => Mutation::Rmdir { parent, name },
            2 | 6 | 7 => {
                let (new_parent, new_name) = self.pick_name(mount);
                Mutation::Rename {
                    parent,
                    name,
                    new_parent,
                    new_name,
                    mode: match self.rng.percent(70) {
                        true => RenameMode::Replace,
                        false => RenameMode::Exchange,
                    },
                }
            }
            8 => Mutation::SetAttr {
                ino: any,
                set: SetAttr {
                    mode: Some(0o700 + self.rng.below(64) as u16),
                    ..SetAttr::default()
                },
            },
            9 | 10 => {
                let time = self.unique_time();
                Mutation::SetAttr {
                    ino: file,
                    set: SetAttr {
                        mtime: Some(SetTime::At(time)),
                        ..SetAttr::default()
                    },
                }
            }
            _ => Mutation::SetXattr {
                ino: any,
                name: b"user.x".to_vec(),
                value: self.rng.next_u64().to_le_bytes().to_vec(),
                mode: XattrMode::Set,
            },
        }
    }
}
