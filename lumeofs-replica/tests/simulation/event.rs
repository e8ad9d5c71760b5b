//! What the queue of events holds.

use lumeofs_base::{Epoch, GroupConfig};
use lumeofs_replica::{BeaconAnswer, BeaconItem, BeaconSent, PeerState, StreamId, SyncPoint};
use std::time::Duration;

/// Something that will happen. Nodes are indexes; `u32` beside one is its incarnation.
#[derive(Debug)]
pub(crate) enum Event {
    Tick(usize),
    Beacons(usize),
    Work(usize, u32),
    Durable(usize, u32, SyncPoint),
    Connect {
        from: usize,
        to: usize,
        stream: StreamId,
    },
    Deliver(StreamId),
    DeliverAnswer(StreamId),
    /// The end of a stream reaches its opener, or the other side.
    Closed {
        stream: StreamId,
        opener: bool,
    },
    Beacon {
        from: usize,
        to: usize,
        item: BeaconItem,
        sent: Duration,
    },
    BeaconAnswer {
        from: usize,
        to: usize,
        answer: BeaconAnswer,
        sent: BeaconSent,
        answered: Duration,
    },
    Reset {
        at: usize,
        from: usize,
    },
    Ask {
        from: usize,
        to: usize,
    },
    State {
        to: usize,
        state: PeerState,
    },
    Proposal {
        from: usize,
        expected: Epoch,
        config: GroupConfig,
        restart: bool,
    },
    Proposed {
        to: usize,
        config: GroupConfig,
    },
    Fetch(usize),
    Config {
        to: usize,
        config: GroupConfig,
    },
    Heartbeat(usize),
    Restart(usize),
    Fault,
    Plan,
    Client(usize),
    ClientLate(usize, u64),
    Ghost,
    Crash(usize),
    DiskWorks(usize),
}
