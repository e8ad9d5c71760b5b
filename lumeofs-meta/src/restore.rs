//! The tables of a new cluster's masters, made from those of one whose masters are all lost.
//!
//! The dump may be old, and nobody knows what was decided after it: datanodes and mounts may hold ids, eras, epochs,
//! fences and truncation numbers that the dump has not heard of. So every counter jumps farther than it can have come
//! in the life of a cluster, all sessions end, and what could delete anything is held. Rows are changed one by one, so
//! that any number of them needs no memory.

use crate::controller::{MasterRecord, MasterState};
use crate::keys;
use crate::record::{Inode, Policy, Session, State, decode, encode};
use lumeofs_base::limits::SLOT_COUNT;
use lumeofs_base::{FileKind, GroupConfig, GroupId, NodeId, NodeInfo, SessionId, SlotId};
use std::collections::BTreeSet;

/// A row of the tables.
pub type Row = (Vec<u8>, Vec<u8>);

/// Chunk ids; 2^63 are valid.
const CHUNK_JUMP: u64 = 1 << 44;
/// Session ids.
const SESSION_JUMP: u64 = 1 << 40;
/// Inode ids of each slot, of 2^48.
const INODE_JUMP: u64 = 1 << 36;
/// Fences.
const FENCE_JUMP: u64 = 1 << 32;
/// Eras, of 2^32: a cluster that begins one every ten minutes takes 20 years for so many.
const ERA_JUMP: u32 = 1 << 20;
/// Truncation numbers of a file, of 2^32.
const TRUNCATION_JUMP: u32 = 1 << 20;
/// Ids of masters and datanodes: people read them.
const NODE_JUMP: u64 = 1000;
/// Ids of replica groups.
const GROUP_JUMP: u32 = 1000;
/// Indices of a Raft log.
pub const INDEX_JUMP: u64 = 1 << 40;
/// Terms of a Raft group, of 2^48 on the wire.
pub const TERM_JUMP: u64 = 1 << 24;

/// By what a session is known that stands for all that the lost masters had.
const LOST_SESSIONS: &str = "all sessions of the lost masters";

/// What a dump says of itself: for people, and for what is made from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Inodes, as counted.
    pub inodes: u64,
    /// Bytes of files, as counted.
    pub bytes: u64,
    /// Sessions that were open.
    pub sessions: u64,
    /// Datanodes.
    pub datanodes: Vec<NodeId>,
    /// Masters that took part.
    pub masters: Vec<(NodeId, String)>,
    /// Replica groups.
    pub groups: u64,
    /// The highest id of a node.
    last_node: u64,
}

impl Contents {
    /// Takes note of a row of either group.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        let is_in = |table: std::ops::Range<[u8; 1]>| key.starts_with(&table.start);
        if key == keys::STATE {
            let state: State = decode(value);
            (self.inodes, self.bytes) = (state.inodes, state.bytes);
        } else if is_in(keys::all::SESSIONS) {
            self.sessions += u64::from(decode::<Session>(value).ending.is_none());
        } else if is_in(keys::all::GROUPS) || is_in(keys::all::SOUGHT) {
            self.groups += 1;
        } else if is_in(keys::all::NODES) {
            let node: NodeInfo = decode(value);
            self.datanodes.push(node.id);
            self.takes(node.id);
        } else if is_in(keys::all::MASTER_RECORDS) {
            let master: MasterRecord = decode(value);
            self.takes(master.id);
            if master.state != MasterState::Removed {
                self.masters.push((master.id, master.address));
            }
        } else if is_in(keys::all::MASTERS)
            || is_in(keys::all::REMOVED_NODES)
            || is_in(keys::all::ALLOCATIONS)
        {
            self.takes(NodeId(keys::first(key)));
        }
    }

    fn takes(&mut self, id: NodeId) {
        self.last_node = self.last_node.max(id.get());
    }

    /// The id of the first master that is made from the dump: no node had it.
    pub fn first_master(&self) -> NodeId {
        NodeId(self.last_node + NODE_JUMP)
    }
}

/// Changes the tables of the metadata group.
#[derive(Debug, Default)]
pub struct Metadata {
    slots: BTreeSet<SlotId>,
    state: Option<State>,
    era: u32,
}

impl Metadata {
    /// The row that takes the place of one of the dump's, if any.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Option<Row> {
        let is_in = |table: std::ops::Range<[u8; 1]>| key.starts_with(&table.start);
        if key == keys::STATE {
            let state = jumped(decode(value));
            let row = (key.to_vec(), encode(&state));
            self.state = Some(state);
            return Some(row);
        }
        if key == keys::ERA {
            self.era = decode(value);
            return None;
        }
        if is_in(keys::all::COUNTERS) {
            let slot = SlotId(u16::from_be_bytes([key[1], key[2]]));
            self.slots.insert(slot);
            return Some((key.to_vec(), encode(&(decode::<u64>(value) + INODE_JUMP))));
        }
        if is_in(keys::all::INODES) {
            let mut inode: Inode = decode(value);
            if inode.attr.kind == FileKind::Regular {
                inode.attr.truncations = inode.attr.truncations.wrapping_add(TRUNCATION_JUMP);
            }
            return Some((key.to_vec(), encode(&inode)));
        }
        let ends = [
            keys::all::SESSIONS,
            keys::all::OUTCOMES,
            keys::all::NONCES,
            keys::all::LEASEHOLDERS,
            keys::all::LOCKS,
            keys::all::LOCKED,
        ];
        let stays = !ends.into_iter().any(is_in);
        stays.then(|| (key.to_vec(), value.to_vec()))
    }

    /// The rows that come in addition, when the last one was changed.
    pub fn end(self) -> Vec<Row> {
        let mut rows = Vec::new();
        for slot in (0..SLOT_COUNT).map(SlotId) {
            if !self.slots.contains(&slot) {
                rows.push((keys::counter(slot).to_vec(), encode(&(1 + INODE_JUMP))));
            }
        }
        rows.push((keys::ERA.to_vec(), encode(&(self.era + ERA_JUMP))));
        rows.push((keys::HELD.to_vec(), encode(&())));
        if let Some(state) = self.state {
            // Ending it shuts out every session below the next one at every replica group.
            let lost = Session {
                nonce: 0,
                description: LOST_SESSIONS.to_owned(),
                opened: state.time,
                acked_below: 1,
                ending: Some(state.fence),
                locked: 0,
                reserved: Vec::new(),
            };
            let id = SessionId(state.next_session - 1);
            rows.push((keys::session(id).to_vec(), encode(&lost)));
        }
        rows
    }
}

fn jumped(state: State) -> State {
    let next_session = state.next_session + SESSION_JUMP;
    State {
        next_chunk: state.next_chunk + CHUNK_JUMP,
        next_session,
        // All but the one that stands for them. Each file's tail is suspect with that (D11).
        sessions_ended: next_session - 2,
        fence: state.fence + FENCE_JUMP,
        ..state
    }
}

/// Changes the tables of the controller.
#[derive(Debug)]
pub struct Controller {
    /// Index of the log at which the tables are true.
    index: u64,
    /// The first master.
    master: (NodeId, String),
    last_group: u32,
}

impl Controller {
    /// `index`: up to where the new log counts as applied.
    pub fn new(index: u64, master: NodeId, address: &str) -> Self {
        Self {
            index,
            master: (master, address.to_owned()),
            last_group: 0,
        }
    }

    /// The row that takes the place of one of the dump's, if any.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Option<Row> {
        let is_in = |table: std::ops::Range<[u8; 1]>| key.starts_with(&table.start);
        if key == keys::POLICY {
            let policy = Policy {
                version: self.index,
                ..decode(value)
            };
            return Some((key.to_vec(), encode(&policy)));
        }
        if key == keys::GROUP_FLOOR {
            let floor: GroupId = decode(value);
            self.last_group = self.last_group.max(floor.get());
            return None;
        }
        if is_in(keys::all::GROUPS) || is_in(keys::all::SOUGHT) {
            let config: GroupConfig = decode(value);
            self.last_group = self.last_group.max(config.group.get());
            return Some((keys::sought(config.group).to_vec(), value.to_vec()));
        }
        if is_in(keys::all::MASTER_RECORDS) {
            let record = MasterRecord {
                state: MasterState::Removed,
                replaces: None,
                ..decode(value)
            };
            return Some((key.to_vec(), encode(&record)));
        }
        Some((key.to_vec(), value.to_vec()))
    }

    /// The rows that come in addition. `nonce` names the allocation of the first master's id.
    pub fn end(self, nonce: u128) -> Vec<Row> {
        let (id, address) = self.master;
        let record = MasterRecord {
            id,
            address,
            state: MasterState::Voter,
            replaces: None,
        };
        vec![
            (
                keys::GROUP_FLOOR.to_vec(),
                encode(&GroupId(self.last_group + GROUP_JUMP)),
            ),
            (keys::master(id).to_vec(), encode(&id)),
            (keys::master_record(id).to_vec(), encode(&record)),
            (keys::allocation(id).to_vec(), encode(&(id, nonce))),
        ]
    }
}
