//! The highest connection generation seen of each session (D3): late packets of a connection that its
//! client has given up must not overwrite what came after.

use crate::message::Writer;
use std::collections::BTreeMap;

/// Sessions of one half of the table.
const HALF_MAX: usize = 16_384;

/// Generations by session. Sessions that wrote nothing for long are forgotten: two halves, the older
/// one goes when the younger is full.
#[derive(Clone, Debug, Default)]
pub struct Writers {
    young: BTreeMap<u64, u32>,
    old: BTreeMap<u64, u32>,
}

impl Writers {
    /// Notes the writer. False if a newer generation of its session has been seen.
    pub fn admit(&mut self, writer: Writer) -> bool {
        if writer.session == 0 {
            return true;
        }
        let known = self
            .young
            .get(&writer.session)
            .or_else(|| self.old.get(&writer.session));
        if known.is_some_and(|known| *known > writer.generation) {
            return false;
        }
        if self.young.len() >= HALF_MAX && !self.young.contains_key(&writer.session) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(writer.session, writer.generation);
        true
    }

    /// The writers of late, at most `max`, for a member that was caught up.
    pub fn recent(&self, max: usize) -> Vec<Writer> {
        let writers = self.young.iter().chain(&self.old).take(max);
        writers
            .map(|(&session, &generation)| Writer {
                session,
                generation,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_generation_is_refused_and_sessions_do_not_mix() {
        let mut writers = Writers::default();
        let writer = |session, generation| Writer {
            session,
            generation,
        };
        assert!(writers.admit(writer(1, 5)));
        assert!(writers.admit(writer(1, 5)));
        assert!(!writers.admit(writer(1, 4)));
        assert!(writers.admit(writer(2, 1)));
        assert!(writers.admit(writer(1, 6)));
        assert!(!writers.admit(writer(1, 5)));
        for session in 10..10 + 3 * HALF_MAX as u64 {
            assert!(writers.admit(writer(session, 1)));
        }
        assert!(writers.young.len() + writers.old.len() <= 2 * HALF_MAX);
    }
}
