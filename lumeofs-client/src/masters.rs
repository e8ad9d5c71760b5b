//! The masters: which ones there are, which one leads the metadata group, and calls to them.

use crate::pool::{Host, Pool};
use crate::retry::{Attempt, Next, retry};
use crate::session::Alarm;
use crate::wait::{Patience, SLICE, now};
use lumeofs_base::limits::REQUEST_TIMEOUT;
use lumeofs_base::{Code, FsError, FsResult, NodeId};
use lumeofs_proto::frame::Op;
use lumeofs_proto::meta::MasterAddress;
use parking_lot::Mutex;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Silence of the leader after which another one is looked for, while the wait goes on.
const SUSPICIOUS: Duration = Duration::from_secs(1);

/// The masters of the cluster.
#[derive(Debug)]
pub(crate) struct Masters {
    pool: Arc<Pool>,
    state: Mutex<State>,
    alarm: Arc<Alarm>,
    /// Counts how often another master answered as leader than before.
    changes: AtomicU64,
    /// When one answered as leader last, in ms of the monotonic clock.
    heard_ms: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// Those that the caller named; used when none of the others answers.
    seeds: Vec<Arc<Host>>,
    /// Those that a master named.
    known: Vec<(NodeId, Arc<Host>)>,
    /// Believed to lead.
    leader: Option<Arc<Host>>,
    /// Last one that answered as leader.
    answered: Option<Arc<Host>>,
    /// Where the search for a leader goes on.
    next: usize,
}

impl State {
    fn rotate(&mut self) -> Arc<Host> {
        let known = self.known.iter().map(|(_, host)| host);
        let seeds = self.seeds.iter().filter(|seed| {
            !self
                .known
                .iter()
                .any(|(_, host)| host.address() == seed.address())
        });
        let all: Vec<_> = known.chain(seeds).collect();
        let host = Arc::clone(all[self.next % all.len()]);
        self.next = self.next.wrapping_add(1);
        host
    }
}

impl Masters {
    /// Knows the named masters, at least one.
    pub(crate) fn new(pool: Arc<Pool>, alarm: Arc<Alarm>, seeds: &[String]) -> FsResult<Self> {
        if seeds.is_empty() {
            return Err(FsError::new(Code::Invalid, "no master was named"));
        }
        let seeds = seeds.iter().map(|address| pool.host(address)).collect();
        let state = State {
            seeds,
            known: Vec::new(),
            leader: None,
            answered: None,
            next: 0,
        };
        Ok(Self {
            pool,
            alarm,
            state: Mutex::new(state),
            changes: AtomicU64::new(0),
            heard_ms: AtomicU64::new(now().as_millis() as u64),
        })
    }

    /// Takes over the list that a master sent.
    pub(crate) fn learn(&self, masters: &[MasterAddress]) {
        if !masters.is_empty() {
            let host =
                |master: &MasterAddress| (NodeId(master.id), self.pool.host(&master.address));
            self.state.lock().known = masters.iter().map(host).collect();
        }
    }

    /// Whether one of them has accepted this client.
    pub(crate) fn have_answered(&self) -> bool {
        !self.state.lock().known.is_empty()
    }

    /// Whether an address is that of a master.
    pub(crate) fn has(&self, address: &str) -> bool {
        let state = self.state.lock();
        state
            .seeds
            .iter()
            .chain(state.known.iter().map(|(_, host)| host))
            .any(|host| host.address() == address)
    }

    /// Number of changes of leader that were seen.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// How long no master has answered as leader.
    pub(crate) fn silence(&self) -> Duration {
        now().saturating_sub(Duration::from_millis(self.heard_ms.load(Ordering::Relaxed)))
    }

    /// Number of masters.
    pub(crate) fn count(&self) -> usize {
        let state = self.state.lock();
        state.known.len().max(state.seeds.len())
    }

    /// Any master, another one with each call.
    pub(crate) fn any(&self) -> Arc<Host> {
        self.state.lock().rotate()
    }

    /// The leader as far as known, else any master.
    pub(crate) fn target(&self) -> Arc<Host> {
        let mut state = self.state.lock();
        state.leader.clone().unwrap_or_else(|| state.rotate())
    }

    /// A master answered as only the leader does.
    fn found(&self, host: &Arc<Host>) {
        self.heard_ms
            .store(now().as_millis() as u64, Ordering::Relaxed);
        let mut state = self.state.lock();
        if state
            .answered
            .as_ref()
            .is_some_and(|old| Arc::ptr_eq(old, host))
        {
            if state.leader.is_none() {
                state.leader = Some(Arc::clone(host));
            }
            return;
        }
        if state.answered.is_some() {
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
        state.answered = Some(Arc::clone(host));
        state.leader = Some(Arc::clone(host));
    }

    /// A master did not answer as leader: says where to go on. `hinted` is whether the last attempt
    /// already followed a hint without a pause.
    pub(crate) fn move_on(&self, asked: &Arc<Host>, error: &FsError, hinted: &mut bool) -> Next {
        let mut state = self.state.lock();
        match error.code {
            // It leads, but not now.
            Code::Again => return Next::Pause,
            Code::NotLeader(Some(leader)) => {
                let host = state
                    .known
                    .iter()
                    .find(|(id, _)| *id == leader)
                    .map(|(_, host)| host);
                if let Some(host) = host.filter(|host| !Arc::ptr_eq(host, asked)) {
                    state.leader = Some(Arc::clone(host));
                    *hinted = !*hinted;
                    return if *hinted { Next::Now } else { Next::Pause };
                }
            }
            _ => {}
        }
        *hinted = false;
        if state
            .leader
            .as_ref()
            .is_none_or(|leader| Arc::ptr_eq(leader, asked))
        {
            state.leader = None;
        }
        Next::Pause
    }

    /// Asks one master once. `make` is called when there is a connection, so once per sending.
    pub(crate) fn once<H: Message, M: Message + Default>(
        &self,
        host: &Arc<Host>,
        patience: &Patience<'_>,
        op: Op,
        limit: Duration,
        make: &mut dyn FnMut() -> H,
    ) -> FsResult<M> {
        self.ask(host, patience, op, limit, Duration::ZERO, make)
    }

    /// As [`Masters::once`], where the master may be silent for some time without being suspicious.
    pub(crate) fn ask<H: Message, M: Message + Default>(
        &self,
        host: &Arc<Host>,
        patience: &Patience<'_>,
        op: Op,
        limit: Duration,
        silence: Duration,
        make: &mut dyn FnMut() -> H,
    ) -> FsResult<M> {
        let taken = host.take(patience, limit, true);
        let taken = taken.map_err(|error| self.one_refusal(error))?;
        let taken = taken.expect("a waiting take gives a connection or an error");
        let pending = taken.send(op, 0, limit, &make(), &[])?;
        let mut waited = Duration::ZERO;
        let mut still_right = || {
            waited += SLICE;
            self.check_leads(host, waited, silence)
        };
        let result = pending.wait(patience, limit, &mut still_right)?.decode();
        let error = result.as_ref().err();
        if error.is_none_or(|error| !is_of_followers(error.code)) {
            self.found(host);
        }
        result
    }

    /// Where others have accepted this client, one that refuses it is the one that is wrong.
    fn one_refusal(&self, error: FsError) -> FsError {
        if error.code == Code::Refused && self.have_answered() {
            return FsError::new(Code::Unavailable, error.context);
        }
        error
    }

    /// A leader that is silent for long may have been replaced: has that looked into, and ends the
    /// wait when another one is known.
    fn check_leads(&self, host: &Arc<Host>, waited: Duration, silence: Duration) -> FsResult<()> {
        if waited < SUSPICIOUS.max(silence + SLICE) {
            return Ok(());
        }
        let leader = self.state.lock().leader.clone();
        if leader.is_some_and(|leader| !Arc::ptr_eq(&leader, host)) {
            let what = format!("{} does not lead any more", host.address());
            return Err(FsError::new(Code::Unavailable, what));
        }
        if waited.as_millis().is_multiple_of(SUSPICIOUS.as_millis()) {
            self.alarm.beat_soon();
        }
        Ok(())
    }

    /// Asks the leader until it answers.
    pub(crate) fn call<H: Message, M: Message + Default>(
        &self,
        patience: &Patience<'_>,
        op: Op,
        make: impl FnMut() -> H,
    ) -> FsResult<M> {
        self.call_within(patience, op, REQUEST_TIMEOUT, make)
    }

    /// As [`Masters::call_within`], where the leader may be silent for some time without being suspicious.
    pub(crate) fn call_waiting<H: Message, M: Message + Default>(
        &self,
        patience: &Patience<'_>,
        op: Op,
        limit: Duration,
        silence: Duration,
        mut make: impl FnMut() -> H,
    ) -> FsResult<M> {
        let mut call = LeaderCall {
            masters: self,
            patience,
            op,
            limit,
            silence,
            make: &mut make,
            asked: None,
            hinted: false,
            reply: std::marker::PhantomData,
        };
        retry(patience, &mut call)
    }

    /// As [`Masters::call`], giving each master that much time.
    pub(crate) fn call_within<H: Message, M: Message + Default>(
        &self,
        patience: &Patience<'_>,
        op: Op,
        limit: Duration,
        make: impl FnMut() -> H,
    ) -> FsResult<M> {
        self.call_waiting(patience, op, limit, Duration::ZERO, make)
    }
}

/// Errors that a master gives because it does not lead or cannot know.
fn is_of_followers(code: Code) -> bool {
    matches!(
        code,
        Code::NotLeader(_)
            | Code::Unavailable
            | Code::Timeout
            | Code::Again
            | Code::WrongGroup
            | Code::Refused
    )
}

struct LeaderCall<'a, 'p, H, M> {
    masters: &'a Masters,
    patience: &'a Patience<'p>,
    op: Op,
    limit: Duration,
    silence: Duration,
    make: &'a mut dyn FnMut() -> H,
    asked: Option<Arc<Host>>,
    hinted: bool,
    reply: std::marker::PhantomData<M>,
}

impl<H: Message, M: Message + Default> Attempt for LeaderCall<'_, '_, H, M> {
    type Done = M;

    fn attempt(&mut self) -> FsResult<M> {
        let host = self.asked.insert(self.masters.target());
        self.masters.ask(
            host,
            self.patience,
            self.op,
            self.limit,
            self.silence,
            self.make,
        )
    }

    fn prepare(&mut self, error: &FsError) -> FsResult<Next> {
        Ok(match &self.asked {
            Some(asked) => self.masters.move_on(asked, error, &mut self.hinted),
            None => Next::Pause,
        })
    }
}
