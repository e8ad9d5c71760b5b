//! Whether the store may still be used. The first failure of the disk ends it for the process.

use lumeofs_base::{Code, FsError, FsResult};
use std::sync::OnceLock;

/// After EIO or a failed sync nobody knows what the disk holds: the kernel may have dropped the dirty
/// pages and marked them clean. Nothing is retried; the node must take the store out of service.
#[derive(Debug, Default)]
pub(super) struct Health {
    failure: OnceLock<FsError>,
}

impl Health {
    /// The first failure, if there was one.
    pub(super) fn check(&self) -> FsResult<()> {
        self.failure
            .get()
            .map_or(Ok(()), |failure| Err(failure.clone()))
    }

    /// Passes the result on; an error of the disk ends the store. A full disk is no such error.
    pub(super) fn note<T>(&self, result: FsResult<T>) -> FsResult<T> {
        result.map_err(|error| match error.code {
            Code::Io | Code::ReadOnly => self.fail(error),
            _ => error,
        })
    }

    fn fail(&self, error: FsError) -> FsError {
        let first = self.failure.get_or_init(|| {
            tracing::error!(%error, "chunk store is out of service");
            FsError {
                code: Code::Io,
                ..error
            }
            .during("chunk store is out of service")
        });
        first.clone()
    }
}
