//! `create`, `mkdir`, `symlink`, `mknod`, and files without a name.

use crate::access::{self, GROUP_EXEC, SEARCH, SGID, WRITE};
use crate::directory::{self, Found};
use crate::op::{Caller, ChunkRef, CreateMode, NewNode, Outcome, Reply};
use crate::record::{Dentry, Inode, Orphan};
use crate::transaction::{Tx, chunks};
use lumeofs_base::limits::{LINK_COUNT_MAX, SYMLINK_LEN_BYTES_MAX};
use lumeofs_base::{Code, FileKind, FsError, FsResult, InodeId};

pub(super) fn create(
    tx: &mut Tx<'_>,
    caller: &Caller,
    (parent, name): (InodeId, &[u8]),
    node: &NewNode,
    mode: CreateMode,
    exclusive: bool,
) -> Outcome {
    directory::check_name(name)?;
    let mut dir = tx.directory(parent)?;
    access::require(caller, &dir, SEARCH)?;
    let position = match directory::find(tx.tables, parent, name) {
        Found::At(_, dentry) => return existing(tx, &dentry, node, exclusive),
        Found::Free(position) => position,
    };
    access::require(caller, &dir, WRITE | SEARCH)?;
    check_node(caller, node)?;
    if matches!(node, NewNode::Directory) {
        if dir.attr.nlink >= LINK_COUNT_MAX {
            return Err(FsError::new(
                Code::TooManyLinks,
                format!("subdirectories of {parent}"),
            ));
        }
        dir.attr.nlink += 1;
    }
    let mut inode = new_inode(tx, caller, &dir, node, mode)?;
    let first_chunk = match node {
        NewNode::Regular => first_chunk(tx, &mut inode),
        _ => None,
    };
    let dentry = Dentry {
        name: name.to_vec(),
        ino: inode.attr.ino,
        kind: inode.attr.kind,
    };
    tx.put_name(parent, position, dentry);
    dir.attr.size += 1;
    tx.touch(&mut dir);
    tx.save(&mut dir);
    tx.save(&mut inode);
    Ok(Reply::Created {
        attr: inode.attr,
        first_chunk,
        created: true,
    })
}

/// `open` with O_TMPFILE: nothing changes in the directory.
pub(super) fn create_unnamed(
    tx: &mut Tx<'_>,
    caller: &Caller,
    parent: InodeId,
    mode: CreateMode,
) -> Outcome {
    let dir = tx.directory(parent)?;
    access::require(caller, &dir, WRITE | SEARCH)?;
    let mut inode = new_inode(tx, caller, &dir, &NewNode::Regular, mode)?;
    let first_chunk = first_chunk(tx, &mut inode);
    inode.attr.nlink = 0;
    tx.make_orphan(&inode, Orphan { may_be_named: true });
    tx.save(&mut inode);
    Ok(Reply::Created {
        attr: inode.attr,
        first_chunk,
        created: true,
    })
}

/// The first chunk of a new file. Without a group there is no space for data, but an empty file needs none.
fn first_chunk(tx: &mut Tx<'_>, inode: &mut Inode) -> Option<ChunkRef> {
    let allocated = tx.allocate(inode, 0..1).ok();
    allocated.and_then(|mut all| all.pop())
}

/// `open` with O_CREAT and without O_EXCL takes the file that is there.
fn existing(tx: &Tx<'_>, dentry: &Dentry, node: &NewNode, exclusive: bool) -> Outcome {
    let name = || format!("{:?}", String::from_utf8_lossy(&dentry.name));
    match (exclusive, node, dentry.kind) {
        (false, NewNode::Regular, FileKind::Regular) => {
            let attr = tx.linked(dentry.ino).attr;
            let first_chunk = chunks(tx.tables, dentry.ino, 0..1).pop();
            Ok(Reply::Created {
                attr,
                first_chunk,
                created: false,
            })
        }
        (false, NewNode::Regular, FileKind::Directory) => {
            Err(FsError::new(Code::IsDirectory, name()))
        }
        _ => Err(FsError::new(Code::Exists, name())),
    }
}

fn check_node(caller: &Caller, node: &NewNode) -> FsResult<()> {
    match node {
        NewNode::Regular | NewNode::Directory => Ok(()),
        NewNode::Symlink(target) => match target.len() {
            0 => Err(FsError::new(Code::NotFound, "an empty symlink target")),
            len if len > SYMLINK_LEN_BYTES_MAX => Err(FsError::new(
                Code::NameTooLong,
                format!("a symlink target of {len} bytes"),
            )),
            _ if target.contains(&0) => {
                Err(FsError::new(Code::Invalid, "a symlink target with a NUL"))
            }
            _ => Ok(()),
        },
        NewNode::Special(FileKind::Fifo | FileKind::Socket, _) => Ok(()),
        NewNode::Special(FileKind::CharDevice | FileKind::BlockDevice, _) => {
            if access::passes_all(caller) {
                Ok(())
            } else {
                Err(access::not_permitted(caller, "only root makes devices"))
            }
        }
        NewNode::Special(FileKind::Regular | FileKind::Directory | FileKind::Symlink, _) => {
            Err(FsError::new(Code::Invalid, "no special kind"))
        }
    }
}

/// A new inode that belongs to the caller, in its directory's slot. The caller saves it.
fn new_inode(
    tx: &mut Tx<'_>,
    caller: &Caller,
    dir: &Inode,
    node: &NewNode,
    mode: CreateMode,
) -> FsResult<Inode> {
    let kind = match node {
        NewNode::Regular => FileKind::Regular,
        NewNode::Directory => FileKind::Directory,
        NewNode::Symlink(_) => FileKind::Symlink,
        NewNode::Special(kind, _) => *kind,
    };
    let ino = tx.new_ino(dir.attr.ino.slot())?;
    let mut inode = tx.new_inode(ino, kind);
    let attr = &mut inode.attr;
    attr.uid = caller.uid;
    attr.gid = caller.gid;
    attr.mode = match kind {
        FileKind::Symlink => 0o777,
        FileKind::Directory => mode.mode & 0o1777,
        _ => mode.mode & 0o7777,
    };
    if dir.attr.mode & SGID != 0 {
        attr.gid = dir.attr.gid;
        if kind == FileKind::Directory {
            attr.mode |= SGID;
        } else if attr.mode & GROUP_EXEC != 0
            && !access::passes_all(caller)
            && !access::in_group(caller, attr.gid)
        {
            // Else anybody could make a program that runs as the directory's group.
            attr.mode &= !SGID;
        }
    }
    let is_directory = kind == FileKind::Directory;
    match dir.acls.inherited(inode.attr.mode, is_directory) {
        _ if kind == FileKind::Symlink => {}
        Some((acls, mode)) => (inode.acls, inode.attr.mode) = (acls, mode),
        None => inode.attr.mode &= !(mode.umask & 0o777),
    }
    match node {
        NewNode::Directory => inode.parent = dir.attr.ino,
        NewNode::Symlink(target) => {
            inode.attr.size = target.len() as u64;
            inode.target.clone_from(target);
        }
        NewNode::Special(FileKind::CharDevice | FileKind::BlockDevice, rdev) => {
            inode.attr.rdev = *rdev;
        }
        NewNode::Special(..) | NewNode::Regular => {}
    }
    Ok(inode)
}

/// A character device 0:0 with mode 0, which a rename leaves behind for an overlay filesystem. Anybody
/// may make one, as it opens no device. Saves it.
pub(super) fn whiteout(tx: &mut Tx<'_>, caller: &Caller, dir: &Inode) -> FsResult<Inode> {
    let node = NewNode::Special(FileKind::CharDevice, 0);
    let mut inode = new_inode(tx, caller, dir, &node, CreateMode::from(0))?;
    tx.save(&mut inode);
    Ok(inode)
}
