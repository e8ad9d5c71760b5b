//! The requests that a master answers: counted by kind, and logged by the name that their client gave them.

use lumeofs_base::metrics::Operations;
use lumeofs_base::slow::SlowLog;
use lumeofs_base::{FsError, RequestId};
use lumeofs_meta::op::{Mutation, Query};
use lumeofs_proto::auth::Peer;
use lumeofs_proto::frame::{Fixed, Op};
use lumeofs_proto::meta::MetaRequest;
use std::time::Duration;

const QUERIES: usize = Query::NAMES.len();
const MUTATIONS: usize = Mutation::NAMES.len();
/// What is neither query nor mutation.
const REST: [&str; 9] = [
    "session",
    "opens",
    "map",
    "lease",
    "raft_append",
    "raft_vote",
    "raft_snapshot",
    "lock_wait",
    "unknown",
];
static NAMES: [&str; QUERIES + MUTATIONS + REST.len()] = names();

const fn names() -> [&'static str; QUERIES + MUTATIONS + REST.len()] {
    let mut names = [""; QUERIES + MUTATIONS + REST.len()];
    let mut at = 0;
    while at < names.len() {
        names[at] = if at < QUERIES {
            Query::NAMES[at]
        } else if at < QUERIES + MUTATIONS {
            Mutation::NAMES[at - QUERIES]
        } else {
            REST[at - QUERIES - MUTATIONS]
        };
        at += 1;
    }
    names
}

/// What is known of a request while it is worked on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    kind: usize,
    session: u64,
}

impl Asked {
    /// By the frame alone.
    pub(crate) fn new(op: Op) -> Self {
        let rest = match op {
            Op::Session => 0,
            Op::Opens => 1,
            Op::Map => 2,
            Op::Lease => 3,
            Op::RaftAppend => 4,
            Op::RaftVote => 5,
            Op::RaftSnapshot => 6,
            Op::LockWait => 7,
            _ => REST.len() - 1,
        };
        Self {
            kind: QUERIES + MUTATIONS + rest,
            session: 0,
        }
    }

    /// It is of a session.
    pub(crate) fn of(&mut self, session: u64) {
        self.session = session;
    }

    /// It is this query.
    pub(crate) fn queries(&mut self, request: &MetaRequest) {
        self.narrow(request, 0, QUERIES);
    }

    /// It is this mutation.
    pub(crate) fn mutates(&mut self, request: &MetaRequest) {
        self.narrow(request, QUERIES, MUTATIONS);
    }

    fn narrow(&mut self, request: &MetaRequest, first: usize, count: usize) {
        self.session = request.session;
        // What does not decode stays unknown.
        if let Some(at) = request.op.first().filter(|at| usize::from(**at) < count) {
            self.kind = first + usize::from(*at);
        }
    }
}

/// All requests since the start.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(super) operations: Operations,
    pub(super) slow: SlowLog,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            operations: Operations::new(&NAMES),
            slow: SlowLog::default(),
        }
    }
}

impl Requests {
    /// A request was answered, or could not be.
    pub(crate) fn done(
        &self,
        fixed: &Fixed,
        asked: Asked,
        peer: Peer,
        took: Duration,
        error: Option<&FsError>,
    ) {
        self.operations.count(asked.kind, error.is_some(), took);
        let (request, op) = (RequestId(fixed.request), self.operations.name(asked.kind));
        let (session, took_ms) = (asked.session, took.as_millis() as u64);
        let error = error.map(tracing::field::display);
        if matches!(fixed.op, Op::Lease | Op::LockWait) {
            // It is answered when there is something to say.
            tracing::trace!(%request, op, session, took_ms, error, "operation");
        } else if let Some(held_back) = self.slow.tell(took) {
            tracing::info!(%request, op, session, ?peer, took_ms, held_back, error, "slow operation");
        } else if matches!(fixed.op, Op::RaftAppend | Op::RaftVote | Op::RaftSnapshot) {
            // Two a second and group come when nothing happens.
            tracing::trace!(%request, op, ?peer, took_ms, error, "operation");
        } else {
            tracing::debug!(%request, op, session, ?peer, took_ms, error, "operation");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::InodeId;

    fn name(asked: Asked) -> &'static str {
        NAMES[asked.kind]
    }

    #[test]
    fn a_request_is_counted_under_the_name_of_its_operation() {
        let request = |op: Vec<u8>| MetaRequest {
            session: 7,
            op: op.into(),
            ..MetaRequest::default()
        };
        let query = Query::Parent { ino: InodeId::ROOT };
        let mutation = Mutation::CutTail { ino: InodeId::ROOT };
        let mut asked = Asked::new(Op::Query);
        assert_eq!(name(asked), "unknown");
        asked.queries(&request(postcard::to_stdvec(&query).unwrap()));
        assert_eq!((name(asked), asked.session), ("parent", 7));
        asked.mutates(&request(postcard::to_stdvec(&mutation).unwrap()));
        assert_eq!(name(asked), "cut_tail");
        for nonsense in [vec![], vec![255]] {
            let mut asked = Asked::new(Op::Mutate);
            asked.mutates(&request(nonsense));
            assert_eq!(name(asked), "unknown");
        }
        assert_eq!(name(Asked::new(Op::RaftSnapshot)), "raft_snapshot");
        assert_eq!(name(Asked::new(Op::Session)), "session");
    }
}
