//! Set-group-id of a file that is not executable for its group: as on local filesystems it goes when somebody changes the
//! contents who is not in that group.
//!
//! The servers, who do not know the caller's groups, take away suid, and sgid where it means set-group-id.

use super::Core;
use crate::task;
use lumeofs_base::{FsResult, InodeId};
use lumeofs_client::Context;
use lumeofs_meta::op::SetAttr;

const SGID: u16 = 0o2000;
const GROUP_EXEC: u16 = 0o010;

/// Whether the bit goes from a mode by a change of contents by this thread. Anybody but root counts as one without
/// CAP_FSETID.
fn goes(cx: Context<'_>, tid: u32, mode: u16, gid: u32) -> bool {
    let is_open_question = mode & (SGID | GROUP_EXEC) == SGID && cx.caller.uid != 0;
    is_open_question && cx.caller.gid != gid && !task::groups(tid).contains(&gid)
}

impl Core {
    /// Before a write. Asks no server where several mounts write to the file, and lets the bit be then.
    pub(super) fn drop_sgid_if_known(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        tid: u32,
    ) -> FsResult<()> {
        if cx.caller.uid == 0 {
            return Ok(());
        }
        let attr = self.backend.known_attr(ino);
        match attr.is_some_and(|attr| goes(cx, tid, attr.mode, attr.gid)) {
            true => self.clear_sgid(cx, ino),
            false => Ok(()),
        }
    }

    /// Before another change of contents.
    pub(super) fn drop_sgid(&self, cx: Context<'_>, ino: InodeId, tid: u32) -> FsResult<()> {
        match self.takes_sgid(cx, ino, tid, None)? {
            true => self.clear_sgid(cx, ino),
            false => Ok(()),
        }
    }

    /// Whether a change of contents takes the bit, also where the kernel sets this mode with it.
    pub(super) fn takes_sgid(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        tid: u32,
        wanted: Option<u16>,
    ) -> FsResult<bool> {
        if cx.caller.uid == 0 {
            return Ok(false);
        }
        let attr = match self.backend.known_attr(ino) {
            Some(attr) => attr,
            None => self.backend.getattr(cx, ino)?,
        };
        Ok(goes(cx, tid, wanted.unwrap_or(attr.mode), attr.gid))
    }

    fn clear_sgid(&self, cx: Context<'_>, ino: InodeId) -> FsResult<()> {
        let set = SetAttr {
            clear_sgid: true,
            ..SetAttr::default()
        };
        self.backend.setattr(cx, ino, set).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::RequestId;
    use lumeofs_meta::op::Caller;

    #[test]
    fn the_bit_goes_for_who_is_not_in_the_group_unless_the_group_may_execute() {
        let mode = |uid, mode, gid| {
            let caller = Caller {
                uid,
                gid: 5,
                ..Caller::default()
            };
            let cx = Context {
                request: RequestId::next(),
                caller: &caller,
                interrupted: &|| false,
            };
            goes(cx, 0, mode, gid)
        };
        assert!(mode(1000, 0o2664, 6));
        assert!(mode(1000, 0o6664, 6));
        assert!(!mode(1000, 0o2664, 5));
        assert!(!mode(1000, 0o2674, 6));
        assert!(!mode(1000, 0o664, 6));
        assert!(!mode(0, 0o2664, 6));
    }
}
