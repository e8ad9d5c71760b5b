//! Requests as the kernel writes them: numbers in the machine's order, names with a NUL behind them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

/// Who asks for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(super) opcode: u32,
    /// Names the request in its reply.
    pub(super) unique: u64,
    /// The inode, by the number that it was given.
    pub(super) node: u64,
    uid: u32,
    gid: u32,
    pid: u32,
}

impl Request {
    /// Reads the header, `struct fuse_in_header`; what is left is the body.
    pub(super) fn parse(bytes: &[u8]) -> Option<(Self, Body<'_>)> {
        let mut body = Body(bytes);
        let (len, opcode) = (body.u32()?, body.u32()?);
        let (unique, node) = (body.u64()?, body.u64()?);
        let (uid, gid, pid) = (body.u32()?, body.u32()?, body.u32()?);
        // Length of extensions, which were not asked for, and padding.
        body.u32()?;
        let request = Self {
            opcode,
            unique,
            node,
            uid,
            gid,
            pid,
        };
        (len as usize == bytes.len()).then_some((request, body))
    }

    /// The caller's user.
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// The caller's group.
    pub(crate) fn gid(&self) -> u32 {
        self.gid
    }

    /// The calling thread, 0 if there is none or it is not in sight.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }
}

/// What is left of a request. Each call takes something off; `None` if it is not there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    pub(super) fn u32(&mut self) -> Option<u32> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_ne_bytes(*bytes))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_ne_bytes(*bytes))
    }

    pub(super) fn i32(&mut self) -> Option<i32> {
        self.u32().map(u32::cast_signed)
    }

    /// A name, without its NUL.
    pub(super) fn name(&mut self) -> Option<&'a OsStr> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let (name, rest) = (&self.0[..end], &self.0[end + 1..]);
        self.0 = rest;
        Some(OsStr::from_bytes(name))
    }

    /// So many bytes.
    pub(super) fn bytes(&mut self, len: u32) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len as usize)?;
        self.0 = rest;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_field_by_field_and_nothing_past_its_end() {
        let mut bytes = Vec::new();
        for number in [49_u32, 1] {
            bytes.extend(number.to_ne_bytes());
        }
        for number in [7_u64, 1] {
            bytes.extend(number.to_ne_bytes());
        }
        for number in [1000_u32, 100, 4711, 0] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes.extend(b"ab\0tail\0x");
        let (request, mut body) = Request::parse(&bytes).unwrap();
        assert_eq!((request.opcode, request.unique, request.node), (1, 7, 1));
        assert_eq!(
            (request.uid(), request.gid(), request.pid()),
            (1000, 100, 4711)
        );
        assert_eq!(body.name(), Some(OsStr::new("ab")));
        assert_eq!(body.name(), Some(OsStr::new("tail")));
        assert_eq!((body.name(), body.u32(), body.bytes(2)), (None, None, None));
        assert_eq!(body.bytes(1), Some(&b"x"[..]));
        assert!(
            Request::parse(&bytes[..48]).is_none(),
            "shorter than it says"
        );
        assert!(Request::parse(&bytes[..30]).is_none());
    }
}
