//! One member alone, told by hand what it sees: orders of events that dice hardly ever give.

use lumeofs_base::checksum::block_checksums;
use lumeofs_base::{
    ChunkId, ChunkOp, ChunkState, Code, Epoch, FsError, GroupConfig, GroupId, NodeId, Sequence,
    Version,
};
use lumeofs_replica::{
    Admission, BeaconAnswer, BeaconItem, BeaconSent, CopyStep, Effect, Entry, Group, Local,
    Outcome, PeerState, Piece, ReadEnd, ReadStart, StreamId, SyncPoint, ToMember, ToPrimary, Work,
    WriteRequest, Writer,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const A: NodeId = NodeId(1);
const B: NodeId = NodeId(2);
const C: NodeId = NodeId(3);

fn config(epoch: u64, primary: NodeId, in_sync: &[NodeId]) -> GroupConfig {
    GroupConfig {
        group: GroupId(1),
        epoch: Epoch(epoch),
        primary,
        members: vec![A, B, C],
        in_sync: in_sync.to_vec(),
        leaving: Vec::new(),
        replicas: 3,
    }
}

fn version(epoch: u64, sequence: u64) -> Version {
    Version {
        epoch: Epoch(epoch),
        sequence: Sequence(sequence),
    }
}

fn write_op() -> (ChunkOp, Vec<u8>) {
    let data = vec![7; 4096];
    let op = ChunkOp::Write {
        era: 0,
        chunk: ChunkId(1),
        offset: 0,
        truncations: 0,
        checksums: block_checksums(0, &data),
        part: None,
    };
    (op, data)
}

fn entry(version: Version) -> Arc<Entry<Vec<u8>>> {
    let (op, data) = write_op();
    Arc::new(Entry {
        version,
        writer: Writer::default(),
        op,
        data,
    })
}

/// A core, its clock, and what it wanted done since it was last asked.
struct Bench {
    core: Group<Vec<u8>>,
    now: Duration,
    effects: Vec<Effect<Vec<u8>>>,
    /// The last one opened to each member.
    streams: BTreeMap<NodeId, StreamId>,
}

impl Bench {
    fn new(me: NodeId, config: GroupConfig) -> Self {
        let now = Duration::from_secs(100);
        let core = Group::new(me, config, Local::default(), 1, now);
        Self {
            core,
            now,
            effects: Vec::new(),
            streams: BTreeMap::new(),
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 20 {
            self.now += Duration::from_millis(20);
            self.core.on_tick(self.now);
        }
        self.collect();
    }

    fn collect(&mut self) {
        self.effects.extend(self.core.take_effects());
    }

    fn take<T>(&mut self, wanted: impl Fn(&Effect<Vec<u8>>) -> Option<T>) -> Vec<T> {
        self.collect();
        let found = self.effects.iter().filter_map(wanted).collect();
        self.effects.clear();
        found
    }

    fn proposals(&mut self) -> Vec<GroupConfig> {
        self.take(|effect| match effect {
            Effect::Propose { config, .. } => Some(config.clone()),
            _ => None,
        })
    }

    fn opened(&mut self) -> Vec<(NodeId, StreamId)> {
        self.take(|effect| match effect {
            Effect::Open { to, stream } => Some((*to, *stream)),
            _ => None,
        })
    }

    fn syncs(&mut self) -> Vec<SyncPoint> {
        self.take(|effect| match effect {
            Effect::Work(Work::Sync { upto }) => Some(*upto),
            _ => None,
        })
    }

    fn acks(&mut self) -> Vec<(Sequence, Sequence)> {
        self.take(|effect| match effect {
            Effect::Answer {
                message: ToPrimary::Ack { applied, durable },
                ..
            } => Some((*applied, *durable)),
            _ => None,
        })
    }

    fn replies(&mut self) -> usize {
        let replies = self.take(|effect| matches!(effect, Effect::Reply { .. }).then_some(()));
        replies.len()
    }

    /// Attaches a member that has everything up to `last`.
    fn attach(&mut self, member: NodeId, stream: StreamId, last: Version) {
        self.streams.insert(member, stream);
        self.core.on_stream_open(member, stream, self.now);
        let attached = ToPrimary::Attached {
            complete: true,
            last,
            tail_from: last.sequence.next(),
            applied: last.sequence,
            durable: last.sequence,
        };
        self.core.on_answer(member, stream, attached, self.now);
    }

    fn answer_of(&self, item: BeaconItem) -> (BeaconAnswer, BeaconSent) {
        let (epoch, at) = (item.epoch, self.now);
        let answer = BeaconAnswer {
            epoch,
            low_space: false,
        };
        (answer, BeaconSent { epoch, at })
    }

    /// A beacon that is answered at once.
    fn beacon(&mut self, to: NodeId) -> BeaconItem {
        let item = self.core.beacon(to, self.now).expect("it leads");
        let (answer, sent) = self.answer_of(item);
        self.core
            .on_beacon_answer(to, answer, sent, self.now, self.now);
        item
    }

    fn write(&mut self, ticket: u64) -> Admission {
        let (op, data) = write_op();
        self.write_of(ticket, op, data)
    }

    fn write_of(&mut self, ticket: u64, op: ChunkOp, data: Vec<u8>) -> Admission {
        let request = WriteRequest {
            ticket,
            epoch: self.core.config().epoch,
            writer: Writer::default(),
            op,
            data,
            durable: false,
        };
        self.core.write(&request, self.now)
    }

    fn message(&mut self, stream: StreamId, message: ToMember<Vec<u8>>) {
        self.core.on_message(A, stream, message, self.now);
    }

    fn op(&mut self, stream: StreamId, version: Version, committed: u64) {
        let message = ToMember::Op {
            entry: entry(version),
            committed: Sequence(committed),
            sync: true,
        };
        self.message(stream, message);
        self.core.on_applied(version, Outcome::Applied, self.now);
    }

    /// A catch-up that finds nothing to copy.
    fn catch_up(&mut self, stream: StreamId, last: Version) {
        self.message(stream, ToMember::CatchUp { position: last });
        self.done(stream, last);
        self.core.on_finished(stream);
    }

    fn done(&mut self, stream: StreamId, last: Version) {
        let (starts, writers) = (vec![(last.epoch, Sequence(1))], Vec::new());
        self.message(
            stream,
            ToMember::Done {
                fence: lumeofs_base::Fence::default(),
                last,
                starts,
                writers,
            },
        );
    }
}

fn restarted(node: NodeId, epoch: u64) -> PeerState {
    PeerState {
        node,
        epoch: Epoch(epoch),
        complete: false,
        eligible: true,
        last: Version::default(),
    }
}

/// A as serving primary of epoch 2, all in sync.
fn primary() -> Bench {
    let mut bench = Bench::new(A, config(1, A, &[A, B, C]));
    for node in [B, C] {
        bench.core.on_peer_state(restarted(node, 1), bench.now);
    }
    let proposal = bench.proposals().pop().expect("all have restarted");
    assert_eq!(proposal.in_sync, [A, B, C]);
    bench.core.on_proposed(&proposal, bench.now);
    for (member, stream) in bench.opened() {
        bench.attach(member, stream, Version::default());
    }
    for node in [B, C, B, C] {
        bench.beacon(node);
    }
    assert!(!bench.core.state(bench.now).lease_left.is_zero());
    bench.collect();
    bench
}

/// A as serving primary of A and B that copies chunk 1 to C, and the stream to C.
fn primary_that_copies() -> (Bench, StreamId) {
    let mut bench = Bench::new(A, config(1, A, &[A, B]));
    bench.core.on_peer_state(restarted(B, 1), bench.now);
    let proposal = bench.proposals().pop().expect("all have restarted");
    bench.core.on_proposed(&proposal, bench.now);
    let opened = bench.opened();
    for &(member, stream) in &opened {
        if member == B {
            bench.attach(B, stream, Version::default());
        } else {
            bench.core.on_stream_open(C, stream, bench.now);
            let last = Version::default();
            let attached = ToPrimary::Attached {
                complete: false,
                last,
                tail_from: last.sequence.next(),
                applied: last.sequence,
                durable: last.sequence,
            };
            bench.core.on_answer(C, stream, attached, bench.now);
        }
    }
    bench.beacon(B);
    bench.beacon(B);
    let stream = opened.iter().find(|(member, _)| *member == C).unwrap().1;
    let nothing = ToPrimary::Listed {
        chunks: Vec::new(),
        end: true,
    };
    bench.core.on_answer(C, stream, nothing, bench.now);
    let state = ChunkState {
        chunk: ChunkId(1),
        version: version(1, 1),
        len: 3 * 4096,
        truncations: 1,
        deleted: false,
        part: None,
    };
    bench
        .core
        .on_own_list(C, stream, vec![state], true, bench.now);
    (bench, stream)
}

/// B as complete member of epoch 1, which A leads, with a history up to `last`, on stream 1.
fn member(last: Version) -> Bench {
    let mut bench = Bench::new(B, config(1, A, &[A, B, C]));
    let config = bench.core.config().clone();
    bench.message(1, ToMember::Attach { config });
    bench.catch_up(1, last);
    assert!(bench.core.peer_state().complete);
    bench.collect();
    bench
}

/// Lets B read.
fn lease(bench: &mut Bench, committed: u64) {
    let mut item = BeaconItem {
        epoch: Epoch(1),
        committed: Sequence(committed),
        echo: None,
    };
    bench.core.on_beacon(A, item, bench.now);
    item.echo = Some(bench.now);
    bench.core.on_beacon(A, item, bench.now);
}

#[test]
fn a_member_that_may_be_removed_any_moment_gets_no_read_lease() {
    let mut bench = primary();
    assert!(bench.beacon(B).echo.is_some());
    // Its stream breaks, and it is out of reach until its removal is proposed.
    let stream = bench.streams[&B];
    bench.core.on_stream_closed(B, stream, bench.now);
    let mut proposed = Vec::new();
    for _ in 0..10 {
        bench.pass(200);
        bench.beacon(C);
        for effect in std::mem::take(&mut bench.effects) {
            match effect {
                Effect::Open { to, stream } => {
                    bench.core.on_stream_closed(to, stream, bench.now);
                }
                Effect::Propose { config, .. } => proposed.push(config),
                _ => {}
            }
        }
        if !proposed.is_empty() {
            break;
        }
    }
    assert_eq!(proposed.pop().expect("a removal").in_sync, [A, C]);
    // It is back before that is decided.
    let mut back = Vec::new();
    while back.is_empty() {
        bench.pass(100);
        bench.beacon(C);
        back = bench.opened();
    }
    bench.attach(B, back[0].1, Version::default());
    for _ in 0..3 {
        assert_eq!(bench.beacon(B).echo, None);
        bench.pass(200);
        bench.beacon(C);
    }
    // The proposal was lost: another one brings an epoch in which it reads again.
    let mut next = Vec::new();
    while next.is_empty() {
        bench.pass(200);
        bench.beacon(B);
        bench.beacon(C);
        next = bench.proposals();
    }
    assert_eq!(next[0].in_sync, bench.core.config().in_sync);
    bench.core.on_proposed(&next[0], bench.now);
    bench.beacon(B);
    assert!(bench.beacon(B).echo.is_some());
}

#[test]
fn an_answer_to_a_beacon_of_an_older_epoch_renews_no_lease() {
    let mut bench = primary();
    bench.pass(1000);
    let old = bench.core.beacon(B, bench.now).unwrap();
    bench.beacon(C);
    let (mut answer, sent) = bench.answer_of(old);
    let left = bench.core.state(bench.now).lease_left;
    // B was in the next epoch already when that beacon came, and refused it.
    bench.core.on_proposed(&config(3, A, &[A, B, C]), bench.now);
    answer.epoch = Epoch(3);
    bench
        .core
        .on_beacon_answer(B, answer, sent, bench.now, bench.now);
    assert_eq!(bench.core.state(bench.now).lease_left, left);
    bench.beacon(B);
    assert!(bench.core.state(bench.now).lease_left > left);
}

#[test]
fn a_sync_of_a_history_that_was_replaced_says_nothing_of_the_next() {
    let mut bench = member(version(1, 5));
    for sequence in 6..=9 {
        bench.op(1, version(1, sequence), 5);
    }
    let old = bench.syncs().pop().expect("asked for");
    bench.catch_up(1, version(1, 7));
    for sequence in 8..=9 {
        bench.op(1, version(1, sequence), 7);
    }
    bench.acks();
    bench.core.on_durable(old, bench.now);
    bench.pass(20);
    assert_eq!(bench.acks(), []);
    assert_eq!(bench.core.state(bench.now).durable, Sequence(7));
}

#[test]
fn what_was_committed_in_a_history_that_was_replaced_is_not_in_the_next() {
    let mut bench = member(version(1, 5));
    for sequence in 6..=9 {
        bench.op(1, version(1, sequence), sequence);
    }
    assert_eq!(bench.core.state(bench.now).committed, Sequence(9));
    bench.catch_up(1, version(1, 5));
    bench.collect();
    bench.effects.clear();
    bench.core.on_config(&config(2, B, &[B, C]), bench.now);
    for (member, stream) in bench.opened() {
        if member == C {
            bench.attach(member, stream, version(1, 5));
        }
    }
    bench.beacon(C);
    assert_eq!(bench.write(1), Admission::Taken);
    bench
        .core
        .on_applied(version(2, 6), Outcome::Applied, bench.now);
    assert_eq!(bench.replies(), 0, "C has not acknowledged it");
    // Its own disk is nothing to the client: another member tells it what became of the write.
    let broken = FsError::new(Code::Io, "the disk is gone");
    bench.core.on_store_failed(&broken, version(2, 6));
    let replies = bench.take(|effect| match effect {
        Effect::Reply { result, .. } => result.as_ref().err().map(|error| error.code),
        _ => None,
    });
    assert_eq!(replies, [Code::StaleEpoch]);
}

#[test]
fn a_member_whose_catch_up_has_not_reached_the_disk_must_not_lead() {
    let mut bench = Bench::new(B, config(1, A, &[A, B, C]));
    let config = bench.core.config().clone();
    bench.message(1, ToMember::Attach { config });
    let position = version(1, 5);
    bench.message(1, ToMember::CatchUp { position });
    let state = ChunkState {
        chunk: ChunkId(1),
        version: position,
        len: 0,
        truncations: 0,
        deleted: false,
        part: None,
    };
    bench.message(1, ToMember::Copy(CopyStep::Begin { chunk: ChunkId(1) }));
    bench.message(1, ToMember::Copy(CopyStep::End { state }));
    bench.done(1, position);
    assert!(!bench.core.peer_state().eligible);
    // Copies that were queued before the end go with it.
    let full = FsError::new(Code::NoSpace, "no room for the copy");
    bench.core.on_store_failed(&full, Version::default());
    assert!(!bench.core.peer_state().eligible);
}

#[test]
fn a_member_just_caught_up_reads_nothing_that_may_not_be_committed() {
    let mut bench = member(version(1, 5));
    lease(&mut bench, 4);
    let start = |bench: &mut Bench| bench.core.read_start(Epoch(1), ChunkId(1), bench.now);
    assert!(matches!(start(&mut bench), ReadStart::Refused(_)));
    lease(&mut bench, 5);
    assert!(matches!(start(&mut bench), ReadStart::Read(_)));
}

#[test]
fn what_was_read_before_a_catch_up_is_not_shown_after_it() {
    let mut bench = member(version(1, 5));
    lease(&mut bench, 5);
    let ReadStart::Read(reader) = bench.core.read_start(Epoch(1), ChunkId(1), bench.now) else {
        panic!("it has a lease");
    };
    bench.catch_up(1, version(1, 5));
    lease(&mut bench, 5);
    let barrier = bench.core.read_barrier(ChunkId(1));
    let end = bench.core.read_end(reader, barrier, bench.now);
    assert!(matches!(end, ReadEnd::Refused(_)));
}

#[test]
fn a_copy_follows_truncations_as_the_store_does() {
    let (mut bench, stream) = primary_that_copies();
    let piece = |offset: u64| Piece {
        chunk: ChunkId(1),
        offset,
        checksums: block_checksums(offset, &[5; 4096]),
        data: vec![5; 4096],
        truncations: 1,
        end: None,
    };
    bench.core.on_piece(C, stream, piece(0), bench.now);
    let cut = |truncations| ChunkOp::Truncate {
        era: 0,
        chunk: ChunkId(1),
        len: 0,
        truncations,
    };
    let (mut write, data) = write_op();
    if let ChunkOp::Write { truncations, .. } = &mut write {
        *truncations = 2;
    }
    // The chunk was cut by number 1. What comes while the next piece is read waits for that.
    for (op, data) in [
        (cut(1), Vec::new()),
        (write, data),
        (cut(2), Vec::new()),
        (cut(2), Vec::new()),
    ] {
        assert_eq!(bench.write_of(9, op, data), Admission::Taken);
    }
    bench.collect();
    bench.effects.clear();
    bench.core.on_piece(C, stream, piece(4096), bench.now);
    let followed = bench.take(|effect| match effect {
        Effect::Send { to, message, .. } if *to == C => match message {
            ToMember::Skip { .. } => Some("skip"),
            ToMember::Patch { entry } if matches!(entry.op, ChunkOp::Zero { .. }) => Some("zeros"),
            ToMember::Patch { .. } => Some("data"),
            _ => None,
        },
        _ => None,
    });
    assert_eq!(followed, ["skip", "data", "zeros", "skip"]);
}

#[test]
fn a_promise_to_an_earlier_primary_outlasts_the_next_one() {
    let mut bench = member(version(1, 5));
    lease(&mut bench, 5);
    let promised = bench.now;
    bench.core.on_config(&config(2, C, &[B, C]), bench.now);
    let mut proposals = Vec::new();
    while proposals.is_empty() {
        bench.pass(100);
        bench.core.on_peer_state(restarted(C, 2), bench.now);
        proposals = bench.proposals();
        assert!(bench.now < promised + Duration::from_secs(5), "never");
    }
    assert!(bench.now >= promised + Duration::from_secs(2));
}

#[test]
fn a_claim_that_came_to_nothing_is_withdrawn() {
    // B restarted and finds nobody, so it proposes itself; the proposal is lost.
    let mut bench = Bench::new(B, config(1, A, &[A, B, C]));
    bench.pass(2900);
    assert_eq!(bench.proposals(), []);
    bench.pass(200);
    assert_eq!(bench.proposals(), [config(2, B, &[A, B, C])]);
    // Then the primary is there after all.
    let item = BeaconItem {
        epoch: Epoch(1),
        committed: Sequence(5),
        echo: None,
    };
    let alive = PeerState {
        complete: true,
        ..restarted(A, 1)
    };
    for _ in 0..15 {
        bench.pass(200);
        bench.core.on_beacon(A, item, bench.now);
        bench.core.on_peer_state(alive, bench.now);
    }
    let bump = bench.proposals().pop().expect("an epoch that decides");
    assert_eq!((bump.primary, bump.in_sync.len()), (A, 3));
    bench.core.on_proposed(&bump, bench.now);
    let item = BeaconItem {
        epoch: Epoch(2),
        ..item
    };
    assert_eq!(
        bench.core.on_beacon(A, item, bench.now).epoch,
        Epoch(2),
        "supported again"
    );
}
