//! The mutations of the namespace, one file each, with Linux's order of errors.

mod access_times;
mod create;
mod data;
mod link;
mod purge;
mod rename;
mod resize;
mod set_attr;
mod trash;
mod unlink;
mod xattr;

pub(crate) use purge::purge;
pub(crate) use xattr::visible as xattr_visible;

use crate::locks;
use crate::op::{Caller, Mutation, Outcome};
use crate::session;
use crate::transaction::Tx;
use data::Written;
use lumeofs_base::SessionId;

/// Runs a mutation. If it fails, nothing has changed.
pub(crate) fn run(
    tx: &mut Tx<'_>,
    session_id: SessionId,
    caller: &Caller,
    mutation: &Mutation,
) -> Outcome {
    match mutation {
        Mutation::Create {
            parent,
            name,
            node,
            mode,
            exclusive,
        } => create::create(tx, caller, (*parent, name), node, *mode, *exclusive),
        Mutation::CreateUnnamed { parent, mode } => {
            create::create_unnamed(tx, caller, *parent, *mode)
        }
        Mutation::Access { accesses } => access_times::access(tx, caller, accesses),
        Mutation::Link { ino, parent, name } => link::link(tx, caller, *ino, (*parent, name)),
        Mutation::Restore { ino, parent, name } => {
            trash::restore(tx, caller, *ino, (*parent, name))
        }
        Mutation::EmptyTrash { entries } => trash::empty(tx, caller, entries),
        Mutation::SetTrash { keep_s } => trash::set_policy(tx, caller, *keep_s),
        Mutation::Unlink { parent, name } => unlink::unlink(tx, caller, *parent, name),
        Mutation::Rmdir { parent, name } => unlink::rmdir(tx, caller, *parent, name),
        Mutation::Rename {
            parent,
            name,
            new_parent,
            new_name,
            mode,
        } => rename::rename(tx, caller, (*parent, name), (*new_parent, new_name), *mode),
        Mutation::SetAttr { ino, set } => set_attr::set_attr(tx, caller, *ino, set),
        Mutation::SetXattr {
            ino,
            name,
            value,
            mode,
        } => xattr::set(tx, caller, *ino, name, value, *mode),
        Mutation::RemoveXattr { ino, name } => xattr::remove(tx, caller, *ino, name),
        Mutation::Allocate { ino, first, count } => {
            data::allocate(tx, caller, *ino, *first, *count)
        }
        &Mutation::Publish {
            ino,
            size,
            truncations,
            clear_suid,
        } => {
            let written = Written {
                from: 0,
                size,
                truncations,
                clear_suid,
            };
            data::publish(tx, caller, ino, &written)
        }
        &Mutation::Extend {
            ino,
            from,
            size,
            truncations,
            clear_suid,
        } => {
            let written = Written {
                from,
                size,
                truncations,
                clear_suid,
            };
            data::publish(tx, caller, ino, &written)
        }
        &Mutation::Flush {
            ino,
            from,
            size,
            truncations,
            clear_suid,
            mtime,
            ctime,
            ref set,
        } => {
            let written = Written {
                from,
                size,
                truncations,
                clear_suid,
            };
            data::flush(tx, caller, ino, &written, (mtime, ctime), set)
        }
        Mutation::CutTail { ino } => data::cut_tail(tx, caller, *ino),
        Mutation::Append {
            ino,
            len,
            clear_suid,
        } => data::append(tx, caller, *ino, *len, *clear_suid),
        Mutation::Lock {
            ino,
            lock,
            delegated,
        } => locks::lock(tx, session_id, *ino, *lock, *delegated),
        &Mutation::Unlock {
            ino,
            owner,
            first,
            last,
        } => locks::unlock(tx, session_id, ino, owner, first, last),
        Mutation::ReturnLocks { ino, locks } => locks::give_back(tx, session_id, *ino, locks),
        Mutation::Reserve { near, count } => session::reserve(tx, session_id, *near, *count),
        Mutation::Make { steps } => create::make(tx, session_id, caller, steps),
        Mutation::TailClean { ino, truncations } => {
            data::tail_clean(tx, caller, *ino, *truncations)
        }
    }
}
