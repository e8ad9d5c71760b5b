//! Extended attributes.

use super::Core;
use crate::metrics::Metrics;
use crate::task;
use lumeofs_base::metrics::Page;
use lumeofs_base::{Code, FsError, FsResult, InodeId};
use lumeofs_client::Context;
use lumeofs_meta::op::{Caller, XattrMode};

/// Where names of extended attributes may begin.
const NAMESPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
/// ACLs. The kernel has found them valid.
const ACLS: [&[u8]; 2] = [ACCESS_ACL, b"system.posix_acl_default"];
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

/// The name under which every object of a mount shows the mount's counters: see [`crate::LIVE_COUNTERS`].
const LIVE: &[u8] = crate::LIVE_COUNTERS.as_bytes();

/// Flags that the kernel lets through although they contradict each other.
const BOTH: i32 = libc::XATTR_CREATE | libc::XATTR_REPLACE;

/// What getxattr(2) and listxattr(2) get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum XattrAnswer {
    /// How large a buffer must be, for a caller that came without one.
    Size(u32),
    /// The bytes.
    Data(Vec<u8>),
}

impl Core {
    pub(crate) fn getxattr(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        name: &[u8],
        size: u32,
    ) -> FsResult<XattrAnswer> {
        if name == LIVE {
            return sized(self.counters().into_bytes(), size);
        }
        check_namespace(name)?;
        sized(self.backend.getxattr(cx, ino, name)?, size)
    }

    /// What this mount counts. Nobody has to be asked for it, so it is there in an outage too.
    fn counters(&self) -> String {
        let mut page = Page::brief();
        let metrics = Metrics {
            stats: self.stats.clone(),
            backend: self.backend.clone(),
        };
        metrics.collect(&mut page);
        page.into_text()
    }

    pub(crate) fn listxattr(
        &self,
        cx: Context<'_>,
        ino: InodeId,
        size: u32,
    ) -> FsResult<XattrAnswer> {
        let names = self.backend.listxattr(cx, ino)?;
        sized(list(&names, cx.caller.uid), size)
    }

    pub(crate) fn setxattr(
        &self,
        cx: Context<'_>,
        tid: u32,
        ino: InodeId,
        name: &[u8],
        (value, flags): (&[u8], i32),
    ) -> FsResult<()> {
        check_namespace(name)?;
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            BOTH => {
                // It must be there, and must not.
                let there = self.backend.getxattr(cx, ino, name);
                return Err(there.map_or_else(|error| error, |_| Code::Exists.into()));
            }
            other => {
                return Err(FsError::new(
                    Code::Invalid,
                    format!("setxattr with flags {other:#x}"),
                ));
            }
        };
        if name != ACCESS_ACL {
            return self.backend.setxattr(cx, ino, name, value, mode);
        }
        // It takes set-group-id away as chmod(2) does. There the kernel says so; here it leaves that to us.
        let caller = Caller {
            groups: task::groups(tid),
            ..cx.caller.clone()
        };
        let cx = Context {
            caller: &caller,
            ..cx
        };
        self.backend.setxattr(cx, ino, name, value, mode)
    }

    pub(crate) fn removexattr(&self, cx: Context<'_>, ino: InodeId, name: &[u8]) -> FsResult<()> {
        check_namespace(name)?;
        self.backend.removexattr(cx, ino, name)
    }
}

/// Names beyond those that the kernel gives a meaning and rights to would be anybody's.
fn check_namespace(name: &[u8]) -> FsResult<()> {
    if ACLS.contains(&name) {
        return Ok(());
    }
    let rest = NAMESPACES
        .iter()
        .find_map(|prefix| name.strip_prefix(*prefix));
    let code = match rest {
        None => Code::Unsupported,
        Some(b"") => Code::Invalid,
        Some(_) => return Ok(()),
    };
    let name = String::from_utf8_lossy(name);
    Err(FsError::new(code, format!("extended attribute {name:?}")))
}

/// Names as listxattr(2) gives them. Those that only root may read, only root sees; the kernel looks after the
/// reading alone.
fn list(names: &[Vec<u8>], uid: u32) -> Vec<u8> {
    let seen = |name: &&Vec<u8>| uid == 0 || !name.starts_with(b"trusted.");
    let ended = names
        .iter()
        .filter(seen)
        .map(|name| [name, &b"\0"[..]].concat());
    ended.flatten().collect()
}

/// `size` is that of the caller's buffer, 0 for the question how large it must be.
fn sized(data: Vec<u8>, size: u32) -> FsResult<XattrAnswer> {
    if size == 0 {
        return Ok(XattrAnswer::Size(data.len() as u32));
    }
    if data.len() > size as usize {
        return Err(FsError::new(
            Code::Range,
            format!("{} bytes for {size}", data.len()),
        ));
    }
    Ok(XattrAnswer::Data(data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_a_known_prefix_and_a_rest_are_taken() {
        for name in [
            "user.a",
            "trusted.overlay.opaque",
            "security.capability",
            "system.posix_acl_access",
            "system.posix_acl_default",
        ] {
            assert_eq!(check_namespace(name.as_bytes()), Ok(()), "{name}");
        }
        for name in ["", "foo", "user", "other.a", "system.other"] {
            let error = check_namespace(name.as_bytes()).unwrap_err();
            assert_eq!(error.code, Code::Unsupported, "{name}");
        }
        let bare = check_namespace(b"user.").unwrap_err();
        assert_eq!(bare.code, Code::Invalid);
    }

    #[test]
    fn trusted_names_are_shown_to_root_only() {
        let names = [b"trusted.a".to_vec(), b"user.b".to_vec()];
        assert_eq!(list(&names, 0), b"trusted.a\0user.b\0");
        assert_eq!(list(&names, 1000), b"user.b\0");
    }

    #[test]
    fn a_buffer_is_asked_for_filled_or_too_small() {
        assert_eq!(sized(b"abc".to_vec(), 0), Ok(XattrAnswer::Size(3)));
        assert_eq!(
            sized(b"abc".to_vec(), 3),
            Ok(XattrAnswer::Data(b"abc".to_vec()))
        );
        assert_eq!(sized(b"abc".to_vec(), 2).unwrap_err().code, Code::Range);
        assert_eq!(sized(Vec::new(), 2), Ok(XattrAnswer::Data(Vec::new())));
    }
}
