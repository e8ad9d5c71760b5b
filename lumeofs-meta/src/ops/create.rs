//! `create`, `mkdir`, `symlink`, `mknod`, and files without a name.

use super::set_attr;
use crate::access::{self, GROUP_EXEC, SEARCH, SGID, WRITE};
use crate::directory::{self, Found};
use crate::made;
use crate::op::{Caller, ChunkRef, CreateMode, NewNode, NewObject, Outcome, Reply, Step};
use crate::record::{Dentry, Inode, Orphan};
use crate::session;
use crate::transaction::{Tx, chunks};
use lumeofs_base::limits::{LINK_COUNT_MAX, SYMLINK_LEN_BYTES_MAX};
use lumeofs_base::{Attr, Code, FileKind, FsError, FsResult, InodeId, SessionId, Timestamp};

/// Whose steps were checked by the kernel, and have come to their values.
const MOUNT: Caller = Caller {
    uid: 0,
    gid: 0,
    groups: Vec::new(),
    trusted: true,
};

pub(super) fn create(
    tx: &mut Tx<'_>,
    caller: &Caller,
    (parent, name): (InodeId, &[u8]),
    node: &NewNode,
    mode: CreateMode,
    exclusive: bool,
) -> Outcome {
    directory::check_name(name)?;
    let dir = tx.directory(parent)?;
    access::require(caller, &dir, SEARCH)?;
    let position = match directory::find(tx.tables, parent, name) {
        Found::At(_, dentry) => return existing(tx, &dentry, node, exclusive),
        Found::Free(position) => position,
    };
    access::require(caller, &dir, WRITE | SEARCH)?;
    check_new(caller, &dir, node)?;
    let born = (tx.new_ino(parent.slot())?, tx.now());
    let (attr, first_chunk) = put_new(tx, caller, dir, (position, name), node, mode, born);
    Ok(Reply::Created {
        attr,
        first_chunk,
        created: true,
    })
}

/// What a mount has done in its memory.
pub(super) fn make(
    tx: &mut Tx<'_>,
    session: SessionId,
    caller: &Caller,
    steps: &[Step],
) -> Outcome {
    if !caller.trusted {
        return Err(FsError::new(
            Code::NotPermitted,
            "only mounts choose numbers of inodes",
        ));
    }
    let made = steps.iter().map(|step| match step {
        Step::Make(object) => make_one(tx, session, object),
        Step::Set { ino, set } => match tx.inode(*ino)?.attr.kind {
            FileKind::Regular => Err(FsError::new(
                Code::Invalid,
                format!("attributes of file {ino}"),
            )),
            _ => set_attr::set_attr(tx, &MOUNT, *ino, set).map(|_| None),
        },
    });
    Ok(Reply::Made(made.collect()))
}

fn make_one(tx: &mut Tx<'_>, session: SessionId, object: &NewObject) -> FsResult<Option<ChunkRef>> {
    let NewObject {
        ino,
        parent,
        name,
        node,
        mode,
        time,
        ..
    } = object;
    session::take_reserved(tx, session, *ino)?;
    directory::check_name(name)?;
    let dir = tx.directory(*parent)?;
    let Found::Free(position) = directory::find(tx.tables, *parent, name) else {
        let name = String::from_utf8_lossy(name);
        return Err(FsError::new(Code::Exists, format!("{name:?}")));
    };
    let owner = Caller {
        uid: object.uid,
        gid: object.gid,
        groups: Vec::new(),
        trusted: true,
    };
    check_new(&owner, &dir, node)?;
    let (_, first_chunk) = put_new(
        tx,
        &owner,
        dir,
        (position, name),
        node,
        *mode,
        (*ino, *time),
    );
    Ok(first_chunk)
}

/// Puts something new into a directory, with this number and time. Returns its attributes and first chunk.
fn put_new(
    tx: &mut Tx<'_>,
    caller: &Caller,
    mut dir: Inode,
    (position, name): (u64, &[u8]),
    node: &NewNode,
    mode: CreateMode,
    (ino, time): (InodeId, Timestamp),
) -> (Attr, Option<ChunkRef>) {
    let mut inode = new_inode(tx, caller, &dir, node, mode, (ino, time));
    let first_chunk = match node {
        NewNode::Regular => first_chunk(tx, &mut inode),
        _ => None,
    };
    if inode.is_directory() {
        inode.position = position;
    }
    let dentry = Dentry {
        name: name.to_vec(),
        ino,
        kind: inode.attr.kind,
    };
    tx.put_name(dir.attr.ino, position, dentry);
    made::enter(&mut dir.attr, inode.attr.kind, time);
    tx.save(&mut dir);
    tx.save(&mut inode);
    (inode.attr, first_chunk)
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
    let born = (tx.new_ino(parent.slot())?, tx.now());
    let mut inode = new_inode(tx, caller, &dir, &NewNode::Regular, mode, born);
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

fn check_new(caller: &Caller, dir: &Inode, node: &NewNode) -> FsResult<()> {
    match node {
        NewNode::Regular => Ok(()),
        NewNode::Directory if dir.attr.nlink >= LINK_COUNT_MAX => Err(FsError::new(
            Code::TooManyLinks,
            format!("subdirectories of {}", dir.attr.ino),
        )),
        NewNode::Directory => Ok(()),
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

/// A new inode that belongs to the caller. The caller saves it.
fn new_inode(
    tx: &mut Tx<'_>,
    caller: &Caller,
    dir: &Inode,
    node: &NewNode,
    mode: CreateMode,
    (ino, time): (InodeId, Timestamp),
) -> Inode {
    let kind = node.kind();
    let owner = (caller.uid, caller.gid);
    let mut inode = tx.new_inode(made::attr(ino, node, mode.mode, owner, time));
    let attr = &mut inode.attr;
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
        None => made::mask(&mut inode.attr, mode),
    }
    match node {
        NewNode::Directory => inode.parent = dir.attr.ino,
        NewNode::Symlink(target) => inode.target.clone_from(target),
        NewNode::Special(..) | NewNode::Regular => {}
    }
    inode
}

/// A character device 0:0 with mode 0, which a rename leaves behind for an overlay filesystem. Anybody
/// may make one, as it opens no device. Saves it.
pub(super) fn whiteout(tx: &mut Tx<'_>, caller: &Caller, dir: &Inode) -> FsResult<Inode> {
    let node = NewNode::Special(FileKind::CharDevice, 0);
    let born = (tx.new_ino(dir.attr.ino.slot())?, tx.now());
    let mut inode = new_inode(tx, caller, dir, &node, CreateMode::from(0), born);
    tx.save(&mut inode);
    Ok(inode)
}
