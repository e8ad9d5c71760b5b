//! Connections to servers: a bounded stack of authenticated ones per address.
//!
//! A thread takes one, sends a request, waits for the reply and gives it back; it owns it meanwhile.
//! A connection whose wait was abandoned is closed, since its reply may still come. Connecting happens
//! on a thread of its own, because neither connect(2) nor the handshake looks at a caller's signals.

use crate::wait::{Patience, SLICE, now};
use lumeofs_base::{Code, FsError, FsResult, NodeId, NodeKind, RequestId};
use lumeofs_proto::auth::{Credentials, Identity};
use lumeofs_proto::blocking::{Conn, Frame};
use lumeofs_proto::frame::Op;
use parking_lot::{Condvar, Mutex, RwLock};
use prost::Message;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Connections to one server.
const OPEN_MAX: usize = 64;
/// Connections to one server that are being made at once.
const CONNECTING_MAX: usize = 16;
/// How long a server counts as failing after a failure, for the choice of a replica or of a way to the primary.
const FAILING: Duration = Duration::from_secs(5);

/// All servers that this client talked to.
#[derive(Debug)]
pub(crate) struct Pool {
    identity: Arc<Identity>,
    hosts: RwLock<HashMap<String, Arc<Host>>>,
}

impl Pool {
    pub(crate) fn new(credentials: Credentials) -> Self {
        let identity = Identity {
            credentials,
            node: NodeId(0),
            kind: NodeKind::Client,
        };
        Self {
            identity: Arc::new(identity),
            hosts: RwLock::default(),
        }
    }

    /// The server at an address.
    pub(crate) fn host(&self, address: &str) -> Arc<Host> {
        if let Some(host) = self.hosts.read().get(address) {
            return Arc::clone(host);
        }
        let make = || Arc::new(Host::new(address, Arc::clone(&self.identity)));
        Arc::clone(
            self.hosts
                .write()
                .entry(address.to_owned())
                .or_insert_with(make),
        )
    }

    /// Forgets servers that are not part of the cluster any more.
    pub(crate) fn keep_only(&self, keep: impl Fn(&str) -> bool) {
        if self.hosts.read().keys().any(|address| !keep(address)) {
            self.hosts.write().retain(|address, _| keep(address));
        }
    }
}

/// One server.
#[derive(Debug)]
pub(crate) struct Host {
    address: String,
    identity: Arc<Identity>,
    conns: Mutex<Conns>,
    changed: Condvar,
    busy: AtomicUsize,
    /// Smoothed time to an answer.
    latency_ns: AtomicU64,
    /// When it failed last, in ms of the monotonic clock; 0 = never.
    failed_ms: AtomicU64,
}

#[derive(Debug, Default)]
struct Conns {
    idle: Vec<Conn>,
    /// Idle, taken and connecting.
    open: usize,
    connecting: usize,
    waiting: usize,
    /// Attempts to connect that failed, and why the last one did.
    failures: u64,
    failure: Option<FsError>,
}

impl Host {
    fn new(address: &str, identity: Arc<Identity>) -> Self {
        Self {
            address: address.to_owned(),
            identity,
            conns: Mutex::default(),
            changed: Condvar::new(),
            busy: AtomicUsize::new(0),
            latency_ns: AtomicU64::new(0),
            failed_ms: AtomicU64::new(0),
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Whether it failed lately.
    pub(crate) fn fails(&self) -> bool {
        let failed = self.failed_ms.load(Ordering::Relaxed);
        failed != 0 && now().saturating_sub(Duration::from_millis(failed)) < FAILING
    }

    /// Order of preference for reads: servers that failed lately last, then by latency and load.
    pub(crate) fn reluctance(&self) -> (bool, u64) {
        let load = 1 + self.busy.load(Ordering::Relaxed) as u64;
        (
            self.fails(),
            self.latency_ns.load(Ordering::Relaxed).saturating_mul(load),
        )
    }

    /// Takes a connection, connecting if none is idle. `None` if all are taken and `wait` is false.
    pub(crate) fn take(
        self: &Arc<Self>,
        patience: &Patience<'_>,
        limit: Duration,
        wait: bool,
    ) -> FsResult<Option<Taken>> {
        let mut conns = self.conns.lock();
        if let Some(conn) = conns.idle.pop() {
            return Ok(Some(self.taken(conn, patience.request())));
        }
        if !wait && conns.open >= OPEN_MAX {
            return Ok(None);
        }
        let (failures, until) = (conns.failures, now() + limit);
        conns.waiting += 1;
        let result = loop {
            if let Some(conn) = conns.idle.pop() {
                break Ok(Some(self.taken(conn, patience.request())));
            }
            if conns.failures != failures {
                break Err(conns
                    .failure
                    .clone()
                    .unwrap_or_else(|| Code::Unavailable.into()));
            }
            if conns.open < OPEN_MAX && conns.connecting < conns.waiting.min(CONNECTING_MAX) {
                conns.open += 1;
                conns.connecting += 1;
                self.start_connecting(&mut conns);
            } else if let Err(error) = patience.wait(&self.changed, &mut conns) {
                break Err(error);
            } else if now() >= until {
                self.mark_failed();
                let what = format!("no connection to {} in time", self.address);
                break Err(FsError::new(Code::Timeout, what));
            }
        };
        conns.waiting -= 1;
        result
    }

    fn start_connecting(self: &Arc<Self>, conns: &mut Conns) {
        let host = Arc::clone(self);
        let thread = std::thread::Builder::new().name("lumeofs-connect".into());
        if let Err(error) = thread.spawn(move || host.connect()) {
            conns.connected(Err(FsError::new(
                Code::Unavailable,
                format!("connect thread: {error}"),
            )));
        }
    }

    fn connect(&self) {
        let conn = Conn::connect(&self.address, &self.identity).and_then(|mut conn| {
            let what = format_args!("connect to {}", self.address);
            match conn.receiver.set_timeout(Some(SLICE)) {
                Ok(()) => Ok(conn),
                Err(error) => Err(FsError::from_net(&error, what)),
            }
        });
        if conn.is_err() {
            self.mark_failed();
        }
        self.conns.lock().connected(conn);
        self.changed.notify_all();
    }

    fn taken(self: &Arc<Self>, conn: Conn, request: RequestId) -> Taken {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Taken {
            host: Arc::clone(self),
            conn: Some(conn),
            request,
        }
    }

    pub(crate) fn mark_failed(&self) {
        self.failed_ms
            .store((now().as_millis() as u64).max(1), Ordering::Relaxed);
    }

    /// The server closed a connection or is silent on it, so the idle ones are probably no better.
    fn drop_idle(&self) {
        self.mark_failed();
        let mut conns = self.conns.lock();
        conns.open -= conns.idle.len();
        conns.idle.clear();
    }

    fn answered(&self, after: Duration) {
        let sample = after.as_nanos() as u64;
        let old = self.latency_ns.load(Ordering::Relaxed);
        // A lost update of a smoothed figure does no harm.
        let new = if old == 0 {
            sample
        } else {
            old - old / 8 + sample / 8
        };
        self.latency_ns.store(new, Ordering::Relaxed);
    }
}

impl Conns {
    fn connected(&mut self, conn: FsResult<Conn>) {
        self.connecting -= 1;
        match conn {
            Ok(conn) => self.idle.push(conn),
            Err(error) => {
                self.open -= 1;
                self.failures += 1;
                self.failure = Some(error);
            }
        }
    }
}

/// A connection that a thread owns. Closed when dropped, unless its reply came.
#[derive(Debug)]
pub(crate) struct Taken {
    host: Arc<Host>,
    conn: Option<Conn>,
    /// All frames of a call bear the same number. One frame is under way on a connection, so its reply is known.
    request: RequestId,
}

/// A request that was sent.
#[derive(Debug)]
pub(crate) struct Pending {
    taken: Taken,
    op: Op,
    sent: Duration,
}

impl Taken {
    /// Sends a request whose answer is waited for at most `limit`.
    pub(crate) fn send(
        mut self,
        op: Op,
        flags: u16,
        limit: Duration,
        header: &impl Message,
        payload: &[u8],
    ) -> FsResult<Pending> {
        let request = self.request.0;
        let payload = if payload.is_empty() {
            &[][..]
        } else {
            &[payload][..]
        };
        let deadline_ms = limit.as_millis() as u32;
        let sender = &mut self.conn.as_mut().expect("owned until given back").sender;
        match sender.request(op, flags, deadline_ms, request, header, payload) {
            Ok(()) => Ok(Pending {
                taken: self,
                op,
                sent: now(),
            }),
            Err(error) => {
                self.host.drop_idle();
                let what = format_args!("send {op:?} to {}", self.host.address);
                Err(FsError::from_net(&error, what))
            }
        }
    }

    fn give_back(mut self) {
        if let Some(conn) = self.conn.take() {
            self.host.busy.fetch_sub(1, Ordering::Relaxed);
            self.host.conns.lock().idle.push(conn);
            self.host.changed.notify_one();
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.conn.take().is_some() {
            self.host.busy.fetch_sub(1, Ordering::Relaxed);
            self.host.conns.lock().open -= 1;
            self.host.changed.notify_one();
        }
    }
}

impl Pending {
    /// Waits for the reply, at most `limit` after sending. `still_right` is asked about every
    /// [`SLICE`]; its error ends the wait.
    pub(crate) fn wait(
        mut self,
        patience: &Patience<'_>,
        limit: Duration,
        still_right: &mut dyn FnMut() -> FsResult<()>,
    ) -> FsResult<Frame> {
        let host = Arc::clone(&self.taken.host);
        let (op, sent) = (self.op, self.sent);
        let mut ended = None;
        let mut waiting = || {
            let late = || FsError::new(Code::Timeout, format!("{op:?} at {}", host.address));
            let go_on = patience.check().and_then(|()| {
                if now() - sent >= limit {
                    Err(late())
                } else {
                    still_right()
                }
            });
            go_on.map_err(|error| {
                ended = Some(error);
                io::ErrorKind::TimedOut.into()
            })
        };
        let receiver = &mut self
            .taken
            .conn
            .as_mut()
            .expect("owned until given back")
            .receiver;
        let frame = match receiver.receive_while(&mut waiting) {
            Ok(frame) => frame,
            Err(error) => {
                return Err(match ended {
                    Some(ended) => {
                        if ended.code == Code::Timeout {
                            // The link may be dead, and with it the connections that are idle.
                            host.drop_idle();
                        }
                        ended
                    }
                    None => {
                        host.drop_idle();
                        // Whatever the connection suffered, the server's answer is not known.
                        let what = format!("{op:?} at {}: {error}", host.address);
                        FsError::new(Code::Unavailable, what)
                    }
                });
            }
        };
        if !frame.fixed.is_reply() || frame.fixed.request != self.taken.request.0 {
            let what = format!(
                "{op:?} at {}: the reply is to another request",
                host.address
            );
            return Err(FsError::new(Code::Unavailable, what));
        }
        host.answered(now() - sent);
        self.taken.give_back();
        Ok(frame)
    }
}
