//! The one retry loop. Whether a retry can help is a property of the error's code; where it goes is
//! known to what is retried.

use crate::wait::{Patience, now};
use lumeofs_base::error::Retry;
use lumeofs_base::{Code, FsError, FsResult};
use std::time::Duration;

/// Shortest pause between two attempts.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What comes before the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing: there is another server or newer knowledge. Must not be said without end.
    Now,
    /// A pause.
    Pause,
}

/// Something that may be tried several times.
pub(crate) trait Attempt {
    /// What success gives.
    type Done;
    /// Tries once.
    fn attempt(&mut self) -> FsResult<Self::Done>;
    /// After a failure that a retry may mend: turns to another server, reads the map again.
    fn prepare(&mut self, error: &FsError) -> FsResult<Next>;
}

/// Tries until success, a final error, or the end of patience. Pauses grow with the time that the
/// trouble lasts, so that they add about an eighth to an outage.
pub(crate) fn retry<A: Attempt>(patience: &Patience<'_>, call: &mut A) -> FsResult<A::Done> {
    let mut failing_since = None;
    loop {
        let error = match call.attempt() {
            Ok(done) => {
                patience.progressed();
                return Ok(done);
            }
            Err(error) => error,
        };
        if error.code.retry() == Retry::Never {
            return Err(error);
        }
        let since = *failing_since.get_or_insert_with(now);
        ends_with(patience.check(), &error)?;
        if call.prepare(&error)? == Next::Pause {
            let pause = ((now() - since) / 8).clamp(PAUSE_MIN, PAUSE_MAX);
            ends_with(patience.pause(pause), &error)?;
        }
    }
}

fn ends_with(patience: FsResult<()>, last: &FsError) -> FsResult<()> {
    patience.map_err(|end| match end.code {
        Code::Unavailable => {
            FsError::new(end.code, format!("{}; last: {}", end.context, last.context))
        }
        _ => end,
    })
}
