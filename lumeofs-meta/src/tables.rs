//! What the state machines see of their storage: one ordered map of bytes.
//!
//! The keys are made in `keys.rs`: first the table, then the slot, so that a slot is one contiguous
//! range per table. The real form is an overlay over redb, the reference form a `BTreeMap`.

use std::collections::BTreeMap;

/// An ordered map of bytes. Infallible: a store that cannot read its disk stops its process.
pub trait Tables {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Option<Vec<u8>>;
    /// Sets a value.
    fn put(&mut self, key: &[u8], value: Vec<u8>);
    /// Removes a key, if there.
    fn delete(&mut self, key: &[u8]);
    /// Calls `visit` for the keys in `from .. to` in order until it returns false.
    fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool);
}

/// Tables in memory: the reference for tests and simulation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryTables(pub BTreeMap<Vec<u8>, Vec<u8>>);

impl Tables for MemoryTables {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get(key).cloned()
    }
    fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.0.insert(key.to_vec(), value);
    }
    fn delete(&mut self, key: &[u8]) {
        self.0.remove(key);
    }
    fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        if from >= to {
            return;
        }
        let range = (
            std::ops::Bound::Included(from),
            std::ops::Bound::Excluded(to),
        );
        for (key, value) in self.0.range::<[u8], _>(range) {
            if !visit(key, value) {
                return;
            }
        }
    }
}
