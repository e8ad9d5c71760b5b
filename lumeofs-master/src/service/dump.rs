//! Hands out the state of a Raft group, a piece at a time: `lumeofs admin meta dump`.
//!
//! What is read is a checkpoint under a read transaction, so nobody waits, and nothing is in memory but the pieces that
//! are on their way.

use crate::raft::{Group, Outgoing, rows};
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::{ClusterId, Code, FsError, FsResult};
use lumeofs_meta::RECORD_FORMAT;
use lumeofs_proto::control::dump_part::Kind;
use lumeofs_proto::control::{DumpEnd, DumpHead, DumpPart};
use lumeofs_proto::status::to_grpc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// How long a checkpoint is waited for: within the patience of who asks.
const CHECKPOINT_WAIT: Duration = Duration::from_millis(2500);
/// Pieces that wait for the caller to take them, half a megabyte each.
const PIECES_MAX: usize = 4;

/// What the caller gets.
pub(super) type Parts = ReceiverStream<Result<DumpPart, Status>>;

/// Begins to hand out a group, if this master leads it and none is being handed out.
pub(super) async fn start(
    group: &Group,
    cluster: ClusterId,
    running: Arc<Semaphore>,
) -> FsResult<Parts> {
    let busy = |_| {
        let text = "a dump is being taken already: wait for its end";
        FsError::new(Code::Busy, text)
    };
    let permit = running.try_acquire_owned().map_err(busy)?;
    let outgoing = group.outgoing(CHECKPOINT_WAIT).await?;
    tracing::info!(
        group = group.name,
        index = outgoing.index,
        "a dump is being taken"
    );
    let now = SystemClock.wall();
    let head = DumpHead {
        cluster_id: cluster.0.to_vec().into(),
        index: outgoing.index,
        term: outgoing.term.number,
        time_ms: now.secs * 1000 + i64::from(now.nanos / 1_000_000),
        records: RECORD_FORMAT.into(),
    };
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    tokio::task::spawn_blocking(move || hand_out(outgoing, head, &sender, permit));
    Ok(ReceiverStream::new(receiver))
}

fn hand_out(
    mut outgoing: Outgoing,
    head: DumpHead,
    sender: &mpsc::Sender<Result<DumpPart, Status>>,
    permit: OwnedSemaphorePermit,
) {
    let send = |kind| {
        sender
            .blocking_send(Ok(DumpPart { kind: Some(kind) }))
            .is_ok()
    };
    // Whoever asked may go at any time.
    let mut goes_on = send(Kind::Head(head));
    let mut count = 0;
    while goes_on {
        let piece = outgoing.next().and_then(|piece| {
            let counted = piece.as_deref().map(rows).transpose()?;
            count += counted.map_or(0, |rows| rows.len() as u64);
            Ok(piece)
        });
        goes_on = match piece {
            Ok(Some(piece)) => send(Kind::Rows(piece.into())),
            Ok(None) => {
                send(Kind::End(DumpEnd { rows: count }));
                false
            }
            Err(error) => {
                tracing::warn!(%error, "a dump broke off");
                let _ = sender.blocking_send(Err(to_grpc(&error)));
                false
            }
        };
    }
    drop(permit);
}
