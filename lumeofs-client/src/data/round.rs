//! One round of requests: all are sent on connections of their own, then the replies are collected.
//! So one thread keeps several datanodes busy.

use crate::pool::{Host, Pending};
use crate::wait::Patience;
use lumeofs_base::{Code, FsError, FsResult};
use lumeofs_proto::blocking::Frame;
use lumeofs_proto::data::ChunkRequest;
use lumeofs_proto::frame::Op;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Requests of one call that are under way at once.
const PARALLEL_MAX: usize = 8;

/// A request to one datanode.
pub(crate) struct Ask<'a> {
    pub(crate) host: Arc<Host>,
    pub(crate) op: Op,
    pub(crate) flags: u16,
    pub(crate) header: ChunkRequest,
    pub(crate) payload: &'a [u8],
    /// How long the datanode may be silent.
    pub(crate) limit: Duration,
}

/// Sends `asks`, calls `meanwhile` once while the first of them are under way, and hands each result
/// to `on_result` with its position. `still_right` ends a wait that has become pointless.
pub(crate) fn round(
    patience: &Patience<'_>,
    asks: &[Ask<'_>],
    meanwhile: &mut dyn FnMut(),
    still_right: &mut dyn FnMut(usize, Duration) -> FsResult<()>,
    on_result: &mut dyn FnMut(usize, FsResult<Frame>),
) {
    let mut under_way: VecDeque<(usize, Pending)> = VecDeque::new();
    let (mut next, mut meanwhile) = (0, Some(meanwhile));
    let mut given_up: Option<FsError> = None;
    while next < asks.len() || !under_way.is_empty() {
        while next < asks.len() && under_way.len() < PARALLEL_MAX && given_up.is_none() {
            // Only who holds no connection may wait for one: else all could wait for each other.
            match start(&asks[next], patience, under_way.is_empty()) {
                Ok(Some(pending)) => under_way.push_back((next, pending)),
                Ok(None) => break,
                Err(error) => on_result(next, Err(error)),
            }
            next += 1;
        }
        if let Some(meanwhile) = meanwhile.take() {
            meanwhile();
        }
        if let Some((at, pending)) = under_way.pop_front() {
            let result = match &given_up {
                Some(error) => Err(error.clone()),
                None => {
                    let mut waited = Duration::ZERO;
                    pending.wait(patience, asks[at].limit, &mut || {
                        waited += crate::wait::SLICE;
                        still_right(at, waited)
                    })
                }
            };
            if let Err(error) = &result
                && matches!(error.code, Code::Interrupted)
            {
                given_up = Some(error.clone());
            }
            on_result(at, result);
        }
        if let Some(error) = &given_up {
            while next < asks.len() {
                on_result(next, Err(error.clone()));
                next += 1;
            }
        }
    }
    if let Some(meanwhile) = meanwhile.take() {
        meanwhile();
    }
}

fn start(ask: &Ask<'_>, patience: &Patience<'_>, wait: bool) -> FsResult<Option<Pending>> {
    let Some(taken) = ask.host.take(patience, ask.limit, wait)? else {
        return Ok(None);
    };
    taken
        .send(ask.op, ask.flags, ask.limit, &ask.header, ask.payload)
        .map(Some)
}
