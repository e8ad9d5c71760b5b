//! Numbers that name an operation in the logs of all processes that take part in it.
//!
//! A mount gives each call of the kernel one, and every frame that it sends for that call carries it; masters and
//! datanodes log it, and hand it on.

use crate::entropy;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Names an operation: 32 bits of the process that began it, drawn at its start, then a count. Shown as 16 hexadecimal
/// digits. Nothing but logs may rely on it: two processes may draw the same number, and the count begins anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(pub u64);

impl RequestId {
    /// The next one of this process.
    #[must_use]
    pub fn next() -> Self {
        static PROCESS: OnceLock<u32> = OnceLock::new();
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let process = *PROCESS.get_or_init(|| u32::from_le_bytes(entropy::bytes()));
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(u64::from(process) << 32 | u64::from(count))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_a_process_share_their_first_half_and_differ() {
        let (first, second) = (RequestId::next(), RequestId::next());
        assert_ne!(first, second);
        assert_eq!(first.0 >> 32, second.0 >> 32);
        let shown = first.to_string();
        assert_eq!(shown.len(), 16);
        assert_eq!(u64::from_str_radix(&shown, 16), Ok(first.0));
    }
}
