//! Access times that mounts have kept of what was read.

use crate::access;
use crate::attributes;
use crate::op::{Access, Caller, Outcome, Reply};
use crate::transaction::Tx;
use lumeofs_base::limits::ACCESSES_MAX;
use lumeofs_base::{Code, FsError};

/// Sets the times of what nobody has set otherwise since.
pub(super) fn access(tx: &mut Tx<'_>, caller: &Caller, accesses: &[Access]) -> Outcome {
    if !caller.trusted {
        return Err(access::not_permitted(caller, "only mounts tell of reads"));
    }
    if accesses.len() > ACCESSES_MAX {
        let text = format!(
            "{} access times, at most {ACCESSES_MAX} are taken",
            accesses.len()
        );
        return Err(FsError::new(Code::Invalid, text));
    }
    for access in accesses {
        attributes::check_time(access.to)?;
    }
    for access in accesses {
        let Ok(mut inode) = tx.inode(access.ino) else {
            continue;
        };
        if inode.attr.atime == access.from {
            inode.attr.atime = access.to;
            tx.save(&mut inode);
        }
    }
    Ok(Reply::Done)
}
