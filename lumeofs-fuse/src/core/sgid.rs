//! Set-group-id of a file that is not executable for its group: as on local filesystems it goes when somebody changes the
//! contents who is not in that group.
//!
//! The servers, who do not know the caller's groups, take away suid, and sgid where it means set-group-id.

use super::Core;
use crate::task;
use lumeofs_base::{FsResult, InodeId};
use lumeofs_client::Context;
use lumeofs_meta::op::SetAttr;

const SUID: u16 = 0o4000;
const SGID: u16 = 0o2000;
const GROUP_EXEC: u16 = 0o010;

/// The mode after a change of contents by this thread, if it has a bit that only the caller's groups decide about.
/// Anybody but root counts as one without CAP_FSETID.
fn without(cx: Context<'_>, tid: u32, mode: u16, gid: u32) -> Option<u16> {
    let is_open_question = mode & (SGID | GROUP_EXEC) == SGID && cx.caller.uid != 0;
    let goes = is_open_question && cx.caller.gid != gid && !task::groups(tid).contains(&gid);
    goes.then_some(mode & !SGID & !SUID)
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
        let mode = attr.and_then(|attr| without(cx, tid, attr.mode, attr.gid));
        mode.map_or(Ok(()), |mode| self.set_mode(cx, ino, mode))
    }

    /// Before another change of contents.
    pub(super) fn drop_sgid(&self, cx: Context<'_>, ino: InodeId, tid: u32) -> FsResult<()> {
        let mode = self.mode_without_sgid(cx, ino, tid, None)?;
        mode.map_or(Ok(()), |mode| self.set_mode(cx, ino, mode))
    }

    /// The mode to set besides a new size, where the kernel wants to set this one.
    pub(super) fn mode_without_sgid(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        tid: u32,
        wanted: Option<u16>,
    ) -> FsResult<Option<u16>> {
        if cx.caller.uid == 0 {
            return Ok(wanted);
        }
        let attr = match self.backend.known_attr(ino) {
            Some(attr) => attr,
            None => self.backend.getattr(cx, ino)?,
        };
        let mode = without(cx, tid, wanted.unwrap_or(attr.mode), attr.gid);
        Ok(mode.or(wanted))
    }

    fn set_mode(&self, cx: Context<'_>, ino: InodeId, mode: u16) -> FsResult<()> {
        let set = SetAttr {
            mode: Some(mode),
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
            without(cx, 0, mode, gid)
        };
        assert_eq!(mode(1000, 0o2664, 6), Some(0o664));
        assert_eq!(mode(1000, 0o6664, 6), Some(0o664));
        assert_eq!(mode(1000, 0o2664, 5), None);
        assert_eq!(mode(1000, 0o2674, 6), None);
        assert_eq!(mode(1000, 0o664, 6), None);
        assert_eq!(mode(0, 0o2664, 6), None);
    }
}
