//! Names in the model: create, link, remove, rename.

use super::*;

impl Model {
    pub(super) fn create(
        &mut self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        node: &NewNode,
        mode: CreateMode,
        exclusive: bool,
    ) -> Answer {
        let dir = self.dir(parent)?;
        self.may(caller, parent, "x")?;
        if let Some(&ino) = dir.entries.get(name) {
            let kind = self.nodes[&ino].attr.kind;
            return match kind {
                _ if exclusive || *node != NewNode::Regular => Err(Code::Exists),
                FileKind::Regular => {
                    let first_chunk = self.chunk_refs(ino, 0, 1).pop();
                    Ok(Reply::Created {
                        attr: self.attr(ino),
                        first_chunk,
                        created: false,
                    })
                }
                FileKind::Directory => Err(Code::IsDirectory),
                _ => Err(Code::Exists),
            };
        }
        self.may(caller, parent, "w")?;
        let (ino, first_chunk) = self.make(caller, parent, node, mode);
        self.nodes
            .get_mut(&parent)
            .unwrap()
            .entries
            .insert(name.to_vec(), ino);
        self.touch(parent);
        Ok(Reply::Created {
            attr: self.attr(ino),
            first_chunk,
            created: true,
        })
    }

    pub(super) fn create_unnamed(
        &mut self,
        caller: &Caller,
        parent: InodeId,
        mode: CreateMode,
    ) -> Answer {
        self.dir(parent)?;
        self.may(caller, parent, "wx")?;
        let (ino, first_chunk) = self.make(caller, parent, &NewNode::Regular, mode);
        self.unnamed.insert(ino);
        Ok(Reply::Created {
            attr: self.attr(ino),
            first_chunk,
            created: true,
        })
    }

    /// A new node without a name, and its first chunk.
    fn make(
        &mut self,
        caller: &Caller,
        parent: InodeId,
        node: &NewNode,
        mode: CreateMode,
    ) -> (InodeId, Option<ChunkRef>) {
        let dir = &self.nodes[&parent].attr;
        let (dir_mode, dir_gid) = (dir.mode, dir.gid);
        let setgid = dir_mode & 0o2000 != 0;
        let umask = mode.umask;
        let (kind, mut mode) = match node {
            NewNode::Regular => (FileKind::Regular, mode.mode),
            NewNode::Directory => (FileKind::Directory, mode.mode & 0o1777),
            NewNode::Symlink(_) => (FileKind::Symlink, 0o777),
            NewNode::Special(kind, _) => (*kind, mode.mode),
        };
        let gid = if setgid { dir_gid } else { caller.gid };
        if setgid && kind == FileKind::Directory {
            mode |= 0o2000;
        }
        let privileged = caller.trusted || caller.uid == 0;
        let stranger = caller.gid != gid && !caller.groups.contains(&gid);
        let sgid_program = kind != FileKind::Directory && mode & 0o2010 == 0o2010;
        if setgid && sgid_program && !privileged && stranger {
            mode &= !0o2000;
        }
        if kind != FileKind::Symlink {
            mode &= !umask;
        }
        let ino = self.node(kind, mode, caller.uid, gid, parent);
        let mut first_chunk = None;
        match node {
            NewNode::Regular => {
                self.chunk(ino, 0);
                first_chunk = self.chunk_refs(ino, 0, 1).pop();
            }
            NewNode::Symlink(target) => self.attr_mut(ino).size = target.len() as u64,
            _ => {}
        }
        (ino, first_chunk)
    }

    pub(super) fn link(
        &mut self,
        caller: &Caller,
        ino: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Answer {
        self.nodes.get(&ino).ok_or(Code::Stale)?;
        let dir = self.dir(parent)?;
        self.may(caller, parent, "x")?;
        if dir.entries.contains_key(name) {
            return Err(Code::Exists);
        }
        self.may(caller, parent, "w")?;
        if self.is_dir(ino) {
            return Err(Code::NotPermitted);
        }
        if self.names(ino) == 0 && !self.unnamed.remove(&ino) {
            return Err(Code::NotFound);
        }
        self.nodes
            .get_mut(&parent)
            .unwrap()
            .entries
            .insert(name.to_vec(), ino);
        self.touch(parent);
        self.note_change(ino);
        Ok(Reply::Attr(self.attr(ino)))
    }

    pub(super) fn remove(
        &mut self,
        caller: &Caller,
        parent: InodeId,
        name: &[u8],
        rmdir: bool,
    ) -> Answer {
        let dir = self.dir(parent)?;
        self.may(caller, parent, "x")?;
        let &ino = dir.entries.get(name).ok_or(Code::NotFound)?;
        self.may_remove(caller, parent, ino)?;
        match (self.is_dir(ino), rmdir) {
            (true, false) => return Err(Code::IsDirectory),
            (false, true) => return Err(Code::NotDirectory),
            _ if !self.nodes[&ino].entries.is_empty() => return Err(Code::NotEmpty),
            _ => {}
        }
        self.nodes.get_mut(&parent).unwrap().entries.remove(name);
        self.touch(parent);
        self.note_change(ino);
        self.keep(caller, ino, parent, name);
        Ok(Reply::Removed {
            attr: self.attr(ino),
        })
    }

    /// Puts what has lost its last name into the trash, if it is to be kept.
    fn keep(&mut self, caller: &Caller, ino: InodeId, dir: InodeId, name: &[u8]) {
        if !self.keeps || self.is_dir(ino) || self.names(ino) > 0 {
            return;
        }
        let mut path = [b"/", name].concat();
        let mut at = dir;
        while at != InodeId::ROOT {
            let above = self.holder(at);
            let mut entries = self.nodes[&above].entries.iter();
            let (name, _) = entries.find(|&(_, &ino)| ino == at).unwrap();
            path = [b"/", &name[..], &path].concat();
            at = above;
        }
        self.trash.insert(ino, (self.now, caller.uid, path));
    }

    pub(super) fn is_root(caller: &Caller) -> Result<(), Code> {
        match caller.uid {
            0 => Ok(()),
            _ => Err(Code::NotPermitted),
        }
    }

    pub(super) fn restore(
        &mut self,
        caller: &Caller,
        ino: InodeId,
        parent: InodeId,
        name: &[u8],
    ) -> Answer {
        Self::is_root(caller)?;
        if !self.trash.contains_key(&ino) {
            return Err(Code::NotFound);
        }
        if self.dir(parent)?.entries.contains_key(name) {
            return Err(Code::Exists);
        }
        self.trash.remove(&ino);
        let dir = self.nodes.get_mut(&parent).unwrap();
        dir.entries.insert(name.to_vec(), ino);
        self.touch(parent);
        self.note_change(ino);
        Ok(Reply::Attr(self.attr(ino)))
    }

    fn above(&self, above: InodeId, ino: InodeId) -> bool {
        let mut at = ino;
        while at != above && at != InodeId::ROOT {
            at = self.holder(at);
        }
        at == above
    }

    pub(super) fn rename(
        &mut self,
        caller: &Caller,
        (from, name): (InodeId, &[u8]),
        (to, new_name): (InodeId, &[u8]),
        mode: RenameMode,
    ) -> Answer {
        let old_dir = self.dir(from)?;
        let new_dir = self.dir(to)?;
        self.may(caller, from, "x")?;
        self.may(caller, to, "x")?;
        let &source = old_dir.entries.get(name).ok_or(Code::NotFound)?;
        let target = new_dir.entries.get(new_name).copied();
        let exchange = mode == RenameMode::Exchange;
        match target {
            Some(_) if matches!(mode, RenameMode::NoReplace | RenameMode::WhiteoutNoReplace) => {
                return Err(Code::Exists);
            }
            None if exchange => return Err(Code::NotFound),
            _ => {}
        }
        if self.is_dir(source) && self.above(source, to) {
            return Err(Code::Invalid);
        }
        if let Some(target) = target
            && self.is_dir(target)
            && self.above(target, from)
        {
            return Err(if exchange {
                Code::Invalid
            } else {
                Code::NotEmpty
            });
        }
        if target == Some(source) {
            return Ok(Reply::Renamed {
                attr: self.attr(source),
                other: None,
            });
        }
        self.may_remove(caller, from, source)?;
        match target {
            Some(target) => self.may_remove(caller, to, target)?,
            None => self.may(caller, to, "wx")?,
        }
        if from != to && self.is_dir(source) {
            self.may(caller, source, "w")?;
        }
        if let Some(target) = target {
            if exchange && from != to && self.is_dir(target) {
                self.may(caller, target, "w")?;
            }
            match (self.is_dir(source), self.is_dir(target)) {
                _ if exchange => {}
                (true, false) => return Err(Code::NotDirectory),
                (false, true) => return Err(Code::IsDirectory),
                _ if !self.nodes[&target].entries.is_empty() => return Err(Code::NotEmpty),
                _ => {}
            }
        }
        self.nodes.get_mut(&from).unwrap().entries.remove(name);
        if matches!(mode, RenameMode::Whiteout | RenameMode::WhiteoutNoReplace) {
            let (dir_mode, dir_gid) = (self.nodes[&from].attr.mode, self.nodes[&from].attr.gid);
            let gid = if dir_mode & 0o2000 != 0 {
                dir_gid
            } else {
                caller.gid
            };
            let whiteout = self.node(FileKind::CharDevice, 0, caller.uid, gid, from);
            self.nodes
                .get_mut(&from)
                .unwrap()
                .entries
                .insert(name.to_vec(), whiteout);
        }
        self.nodes
            .get_mut(&to)
            .unwrap()
            .entries
            .insert(new_name.to_vec(), source);
        self.nodes.get_mut(&source).unwrap().parent = to;
        if let Some(target) = target {
            if exchange {
                self.nodes
                    .get_mut(&from)
                    .unwrap()
                    .entries
                    .insert(name.to_vec(), target);
                self.nodes.get_mut(&target).unwrap().parent = from;
            }
            self.keep(caller, target, to, new_name);
            self.note_change(target);
        }
        self.note_change(source);
        self.touch(from);
        self.touch(to);
        let other = target.map(|target| self.attr(target));
        Ok(Reply::Renamed {
            attr: self.attr(source),
            other,
        })
    }
}
