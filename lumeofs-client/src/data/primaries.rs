//! Operations that a group's primary orders, sent to several groups at once and retried through
//! changes of primary.
//!
//! A retry after an attempt whose outcome is not known goes with a higher connection generation, so
//! that the primary drops the earlier one if it still comes: rule D3.

use crate::data::round::{Ask, round};
use crate::link::Link;
use crate::pool::Host;
use crate::retry::{Attempt, Next, retry};
use crate::wait::Patience;
use lumeofs_base::error::Retry;
use lumeofs_base::limits::REQUEST_TIMEOUT;
use lumeofs_base::{
    ClusterMap, Code, FsError, FsResult, GroupConfig, GroupId, NodeId, SessionId, Version,
};
use lumeofs_proto::data::{ChunkReply, ChunkRequest};
use lumeofs_proto::frame::{FLAG_BLOCK_CHECKSUMS, Op};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Silence of a primary after which the map is read again, in case it was replaced.
const SUSPICIOUS: Duration = Duration::from_secs(1);

/// Connection generation of this client's writes, per group.
#[derive(Debug, Default)]
pub(crate) struct Generations(Mutex<HashMap<GroupId, u32>>);

impl Generations {
    /// The generation of new requests.
    pub(crate) fn current(&self, group: GroupId) -> u32 {
        *self.0.lock().entry(group).or_insert(1)
    }

    /// Leaves the generation `sent` behind, unless that was done already.
    pub(crate) fn raise(&self, group: GroupId, sent: u32) {
        let mut generations = self.0.lock();
        let current = generations.entry(group).or_insert(1);
        *current = (*current).max(sent + 1);
    }
}

/// An operation for the primary of a group.
pub(crate) struct GroupOp<'a> {
    pub(crate) group: GroupId,
    pub(crate) op: Op,
    /// Without group, epoch, session and generation.
    pub(crate) header: ChunkRequest,
    pub(crate) payload: &'a [u8],
    /// How it ended.
    pub(crate) outcome: Option<FsResult<ChunkReply>>,
    /// Generation of its last sending.
    pub(crate) generation: u32,
}

impl<'a> GroupOp<'a> {
    pub(crate) fn new(group: GroupId, op: Op, header: ChunkRequest, payload: &'a [u8]) -> Self {
        Self {
            group,
            op,
            header,
            payload,
            outcome: None,
            generation: 0,
        }
    }

    /// Place of the operation, once it succeeded.
    pub(crate) fn version(&self) -> Option<Version> {
        let reply = self.outcome.as_ref()?.as_ref().ok()?;
        Some(Version {
            epoch: reply.epoch.into(),
            sequence: reply.sequence.into(),
        })
    }

    fn changes_data(&self) -> bool {
        matches!(self.op, Op::Write | Op::Copy | Op::Zero | Op::Truncate)
    }

    /// Bytes that it puts into its chunk.
    pub(crate) fn data_len(&self) -> u64 {
        match self.op {
            Op::Copy => self.header.len,
            _ => self.payload.len() as u64,
        }
    }
}

/// The first final error among the outcomes.
pub(crate) fn first_error(ops: &[GroupOp<'_>]) -> FsResult<()> {
    let mut errors = ops
        .iter()
        .filter_map(|op| op.outcome.as_ref()?.as_ref().err());
    errors.next().cloned().map_or(Ok(()), Err)
}

impl Link {
    /// Carries out all operations: afterwards each has its outcome. Fails if patience ends before.
    pub(crate) fn at_primaries(
        &self,
        patience: &Patience<'_>,
        ops: &mut [GroupOp<'_>],
        meanwhile: &mut dyn FnMut(),
    ) -> FsResult<()> {
        self.carry_out(patience, ops, meanwhile, |call| retry(call.patience, call))
    }

    /// As [`Link::at_primaries`], in one attempt.
    pub(crate) fn at_primaries_once(
        &self,
        patience: &Patience<'_>,
        ops: &mut [GroupOp<'_>],
        meanwhile: &mut dyn FnMut(),
    ) -> FsResult<()> {
        self.carry_out(patience, ops, meanwhile, |call| call.attempt())
    }

    fn carry_out(
        &self,
        patience: &Patience<'_>,
        ops: &mut [GroupOp<'_>],
        meanwhile: &mut dyn FnMut(),
        run: impl FnOnce(&mut GroupCall<'_, '_, '_>) -> FsResult<()>,
    ) -> FsResult<()> {
        let of_data = patience.of_data();
        run(&mut GroupCall {
            link: self,
            patience: of_data.as_ref().unwrap_or(patience),
            ops,
            meanwhile: Some(meanwhile),
            seen: 0,
            session: self.window.session(),
        })?;
        patience.progressed();
        Ok(())
    }

    /// Whom to send what is for the primary: the primary, or while it does not answer here another in-sync member, which
    /// hands it on. The link to the primary may be what is broken.
    fn way_to_primary(&self, map: &ClusterMap, config: &GroupConfig) -> Option<Arc<Host>> {
        let host = |node: NodeId| Some(self.pool.host(&map.node(node)?.address));
        let primary = host(config.primary)?;
        if !primary.fails() {
            return Some(primary);
        }
        let others = config.in_sync.iter().copied();
        let mut others = others
            .filter(|node| *node != config.primary)
            .filter_map(host);
        Some(others.find(|other| !other.fails()).unwrap_or(primary))
    }
}

struct GroupCall<'a, 'p, 'd> {
    link: &'a Link,
    patience: &'a Patience<'p>,
    ops: &'a mut [GroupOp<'d>],
    meanwhile: Option<&'a mut dyn FnMut()>,
    /// Version of the map of the last attempt.
    seen: u64,
    /// Of all attempts: what an ended session had on its way is not sent again under another.
    session: SessionId,
}

impl Attempt for GroupCall<'_, '_, '_> {
    type Done = ();

    fn attempt(&mut self) -> FsResult<()> {
        let map = self.link.map();
        self.seen = map.version;
        let session = self.session.get();
        let (mut asks, mut asked) = (Vec::new(), Vec::new());
        let mut postponed = None;
        for (at, op) in self
            .ops
            .iter_mut()
            .enumerate()
            .filter(|(_, op)| op.outcome.is_none())
        {
            let config = map.group(op.group);
            let host = config.and_then(|config| self.link.way_to_primary(&map, config));
            let (Some(config), Some(host)) = (config, host) else {
                let what = format!("the cluster map has no primary of {}", op.group);
                postponed = Some(FsError::new(Code::WrongGroup, what));
                continue;
            };
            op.generation = self.link.generations.current(op.group);
            let header = ChunkRequest {
                group: op.group.get(),
                epoch: config.epoch.get(),
                session,
                generation: op.generation,
                ..op.header.clone()
            };
            let flags = if op.payload.is_empty() {
                0
            } else {
                FLAG_BLOCK_CHECKSUMS
            };
            let (op, payload) = (op.op, op.payload);
            asks.push(Ask {
                host,
                op,
                flags,
                header,
                payload,
                limit: REQUEST_TIMEOUT,
            });
            asked.push(at);
        }
        let (link, patience, ops) = (self.link, self.patience, &mut *self.ops);
        let mut nothing = || {};
        let meanwhile = self.meanwhile.take().unwrap_or(&mut nothing);
        let mut still_right = |at: usize, waited: Duration| {
            let ask: &Ask<'_> = &asks[at];
            is_still_primary(link, patience, ask, waited)
        };
        let mut on_result = |at: usize, result: FsResult<lumeofs_proto::blocking::Frame>| {
            let op = &mut ops[asked[at]];
            let result = result
                .and_then(|frame| frame.decode::<ChunkReply>())
                .map_err(stale);
            if let Err(error) = &result {
                // Whether it was done or still will be is not known.
                let open = matches!(
                    error.code,
                    Code::Timeout | Code::Unavailable | Code::Interrupted | Code::StaleEpoch
                );
                if open && op.changes_data() {
                    link.generations.raise(op.group, op.generation);
                }
                if error.code.retry() != Retry::Never || error.code == Code::Interrupted {
                    postponed = Some(error.clone());
                    return;
                }
            }
            patience.progressed();
            op.outcome = Some(result);
        };
        round(patience, &asks, meanwhile, &mut still_right, &mut on_result);
        postponed.map_or(Ok(()), Err)
    }

    fn prepare(&mut self, error: &FsError) -> FsResult<Next> {
        if error.code == Code::Again {
            return Ok(Next::Pause);
        }
        let newer = self.link.refresh_map(self.patience, self.seen);
        Ok(if newer { Next::Now } else { Next::Pause })
    }
}

/// A chunk that was deleted belonged to a file that was truncated or removed since the operation was
/// planned: another plan shows which.
fn stale(error: FsError) -> FsError {
    match error.code {
        Code::Stale => FsError {
            code: Code::StaleWrite,
            ..error
        },
        _ => error,
    }
}

/// A primary that is silent for long may have been replaced: then there is no use in waiting on.
fn is_still_primary(
    link: &Link,
    patience: &Patience<'_>,
    ask: &Ask<'_>,
    waited: Duration,
) -> FsResult<()> {
    if waited < SUSPICIOUS || !waited.as_millis().is_multiple_of(500) {
        return Ok(());
    }
    link.refresh_map(patience, 0);
    let map = link.map();
    let epoch = map
        .group(GroupId(ask.header.group))
        .map(|config| config.epoch.get());
    if epoch == Some(ask.header.epoch) {
        return Ok(());
    }
    let what = format!("{:?}: the group's configuration changed meanwhile", ask.op);
    Err(FsError::new(Code::StaleEpoch, what))
}
