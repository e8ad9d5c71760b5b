//! What a state machine sees of its storage: changes in memory over a consistent view of redb.
//!
//! One map of changes is active; while a checkpoint writes it, it is frozen and a new one is active
//! (rule R6). Reads look into the active map, then the frozen one, then redb. A disk that cannot be
//! read stops the process: the state machine must not see a hole where there is data.

use lumeofs_meta::tables::Tables;
use redb::{AccessGuard, Database, ReadOnlyTable, ReadableDatabase as _, TableDefinition};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// The state machine's rows.
pub(super) const ROWS: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("rows");

/// Changes since a checkpoint: a value, or `None` for a removed key.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Memory that a map entry costs beside its bytes, roughly.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// A consistent view of the rows in redb.
pub(crate) struct Base(ReadOnlyTable<&'static [u8], &'static [u8]>);

impl Base {
    /// The rows as they are now. The table must exist.
    pub(super) fn open(database: &Database) -> Result<Self, redb::Error> {
        Ok(Self(database.begin_read()?.open_table(ROWS)?))
    }

    /// All rows from `from` on, in order.
    pub(super) fn rows_from(
        &self,
        from: &[u8],
    ) -> redb::Result<redb::Range<'static, &'static [u8], &'static [u8]>> {
        self.0.range::<&[u8]>(from..)
    }
}

/// A checkpoint as tables that never change: for who reads everything and must keep nobody waiting.
pub(crate) struct View(pub(super) Arc<Base>);

impl Tables for View {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        readable(self.0.0.get(key)).map(|value| value.value().to_vec())
    }

    fn put(&mut self, _: &[u8], _: Vec<u8>) {
        panic!("a view is only read");
    }

    fn delete(&mut self, _: &[u8]) {
        panic!("a view is only read");
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        if from >= to {
            return;
        }
        for row in readable(self.0.0.range::<&[u8]>(from..to)) {
            let (key, value) = readable(row);
            if !visit(key.value(), value.value()) {
                return;
            }
        }
    }
}

/// Changes over a base.
pub(crate) struct Overlay {
    base: Arc<Base>,
    frozen: Option<Arc<Changes>>,
    active: Changes,
    active_bytes: usize,
}

impl Overlay {
    pub(super) fn new(base: Base) -> Self {
        Self {
            base: Arc::new(base),
            frozen: None,
            active: Changes::new(),
            active_bytes: 0,
        }
    }

    /// Changed records and their bytes since the last freeze.
    pub(super) fn active_size(&self) -> (usize, usize) {
        (self.active.len(), self.active_bytes)
    }

    /// Whether a checkpoint is under way.
    pub(super) fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// The base that the changes stand on.
    pub(super) fn base(&self) -> Arc<Base> {
        self.base.clone()
    }

    /// Starts a checkpoint: the active changes are now frozen.
    pub(super) fn freeze(&mut self) -> Arc<Changes> {
        assert!(self.frozen.is_none(), "one checkpoint at a time");
        let frozen = Arc::new(std::mem::take(&mut self.active));
        self.active_bytes = 0;
        self.frozen = Some(frozen.clone());
        frozen
    }

    /// Ends a checkpoint: `base` holds the frozen changes. Returns what is to be dropped outside of
    /// the lock.
    pub(super) fn thaw(&mut self, base: Base) -> (Arc<Base>, Option<Arc<Changes>>) {
        (
            std::mem::replace(&mut self.base, Arc::new(base)),
            self.frozen.take(),
        )
    }

    fn change(&mut self, key: &[u8], value: Option<Vec<u8>>) {
        let size = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
        self.active_bytes += size(&value);
        if let Some(slot) = self.active.get_mut(key) {
            self.active_bytes -= size(slot);
            *slot = value;
        } else {
            self.active_bytes += key.len() + ENTRY_OVERHEAD_BYTES;
            self.active.insert(key.to_vec(), value);
        }
    }
}

impl Tables for Overlay {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        if let Some(changed) = self.active.get(key) {
            return changed.clone();
        }
        if let Some(changed) = self.frozen.as_ref().and_then(|frozen| frozen.get(key)) {
            return changed.clone();
        }
        readable(self.base.0.get(key)).map(|value| value.value().to_vec())
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.change(key, Some(value));
    }

    fn delete(&mut self, key: &[u8]) {
        self.change(key, None);
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        if from >= to {
            return;
        }
        let range = (Bound::Included(from), Bound::Excluded(to));
        let mut active = self.active.range::<[u8], _>(range).peekable();
        let mut frozen = self
            .frozen
            .iter()
            .flat_map(|frozen| frozen.range::<[u8], _>(range))
            .peekable();
        let mut rows = readable(self.base.0.range::<&[u8]>(from..to)).map(readable);
        let mut row: Option<Row> = rows.next();
        loop {
            let keys = [
                active.peek().map(|(key, _)| key.as_slice()),
                frozen.peek().map(|(key, _)| key.as_slice()),
                row.as_ref().map(|(key, _)| key.value()),
            ];
            let Some(least) = keys.into_iter().flatten().min() else {
                return;
            };
            let [in_active, in_frozen, in_base] = keys.map(|key| key == Some(least));
            // The newest layer that has the key decides; the others only move on.
            let newer = if in_active {
                active
                    .peek()
                    .map(|(key, value)| (key.as_slice(), value.as_deref()))
            } else if in_frozen {
                frozen
                    .peek()
                    .map(|(key, value)| (key.as_slice(), value.as_deref()))
            } else {
                row.as_ref()
                    .map(|(key, value)| (key.value(), Some(value.value())))
            };
            if let Some((key, Some(value))) = newer
                && !visit(key, value)
            {
                return;
            }
            if in_active {
                active.next();
            }
            if in_frozen {
                frozen.next();
            }
            if in_base {
                row = rows.next();
            }
        }
    }
}

type Row = (
    AccessGuard<'static, &'static [u8]>,
    AccessGuard<'static, &'static [u8]>,
);

/// Stops the process if the store cannot be read: there is no answer that would be right.
fn readable<T>(result: redb::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => {
            tracing::error!(%error, "metadata store cannot be read, stopping");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::rng::SplitMix64;
    use lumeofs_meta::tables::MemoryTables;
    use redb::Durability;

    fn all(
        tables: &impl Tables,
        from: &[u8],
        to: &[u8],
        stop_after: usize,
    ) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut seen = Vec::new();
        tables.scan(from, to, &mut |key, value| {
            seen.push((key.to_vec(), value.to_vec()));
            seen.len() < stop_after
        });
        seen
    }

    #[test]
    fn an_overlay_behaves_like_a_map_through_freezes_and_thaws() {
        let database = Database::builder()
            .create_with_backend(redb::backends::InMemoryBackend::new())
            .unwrap();
        let write = |changes: &Changes| {
            let mut tx = database.begin_write().unwrap();
            tx.set_durability(Durability::None).unwrap();
            {
                let mut rows = tx.open_table(ROWS).unwrap();
                for (key, value) in changes {
                    match value {
                        Some(value) => drop(rows.insert(&key[..], &value[..]).unwrap()),
                        None => drop(rows.remove(&key[..]).unwrap()),
                    }
                }
            }
            tx.commit().unwrap();
        };
        write(&Changes::new());
        let mut overlay = Overlay::new(Base::open(&database).unwrap());
        let mut model = MemoryTables::default();
        let mut rng = SplitMix64::new(7);
        let mut frozen: Option<Arc<Changes>> = None;
        for step in 0..20_000u32 {
            let key = [rng.below(4) as u8, rng.below(16) as u8];
            let other = [rng.below(4) as u8, rng.below(16) as u8];
            match rng.below(20) {
                0..8 => {
                    overlay.put(&key, step.to_le_bytes().to_vec());
                    model.put(&key, step.to_le_bytes().to_vec());
                }
                8..13 => {
                    overlay.delete(&key);
                    model.delete(&key);
                }
                13..16 => assert_eq!(overlay.get(&key), model.get(&key)),
                16..18 => {
                    let stop = 1 + rng.below(70) as usize;
                    assert_eq!(
                        all(&overlay, &key, &other, stop),
                        all(&model, &key, &other, stop)
                    );
                }
                _ => match frozen.take() {
                    None => frozen = Some(overlay.freeze()),
                    Some(changes) => {
                        write(&changes);
                        overlay.thaw(Base::open(&database).unwrap());
                    }
                },
            }
        }
        assert_eq!(
            all(&overlay, &[0], &[9], usize::MAX),
            all(&model, &[0], &[9], usize::MAX)
        );
    }
}
