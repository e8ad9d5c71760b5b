//! Attributes and sizes in the model.

use super::*;

impl Model {
    pub(super) fn set_attr(&mut self, caller: &Caller, ino: InodeId, set: &SetAttr) -> Answer {
        let node = self.nodes.get(&ino).ok_or(Code::Stale)?;
        let attr = node.attr.clone();
        if set.mode.is_some() && attr.kind == FileKind::Symlink {
            return Err(Code::Unsupported);
        }
        if let Some(size) = set.size {
            match attr.kind {
                FileKind::Regular => {}
                FileKind::Directory => return Err(Code::IsDirectory),
                _ => return Err(Code::Invalid),
            }
            if size > attr.size && attr.tail_unclean {
                return Err(Code::StaleWrite);
            }
        }
        let privileged = caller.trusted || caller.uid == 0;
        let member = |gid| caller.gid == gid || caller.groups.contains(&gid);
        if !privileged {
            if let Some(uid) = set.uid {
                let same = uid == attr.uid && caller.uid == uid;
                same.then_some(()).ok_or(Code::NotPermitted)?;
            }
            if let Some(gid) = set.gid {
                self.owns(caller, ino)?;
                (gid == attr.gid || member(gid))
                    .then_some(())
                    .ok_or(Code::NotPermitted)?;
            }
            if set.mode.is_some() || set.clear_sgid {
                self.owns(caller, ino)?;
            }
            if set.size.is_some() {
                self.may(caller, ino, "w")?;
            }
            let both_now = (Some(SetTime::Now), Some(SetTime::Now));
            if (set.atime, set.mtime) == both_now && caller.uid != attr.uid {
                self.may(caller, ino, "w")?;
            } else if set.atime.is_some() || set.mtime.is_some() {
                self.owns(caller, ino)?;
            }
        }
        let now = self.now;
        if set.size.is_some() || set.uid.is_some() || set.gid.is_some() {
            self.drop_capabilities(ino);
        }
        if let Some(size) = set.size {
            self.resize(ino, size);
            if caller.uid != 0 {
                strip(self.attr_mut(ino));
            }
        }
        let attr = self.attr_mut(ino);
        attr.ctime = attr.ctime.max(now);
        attr.uid = set.uid.unwrap_or(attr.uid);
        attr.gid = set.gid.unwrap_or(attr.gid);
        if (set.uid.is_some() || set.gid.is_some()) && attr.kind != FileKind::Directory {
            strip(attr);
        }
        if let Some(mode) = set.mode {
            attr.mode = mode;
            if !privileged && !member(attr.gid) {
                attr.mode &= 0o5777;
            }
        }
        if set.clear_sgid {
            attr.mode &= 0o1777;
        }
        let time = |set, old| match set {
            None => old,
            Some(SetTime::Now) => now,
            Some(SetTime::At(time)) => time,
        };
        attr.atime = time(set.atime, attr.atime);
        attr.mtime = time(set.mtime, attr.mtime);
        Ok(Reply::Attr(self.attr(ino)))
    }

    fn resize(&mut self, ino: InodeId, size: u64) {
        let now = self.now;
        let node = self.nodes.get_mut(&ino).unwrap();
        if size <= node.attr.size {
            let past = node.chunks.split_off(&(size.div_ceil(CHUNK) as u32));
            let cut =
                !size.is_multiple_of(CHUNK) && node.chunks.contains_key(&((size / CHUNK) as u32));
            if size < node.attr.size || !past.is_empty() || cut {
                node.attr.truncations += 1;
                node.attr.tail_unclean = cut;
            }
            self.freed.extend(past.into_values());
        }
        node.attr.size = size;
        node.attr.mtime = now;
    }
}

pub(super) fn strip(attr: &mut Attr) {
    attr.mode &= 0o3777;
    if attr.mode & 0o010 != 0 {
        attr.mode &= 0o1777;
    }
}
