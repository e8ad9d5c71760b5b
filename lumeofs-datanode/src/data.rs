//! Data of operations, shared between the store, the streams and the tail without a copy.

use lumeofs_base::AlignedBuf;
use lumeofs_replica::message::Payload;
use std::ops::Deref;
use std::sync::Arc;

/// A buffer, or its beginning.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    buf: Arc<AlignedBuf>,
    len: usize,
}

/// A buffer of exactly the data.
pub(crate) enum Whole<'a> {
    /// Shared.
    Shared(&'a AlignedBuf),
    /// Copied, because the data is only a beginning.
    Copied(AlignedBuf),
}

impl Data {
    /// Data of an operation that has none.
    pub(crate) fn none() -> Self {
        AlignedBuf::zeroed(0).into()
    }

    /// The data as a buffer of its own length.
    pub(crate) fn whole(&self) -> Whole<'_> {
        match self.len == self.buf.len() {
            true => Whole::Shared(&self.buf),
            false => Whole::Copied(AlignedBuf::copy_of(self)),
        }
    }
}

impl From<AlignedBuf> for Data {
    fn from(buf: AlignedBuf) -> Self {
        let len = buf.len();
        Self {
            buf: Arc::new(buf),
            len,
        }
    }
}

impl Deref for Data {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf[..self.len]
    }
}

impl Deref for Whole<'_> {
    type Target = AlignedBuf;
    fn deref(&self) -> &AlignedBuf {
        match self {
            Whole::Shared(buf) => buf,
            Whole::Copied(buf) => buf,
        }
    }
}

impl Payload for Data {
    fn len(&self) -> usize {
        self.len
    }
    fn prefix(&self, len: usize) -> Self {
        Self {
            buf: self.buf.clone(),
            len: len.min(self.len),
        }
    }
}
