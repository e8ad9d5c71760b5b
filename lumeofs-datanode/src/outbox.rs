//! Messages on their way to a socket, in order, whoever sends them.
//!
//! A thread that may block sends right after it queued, unless another one is at it: that saves a
//! thread switch. Threads that must not block leave it to the outbox's own thread.

use lumeofs_proto::blocking::{Closer, FrameSender};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;

/// How a message becomes a frame.
pub(crate) type SendOne<M> = Box<dyn Fn(&mut FrameSender, M) -> io::Result<()> + Send + Sync>;

/// A queue in front of a socket.
pub(crate) struct Outbox<M> {
    state: Mutex<State<M>>,
    ready: Condvar,
    send_one: SendOne<M>,
}

struct State<M> {
    queue: VecDeque<M>,
    /// Taken while a thread sends.
    sender: Option<FrameSender>,
    closer: Option<Closer>,
    closed: bool,
}

impl<M> Outbox<M> {
    pub(crate) fn new(send_one: SendOne<M>) -> Self {
        let state = State {
            queue: VecDeque::new(),
            sender: None,
            closer: None,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            ready: Condvar::new(),
            send_one,
        }
    }

    /// Gives the outbox its connection. False if it has been closed.
    pub(crate) fn connected(&self, sender: FrameSender, closer: Closer) -> bool {
        let mut state = self.state.lock();
        if state.closed {
            closer.close();
            return false;
        }
        (state.sender, state.closer) = (Some(sender), Some(closer));
        self.ready.notify_one();
        true
    }

    /// Queues a message. `merges` says whether it makes the last queued one superfluous.
    pub(crate) fn push(&self, message: M, merges: impl FnOnce(&M, &M) -> bool) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        match state.queue.back_mut() {
            Some(last) if merges(last, &message) => *last = message,
            _ => state.queue.push_back(message),
        }
    }

    /// Sends what is queued on this thread, which may block, unless another thread is sending.
    pub(crate) fn flush(&self) {
        let mut state = self.state.lock();
        let Some(mut sender) = state.sender.take() else {
            return;
        };
        while let (false, Some(message)) = (state.closed, state.queue.pop_front()) {
            drop(state);
            let sent = (self.send_one)(&mut sender, message);
            state = self.state.lock();
            if sent.is_err() {
                state.end();
            }
        }
        state.sender = Some(sender);
    }

    /// Has the outbox's own thread send what is queued.
    pub(crate) fn nudge(&self) {
        self.ready.notify_one();
    }

    /// What the outbox's own thread does until the outbox is closed.
    pub(crate) fn run(&self) {
        let mut state = self.state.lock();
        while !state.closed {
            let idle = state.queue.is_empty() || state.sender.is_none();
            if idle {
                self.ready.wait(&mut state);
                continue;
            }
            drop(state);
            self.flush();
            state = self.state.lock();
        }
    }

    /// Ends the connection, or keeps it from being used once it is there.
    pub(crate) fn close(&self) {
        self.state.lock().end();
        self.ready.notify_all();
    }

    /// Sends what is queued, then ends the connection.
    pub(crate) fn finish(&self) {
        self.flush();
        self.close();
    }
}

impl<M> State<M> {
    fn end(&mut self) {
        self.closed = true;
        self.queue.clear();
        if let Some(closer) = self.closer.take() {
            closer.close();
        }
    }
}
