//! `renameat2` with all its modes.
//!
//! Two walks to the root guard the tree: a directory must not move below itself, and must not
//! replace one that it lies in. They are made only where a directory changes its parent.

use super::create;
use crate::access::{self, SEARCH, WRITE};
use crate::directory::{self, Found};
use crate::op::{Caller, Outcome, RenameMode, Reply};
use crate::record::{Dentry, Inode};
use crate::transaction::Tx;
use lumeofs_base::limits::LINK_COUNT_MAX;
use lumeofs_base::{Code, FsError, FsResult, InodeId};

/// An entry with its object.
struct Named {
    position: u64,
    inode: Inode,
}

/// Both ends of a rename. `new_dir` is `None` if it is the same as `old_dir`.
struct Rename {
    mode: RenameMode,
    old_dir: Inode,
    new_dir: Option<Inode>,
    source: Named,
    target: Result<Named, u64>,
}

pub(super) fn rename(
    tx: &mut Tx<'_>,
    caller: &Caller,
    (parent, name): (InodeId, &[u8]),
    (new_parent, new_name): (InodeId, &[u8]),
    mode: RenameMode,
) -> Outcome {
    directory::check_name(name)?;
    directory::check_name(new_name)?;
    let old_dir = tx.directory(parent)?;
    let new_dir = if parent == new_parent {
        None
    } else {
        Some(tx.directory(new_parent)?)
    };
    access::require(caller, &old_dir, SEARCH)?;
    access::require(caller, new_dir.as_ref().unwrap_or(&old_dir), SEARCH)?;
    let source = find(tx, parent, name).map_err(|_| {
        FsError::new(
            Code::NotFound,
            format!("{:?}", String::from_utf8_lossy(name)),
        )
    })?;
    let target = find(tx, new_parent, new_name);
    let rename = Rename {
        mode,
        old_dir,
        new_dir,
        source,
        target,
    };
    rename.check_target(tx, new_name)?;
    if let Ok(target) = &rename.target
        && target.inode.attr.ino == rename.source.inode.attr.ino
    {
        // Two names of one inode: POSIX wants success and both names to stay.
        return Ok(Reply::Renamed {
            attr: rename.source.inode.attr,
            other: None,
        });
    }
    rename.check_access(caller)?;
    rename.check_kinds()?;
    rename.carry_out(tx, caller, name, new_name)
}

/// The entry of a name, or its free position.
fn find(tx: &Tx<'_>, parent: InodeId, name: &[u8]) -> Result<Named, u64> {
    match directory::find(tx.tables, parent, name) {
        Found::At(position, dentry) => Ok(Named {
            position,
            inode: tx.linked(dentry.ino),
        }),
        Found::Free(position) => Err(position),
    }
}

/// Whether `above` is `ino` or one of the directories that it lies in.
fn is_above(tx: &Tx<'_>, above: InodeId, mut ino: InodeId) -> bool {
    loop {
        if ino == above {
            return true;
        }
        if ino == InodeId::ROOT {
            return false;
        }
        ino = tx.linked(ino).parent;
    }
}

impl Rename {
    fn to_dir(&self) -> &Inode {
        self.new_dir.as_ref().unwrap_or(&self.old_dir)
    }

    fn moves(&self) -> bool {
        self.new_dir.is_some()
    }

    /// What the mode demands of the target, and that nothing moves into itself.
    fn check_target(&self, tx: &Tx<'_>, new_name: &[u8]) -> FsResult<()> {
        let error = |code| {
            Err(FsError::new(
                code,
                format!("{:?}", String::from_utf8_lossy(new_name)),
            ))
        };
        match (self.mode, &self.target) {
            (RenameMode::NoReplace | RenameMode::WhiteoutNoReplace, Ok(_)) => {
                return error(Code::Exists);
            }
            (RenameMode::Exchange, Err(_)) => return error(Code::NotFound),
            _ => {}
        }
        let source = &self.source.inode;
        if self.moves()
            && source.is_directory()
            && is_above(tx, source.attr.ino, self.to_dir().attr.ino)
        {
            return error(Code::Invalid);
        }
        if let Ok(target) = &self.target
            && self.moves()
            && target.inode.is_directory()
            && is_above(tx, target.inode.attr.ino, self.old_dir.attr.ino)
        {
            return error(match self.mode {
                RenameMode::Exchange => Code::Invalid,
                _ => Code::NotEmpty,
            });
        }
        Ok(())
    }

    fn check_access(&self, caller: &Caller) -> FsResult<()> {
        let source = &self.source.inode;
        access::require_removal(caller, &self.old_dir, &source.attr)?;
        match &self.target {
            Ok(target) => {
                access::require_removal(caller, self.to_dir(), &target.inode.attr)?;
            }
            Err(_) => access::require(caller, self.to_dir(), WRITE | SEARCH)?,
        }
        if !self.moves() {
            return Ok(());
        }
        // A directory that changes its parent has its `..` rewritten.
        if source.is_directory() {
            access::require(caller, source, WRITE)?;
        }
        match &self.target {
            Ok(target) if self.mode == RenameMode::Exchange && target.inode.is_directory() => {
                access::require(caller, &target.inode, WRITE)
            }
            _ => Ok(()),
        }
    }

    fn check_kinds(&self) -> FsResult<()> {
        let source_is_dir = self.source.inode.is_directory();
        let target_dir = self
            .target
            .as_ref()
            .ok()
            .map(|target| &target.inode)
            .filter(|inode| inode.is_directory());
        let error = |code, ino: InodeId| Err(FsError::new(code, format!("{ino}")));
        if let Ok(Named { inode: target, .. }) = &self.target
            && self.mode != RenameMode::Exchange
        {
            match (source_is_dir, target.is_directory()) {
                (true, false) => return error(Code::NotDirectory, target.attr.ino),
                (false, true) => return error(Code::IsDirectory, target.attr.ino),
                (true, true) if target.attr.size > 0 => {
                    return error(Code::NotEmpty, target.attr.ino);
                }
                _ => {}
            }
        }
        let full = |dir: &Inode| dir.attr.nlink >= LINK_COUNT_MAX;
        if self.moves() && source_is_dir && target_dir.is_none() && full(self.to_dir()) {
            return error(Code::TooManyLinks, self.to_dir().attr.ino);
        }
        if self.moves() && !source_is_dir && target_dir.is_some() && full(&self.old_dir) {
            return error(Code::TooManyLinks, self.old_dir.attr.ino);
        }
        Ok(())
    }

    fn carry_out(
        mut self,
        tx: &mut Tx<'_>,
        caller: &Caller,
        name: &[u8],
        new_name: &[u8],
    ) -> Outcome {
        let whiteout = match self.mode {
            RenameMode::Whiteout | RenameMode::WhiteoutNoReplace => {
                Some(create::whiteout(tx, caller, &self.old_dir)?)
            }
            _ => None,
        };
        let (old_parent, new_parent) = (self.old_dir.attr.ino, self.to_dir().attr.ino);
        let place = |tx: &mut Tx<'_>, parent, position, name: &[u8], inode: &Inode| {
            let (ino, kind) = (inode.attr.ino, inode.attr.kind);
            let name = name.to_vec();
            tx.put_name(parent, position, Dentry { name, ino, kind });
        };

        // The new entry first: its position was found while the old one was there.
        let source_position = self.source.position;
        let target_position = match &self.target {
            Ok(target) => target.position,
            Err(position) => *position,
        };
        place(
            tx,
            new_parent,
            target_position,
            new_name,
            &self.source.inode,
        );
        match (&self.target, &whiteout) {
            (Ok(target), _) if self.mode == RenameMode::Exchange => {
                place(tx, old_parent, source_position, name, &target.inode);
            }
            (_, Some(whiteout)) => place(tx, old_parent, source_position, name, whiteout),
            _ => tx.remove_name(old_parent, source_position, name),
        }

        self.count_entries(whiteout.is_some());
        self.count_subdirectories();
        tx.touch(&mut self.old_dir);
        tx.save(&mut self.old_dir);
        if let Some(dir) = &mut self.new_dir {
            tx.touch(dir);
            tx.save(dir);
        }
        let mut source = self.source.inode;
        tx.note_change(&mut source.attr);
        if source.is_directory() {
            (source.parent, source.position) = (new_parent, target_position);
        }
        tx.save(&mut source);
        let other = self.target.ok().map(|target| {
            let mut other = target.inode;
            if self.mode == RenameMode::Exchange {
                tx.note_change(&mut other.attr);
                if other.is_directory() {
                    (other.parent, other.position) = (old_parent, source_position);
                }
                tx.save(&mut other);
            } else {
                tx.drop_name(&mut other, (new_parent, new_name), caller);
            }
            other.attr
        });
        Ok(Reply::Renamed {
            attr: source.attr,
            other,
        })
    }

    fn count_entries(&mut self, whiteout: bool) {
        if self.mode == RenameMode::Exchange {
            return;
        }
        if !whiteout {
            self.old_dir.attr.size -= 1;
        }
        if self.target.is_err() {
            self.new_dir.as_mut().unwrap_or(&mut self.old_dir).attr.size += 1;
        }
    }

    fn count_subdirectories(&mut self) {
        let source_is_dir = self.source.inode.is_directory();
        let target_is_dir = self
            .target
            .as_ref()
            .is_ok_and(|target| target.inode.is_directory());
        let exchange = self.mode == RenameMode::Exchange;
        if target_is_dir {
            self.new_dir
                .as_mut()
                .unwrap_or(&mut self.old_dir)
                .attr
                .nlink -= 1;
            if exchange {
                self.old_dir.attr.nlink += 1;
            }
        }
        if source_is_dir {
            self.old_dir.attr.nlink -= 1;
            self.new_dir
                .as_mut()
                .unwrap_or(&mut self.old_dir)
                .attr
                .nlink += 1;
        }
    }
}
