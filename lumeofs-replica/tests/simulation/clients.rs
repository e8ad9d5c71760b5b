//! Clients that write, read and sync, and check every answer against what they know.
//!
//! Every block has one writer, which writes growing numbers. So a read must show at least the
//! largest number that was acknowledged, or seen, before it began, and at most the largest one that
//! was tried before it ended. After a restart of the whole group only what was synced counts.

mod fencing;

use crate::store::data;
use crate::world::{Core, World, index};
use lumeofs_base::checksum::block_checksums;
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::rng::SplitMix64;
use lumeofs_base::{
    ChunkId, ChunkIndex, ChunkOp, Code, Epoch, FilePart, FsResult, InodeId, Sequence, Version,
};
use lumeofs_replica::{Admission, ReadEnd, ReadStart, WriteRequest, Writer};
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

const CLIENTS: usize = 8;
const CHUNKS: u64 = 20;
const BLOCKS: u64 = 8;
/// Chunks of which only the comparison of all stores is checked.
const OTHERS: u64 = 20;

/// What a write to `offset` says of its chunk: not all say something, and no two the same.
fn part(offset: u64) -> Option<FilePart> {
    let index = (offset / BLOCK_SIZE as u64) as u32;
    (!index.is_multiple_of(3)).then_some(FilePart {
        inode: InodeId(1),
        index: ChunkIndex(index),
        chunk_size: NonZeroU32::MIN,
    })
}

/// What is known of a block.
#[derive(Clone, Debug, Default)]
struct Block {
    tried: u64,
    /// A read that starts now shows at least this.
    floor: u64,
    /// This much survives a restart of the whole group.
    synced: u64,
    /// Acknowledged writes that no sync has covered, with their place.
    unsynced: Vec<(u64, Version)>,
}

#[derive(Clone, Debug)]
enum Doing {
    Write {
        node: usize,
        chunk: u64,
        first: u64,
        numbers: Vec<u64>,
        request: WriteRequest<Vec<u8>>,
    },
    /// An operation whose effect only the comparison of all stores checks.
    Other { node: usize },
    /// The end of the client's own session.
    Fence { node: usize },
    Sync {
        node: usize,
        upto: BTreeMap<(u64, u64), u64>,
    },
    Read {
        node: usize,
        reader: lumeofs_replica::ReadStart,
        chunk: u64,
        block: u64,
        shown: u64,
        floor: u64,
        era: u64,
        barrier: Sequence,
    },
}

#[derive(Clone, Debug, Default)]
struct Client {
    session: u64,
    /// Its session was ended, and the fence is not up.
    ending: bool,
    generation: u32,
    ticket: u64,
    doing: Option<Doing>,
    /// Waits for a change at this node.
    waits: Option<usize>,
    /// A block to write next: the one whose write got no answer.
    again: Option<(u64, u64)>,
}

#[derive(Default)]
pub(crate) struct Clients {
    rng: Option<SplitMix64>,
    clients: Vec<Client>,
    blocks: BTreeMap<(u64, u64), Block>,
    next: u64,
    era: u64,
    /// Epoch in which the group began after its last restart.
    restarted: Epoch,
    wake: Vec<usize>,
    /// Blocks written of late.
    hot: Vec<(u64, u64)>,
    /// Packets of requests that nobody waits for any longer.
    ghosts: Vec<WriteRequest<Vec<u8>>>,
    pub(crate) sessions: fencing::Sessions,
    pub(crate) acknowledged: usize,
    /// Syncs that returned.
    pub(crate) syncs: usize,
    pub(crate) secondary_reads: usize,
    pub(crate) reads: usize,
    pub(crate) lost_tails: usize,
}

impl Clients {
    pub(crate) fn new(rng: SplitMix64) -> Self {
        let mut new = Self {
            rng: Some(rng),
            clients: vec![Client::default(); CLIENTS],
            ..Self::default()
        };
        for client in &mut new.clients {
            client.session = new.sessions.open();
        }
        new
    }

    pub(crate) fn count(&self) -> usize {
        self.clients.len()
    }

    pub(crate) fn take_wake(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.wake)
    }

    /// Takes itself back after it acted on the world; replies that came meanwhile are in `self`.
    pub(crate) fn absorb(&mut self, acted: Self) {
        assert!(
            self.clients.is_empty(),
            "nothing replies while a client acts"
        );
        *self = acted;
    }

    pub(crate) fn waiting_at(&self, node: usize) -> Vec<usize> {
        let waits = |(at, client): (usize, &Client)| (client.waits == Some(node)).then_some(at);
        self.clients.iter().enumerate().filter_map(waits).collect()
    }

    pub(crate) fn on_crash(&mut self, node: usize) {
        // Their deadlines wake them.
        for client in &mut self.clients {
            if client.waits == Some(node) {
                client.waits = None;
            }
        }
    }

    /// The group starts from its members' disks.
    pub(crate) fn on_restart(&mut self, epoch: Epoch) {
        self.era += 1;
        self.restarted = epoch;
        for block in self.blocks.values_mut() {
            block.floor = block.synced;
        }
    }

    fn rng(&mut self) -> &mut SplitMix64 {
        self.rng.as_mut().expect("set when made")
    }

    /// Starts something, or goes on with it. Returns a ticket and when it is late.
    pub(crate) fn act(
        &mut self,
        world: &mut World,
        at: usize,
        stop: bool,
    ) -> Option<(u64, Duration)> {
        self.clients[at].waits = None;
        if let Some(Doing::Read { .. }) = self.clients[at].doing {
            self.finish_read(world, at);
            return None;
        }
        if self.clients[at].doing.is_some() {
            return None;
        }
        if stop {
            return None;
        }
        let Some(node) = world.target() else {
            self.pause(world, at);
            return None;
        };
        self.next += 1;
        let ticket = self.next;
        self.clients[at].ticket = ticket;
        let started = match self.rng().below(10) {
            _ if self.clients[at].ending || self.rng().below(40) == 0 => {
                self.fence(world, at, node)
            }
            0..=3 => self.write(world, at, node),
            4 => self.other(world, at, node),
            5 => self.sync(world, at, node),
            _ => self.read(world, at, node),
        };
        if !started {
            self.pause(world, at);
        }
        let wait = Duration::from_millis(200 + self.rng().below(3000));
        started.then_some((ticket, wait))
    }

    fn pause(&mut self, world: &mut World, at: usize) {
        let _ = world;
        self.wake.push(at);
    }

    fn epoch(&mut self, world: &World) -> Epoch {
        world.config.epoch
    }

    fn write(&mut self, world: &mut World, at: usize, node: usize) -> bool {
        let epoch = self.epoch(world);
        // Blocks of a client: those whose number leaves its own remainder.
        let random = (self.rng().below(CHUNKS), 0);
        let (chunk, first) = match self.clients[at].again.take() {
            Some(place) => place,
            None => (
                random.0,
                (CLIENTS as u64 + at as u64 - random.0 % CLIENTS as u64) % CLIENTS as u64,
            ),
        };
        self.hot.push((chunk, first));
        if self.hot.len() > 6 {
            self.hot.remove(0);
        }
        let block = self.blocks.entry((chunk, first)).or_default();
        block.tried += 1;
        let numbers = vec![block.tried];
        let bytes = data(&numbers);
        let offset = first * BLOCK_SIZE as u64;
        let durable = self.rng().percent(15);
        let client = &mut self.clients[at];
        let request = WriteRequest {
            ticket: client.ticket,
            epoch,
            writer: Writer {
                session: client.session,
                generation: client.generation,
            },
            op: ChunkOp::Write {
                chunk: ChunkId(chunk + 1),
                offset,
                truncations: 0,
                era: 0,
                checksums: block_checksums(offset, &bytes),
                part: part(offset),
            },
            data: bytes,
            durable,
        };
        let doing = Doing::Write {
            node,
            chunk,
            first,
            numbers,
            request: request.clone(),
        };
        client.doing = Some(doing);
        // The world must be able to reply while it is asked.
        let admission = self.ask(world, node, |core, now| core.write(&request, now));
        self.admitted(at, admission)
    }

    fn other(&mut self, world: &mut World, at: usize, node: usize) -> bool {
        let epoch = self.epoch(world);
        let block = BLOCK_SIZE as u64;
        let chunk = ChunkId(100 + self.rng().below(OTHERS));
        let (offset, len) = (
            self.rng().below(6) * block,
            (1 + self.rng().below(4)) * block,
        );
        // They rise all the time: old ones are refused, equal ones must not cut again.
        let truncations = (self.next / 300 + self.rng().below(4)) as u32;
        let kind = self.rng().below(20);
        let bytes = if kind < 12 {
            data(&vec![self.next; (len / block) as usize])
        } else {
            Vec::new()
        };
        let op = match kind {
            0..=11 => {
                let checksums = block_checksums(offset, &bytes);
                ChunkOp::Write {
                    chunk,
                    offset,
                    truncations,
                    era: 0,
                    checksums,
                    part: part(offset),
                }
            }
            12..=15 => ChunkOp::Zero {
                chunk,
                offset,
                len,
                truncations,
                era: 0,
            },
            16..=18 => ChunkOp::Truncate {
                chunk,
                len: offset,
                truncations,
                era: 0,
            },
            _ if chunk > ChunkId(100 + OTHERS / 2) => ChunkOp::Delete { chunk },
            _ => ChunkOp::Zero {
                chunk,
                offset: 0,
                len,
                truncations,
                era: 0,
            },
        };
        let client = &mut self.clients[at];
        let writer = Writer {
            session: client.session,
            generation: client.generation,
        };
        let request = WriteRequest {
            ticket: client.ticket,
            epoch,
            writer,
            op,
            data: bytes,
            durable: false,
        };
        client.doing = Some(Doing::Other { node });
        let admission = self.ask(world, node, |core, now| core.write(&request, now));
        self.admitted(at, admission)
    }

    fn sync(&mut self, world: &mut World, at: usize, node: usize) -> bool {
        let epoch = self.epoch(world);
        // One sync for each epoch of unsynced writes, the oldest first: the newest one's place alone
        // would say nothing about those before it.
        let own = |&(chunk, first): &(u64, u64)| (first + chunk) as usize % CLIENTS == at;
        let unsynced = |blocks: &BTreeMap<(u64, u64), Block>| -> Vec<((u64, u64), u64, Version)> {
            let own = blocks.iter().filter(|(place, _)| own(place));
            own.flat_map(|(place, block)| block.unsynced.iter().map(|(n, v)| (*place, *n, *v)))
                .collect()
        };
        let all = unsynced(&self.blocks);
        let epoch_of_oldest = all.iter().map(|(_, _, version)| version.epoch).min();
        let oldest = all
            .into_iter()
            .filter(|(_, _, version)| Some(version.epoch) == epoch_of_oldest);
        let mut upto = BTreeMap::new();
        let mut after = Version::default();
        for (place, number, version) in oldest {
            after = after.max(version);
            let most = upto.entry(place).or_insert(number);
            *most = number.max(*most);
        }
        self.clients[at].doing = Some(Doing::Sync { node, upto });
        let ticket = self.clients[at].ticket;
        let admission = self.ask(world, node, |core, now| {
            core.sync(ticket, epoch, after, now)
        });
        if let Some(Admission::Refused(error)) = &admission
            && error.code == Code::LostTail
        {
            // Told honestly; what is lost may be forgotten.
            self.lost_tails += 1;
            for (_, block) in self.blocks.iter_mut().filter(|(place, _)| own(place)) {
                block
                    .unsynced
                    .retain(|(_, version)| Some(version.epoch) != epoch_of_oldest);
            }
        }
        self.admitted(at, admission)
    }

    fn ask(
        &mut self,
        world: &mut World,
        node: usize,
        event: impl FnOnce(&mut Core, Duration) -> Admission,
    ) -> Option<Admission> {
        // Replies during the call go to the world's own copy, so lend it this one.
        std::mem::swap(&mut world.clients, self);
        let admission = world.with(node, event);
        std::mem::swap(&mut world.clients, self);
        admission
    }

    fn admitted(&mut self, at: usize, admission: Option<Admission>) -> bool {
        match admission {
            Some(Admission::Taken) => true,
            None | Some(Admission::Wait | Admission::Forward(_) | Admission::Refused(_)) => {
                // Refused before it was ordered: it surely did not happen, so its number may not show.
                self.clients[at].doing = None;
                false
            }
        }
    }

    /// A reply of the group. Returns the client that goes on.
    pub(crate) fn on_reply(
        &mut self,
        _now: Duration,
        ticket: u64,
        result: FsResult<Version>,
    ) -> Option<usize> {
        let at = self
            .clients
            .iter()
            .position(|client| client.ticket == ticket)?;
        let doing = self.clients[at].doing.take()?;
        match (doing, result) {
            (
                Doing::Write {
                    chunk,
                    first,
                    numbers,
                    request,
                    ..
                },
                Ok(version),
            ) => {
                self.acknowledged += 1;
                for (index, number) in numbers.into_iter().enumerate() {
                    let block = self
                        .blocks
                        .get_mut(&(chunk, first + index as u64))
                        .expect("tried");
                    block.floor = block.floor.max(number);
                    block.unsynced.push((number, version));
                    if request.durable {
                        block.synced = block.synced.max(number);
                    }
                }
            }
            (
                Doing::Write {
                    chunk,
                    first,
                    request,
                    ..
                },
                Err(_),
            ) => {
                self.clients[at].generation += 1;
                self.clients[at].again = Some((chunk, first));
                self.ghosts.push(request);
            }
            (Doing::Sync { upto, .. }, Ok(_)) => {
                self.syncs += 1;
                for (place, number) in upto {
                    let block = self.blocks.get_mut(&place).expect("tried");
                    block.synced = block.synced.max(number);
                    block.floor = block.floor.max(number);
                    block.unsynced.retain(|(unsynced, _)| *unsynced > number);
                }
            }
            (Doing::Fence { .. }, Ok(_)) => self.fence_is_up(at),
            (Doing::Sync { .. } | Doing::Fence { .. }, Err(_)) | (Doing::Other { .. }, Ok(_)) => {}
            (Doing::Other { .. }, Err(error)) => {
                // A refusal of the operation itself is an answer like any other.
                self.clients[at].generation += u32::from(error.code == Code::StaleEpoch);
            }
            (doing @ Doing::Read { .. }, _) => self.clients[at].doing = Some(doing),
        }
        Some(at)
    }

    /// A client has waited long enough.
    pub(crate) fn on_late(&mut self, at: usize, ticket: u64) -> (Option<usize>, Option<usize>) {
        let client = &mut self.clients[at];
        if client.ticket != ticket {
            return (None, None);
        }
        match client.doing.take() {
            None => (None, None),
            Some(Doing::Write {
                node,
                chunk,
                first,
                request,
                ..
            }) => {
                // It may still happen; a retry goes with a higher generation (D3).
                client.generation += 1;
                client.again = Some((chunk, first));
                self.ghosts.push(request);
                (Some(at), Some(node))
            }
            Some(Doing::Other { node }) => {
                client.generation += 1;
                (Some(at), Some(node))
            }
            Some(Doing::Sync { node, .. } | Doing::Read { node, .. } | Doing::Fence { node }) => {
                client.waits = None;
                (Some(at), Some(node))
            }
        }
    }

    fn read(&mut self, world: &mut World, at: usize, node: usize) -> bool {
        let epoch = self.epoch(world);
        let random = (self.rng().below(CHUNKS), self.rng().below(BLOCKS));
        let hot = self.rng().below(8) as usize;
        let (chunk, block) = self.hot.get(hot).copied().unwrap_or(random);
        let floor = self
            .blocks
            .get(&(chunk, block))
            .map_or(0, |block| block.floor);
        let start = world.with(node, |core, now| {
            core.read_start(epoch, ChunkId(chunk + 1), now)
        });
        let Some(reader @ ReadStart::Read(_)) = start else {
            return false;
        };
        let store = &world.nodes[node].store.now;
        let shown = store
            .chunks
            .get(&ChunkId(chunk + 1))
            .and_then(|contents| contents.blocks.get(&block))
            .copied()
            .unwrap_or(0);
        let barrier = world.with(node, |core, _| core.read_barrier(ChunkId(chunk + 1)));
        let barrier = barrier.unwrap_or_default();
        let era = self.era;
        self.clients[at].doing = Some(Doing::Read {
            node,
            reader,
            chunk,
            block,
            shown,
            floor,
            era,
            barrier,
        });
        self.finish_read(world, at);
        true
    }

    fn finish_read(&mut self, world: &mut World, at: usize) {
        let Some(Doing::Read {
            node,
            reader,
            chunk,
            block,
            shown,
            floor,
            era,
            barrier,
        }) = self.clients[at].doing.clone()
        else {
            return;
        };
        let ReadStart::Read(reader) = reader else {
            return;
        };
        match world.with(node, |core, now| core.read_end(reader, barrier, now)) {
            Some(ReadEnd::Wait) => {
                self.clients[at].waits = Some(node);
                return;
            }
            Some(ReadEnd::Answer) => {
                self.reads += 1;
                self.secondary_reads +=
                    usize::from(matches!(reader, lumeofs_replica::Reader::Secondary { .. }));
                let known = self.blocks.entry((chunk, block)).or_default();
                if era == self.era {
                    assert!(
                        shown >= floor,
                        "stale read at node {node} as {reader:?}: chunk {chunk} block {block} shows {shown}, \
                         acknowledged or seen before: {floor}"
                    );
                    known.floor = known.floor.max(shown);
                }
                assert!(
                    shown <= known.tried,
                    "chunk {chunk} block {block} shows {shown}, never written"
                );
            }
            Some(ReadEnd::Refused(_)) | None => {}
        }
        self.clients[at].doing = None;
        self.wake.push(at);
    }

    /// A packet that a client has long given up, which reaches a primary late.
    pub(crate) fn ghost(&mut self) -> Option<WriteRequest<Vec<u8>>> {
        // A group that restarted has forgotten its writers; there it is the epoch alone that fences.
        self.ghosts.retain(|ghost| ghost.epoch >= self.restarted);
        let at = self.rng().below(8) as usize;
        (at < self.ghosts.len()).then(|| self.ghosts.swap_remove(at))
    }

    /// After everything converged: what must be there is there.
    pub(crate) fn check_final(&self, world: &World) {
        let primary = index(world.config.primary);
        for (&(chunk, block), known) in &self.blocks {
            let contents = world.nodes[primary]
                .store
                .now
                .chunks
                .get(&ChunkId(chunk + 1));
            let shown = contents
                .and_then(|contents| contents.blocks.get(&block))
                .copied()
                .unwrap_or(0);
            assert!(
                shown >= known.floor,
                "chunk {chunk} block {block} shows {shown}, acknowledged: {} (synced: {})",
                known.floor,
                known.synced
            );
        }
    }
}
