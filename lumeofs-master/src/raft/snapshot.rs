//! Snapshots: what openraft hands around, and how rows travel between masters in bounded memory.
//!
//! A snapshot *is* a checkpoint: building one writes the checkpoint and holds a read transaction on
//! it. It travels as pieces of rows; the receiver writes them into a new redb file.

use super::overlay::Base;
use super::store::{Incoming, Position, Store};
use super::types::{Snapshot, SnapshotMeta, StorageError, StorageIOError, TypeConfig, any};
use lumeofs_base::{Code, FsError, FsResult};
use openraft::RaftSnapshotBuilder;
use std::sync::Arc;

/// Bytes of rows in one piece, at least one row: fits a frame's payload.
const PIECE_BYTES: usize = 512 << 10;

/// The data of a snapshot.
pub(crate) enum SnapshotData {
    /// Rows of a checkpoint of this master.
    Outgoing(Arc<Base>),
    /// A file that was received from the leader.
    Incoming(Incoming),
}

/// Reads a checkpoint piece by piece.
pub(super) struct Pieces {
    base: Arc<Base>,
    /// First key that was not handed out; `None` = done.
    next: Option<Vec<u8>>,
}

impl Pieces {
    pub(super) fn new(base: Arc<Base>) -> Self {
        Self {
            base,
            next: Some(Vec::new()),
        }
    }

    /// The next piece: rows as `key length, value length, key, value`, lengths as u32 little-endian.
    pub(super) fn next(&mut self) -> FsResult<Option<Vec<u8>>> {
        let Some(from) = self.next.take() else {
            return Ok(None);
        };
        let failed =
            |error: redb::StorageError| FsError::new(Code::Io, format!("read a snapshot: {error}"));
        let mut piece = Vec::new();
        for row in self.base.rows_from(&from).map_err(failed)? {
            let (key, value) = row.map_err(failed)?;
            let (key, value) = (key.value(), value.value());
            if !piece.is_empty() && piece.len() + 8 + key.len() + value.len() > PIECE_BYTES {
                self.next = Some(key.to_vec());
                break;
            }
            piece.extend_from_slice(&(key.len() as u32).to_le_bytes());
            piece.extend_from_slice(&(value.len() as u32).to_le_bytes());
            piece.extend_from_slice(key);
            piece.extend_from_slice(value);
        }
        Ok((!piece.is_empty()).then_some(piece))
    }
}

/// The rows of a piece.
pub(crate) fn rows(piece: &[u8]) -> FsResult<Vec<(&[u8], &[u8])>> {
    let mut rows = Vec::new();
    let mut rest = piece;
    while !rest.is_empty() {
        let row = (|| {
            let (lengths, tail) = rest.split_at_checked(8)?;
            let key_len = u32::from_le_bytes(lengths[..4].try_into().expect("four bytes")) as usize;
            let value_len =
                u32::from_le_bytes(lengths[4..].try_into().expect("four bytes")) as usize;
            let (key, tail) = tail.split_at_checked(key_len)?;
            let (value, tail) = tail.split_at_checked(value_len)?;
            rest = tail;
            Some((key, value))
        })();
        rows.push(row.ok_or_else(|| FsError::new(Code::Refused, "malformed piece of a snapshot"))?);
    }
    Ok(rows)
}

/// Describes the checkpoint at a position. The id depends on the position only, so the same state
/// has the same id everywhere.
pub(super) fn meta(position: &Position) -> SnapshotMeta {
    SnapshotMeta {
        last_log_id: position.applied,
        last_membership: position.membership.clone(),
        snapshot_id: position
            .applied
            .map_or_else(|| "empty".to_owned(), |id| id.to_string()),
    }
}

/// The last checkpoint as a snapshot, if there is one.
pub(super) fn current(store: &Store) -> Option<Snapshot> {
    let (position, base) = store.saved();
    position.applied?;
    Some(Snapshot {
        meta: meta(&position),
        snapshot: Box::new(SnapshotData::Outgoing(base)),
    })
}

/// Builds snapshots by writing checkpoints.
pub(super) struct Builder(pub(super) Arc<Store>);

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let store = self.0.clone();
        let failed = |error: FsError| StorageIOError::write_snapshot(None, any(&error));
        tokio::task::spawn_blocking(move || {
            // With a full disk the last one must do.
            store.checkpoint_if_room()?;
            let (position, base) = store.saved();
            Ok(Snapshot {
                meta: meta(&position),
                snapshot: Box::new(SnapshotData::Outgoing(base)),
            })
        })
        .await
        .unwrap_or_else(|error| Err(FsError::new(Code::Io, format!("checkpoint: {error}"))))
        .map_err(|error| failed(error).into())
    }
}

/// Copies a checkpoint of this process into a file, as if it had been received.
pub(super) fn copy(base: Arc<Base>, into: &mut Incoming) -> FsResult<()> {
    let mut pieces = Pieces::new(base);
    while let Some(piece) = pieces.next()? {
        into.add(rows(&piece)?.into_iter())?;
    }
    Ok(())
}
