//! The masters as replicated state: which there are, where, and what each is on its way to be.
//!
//! A record only says what is *wanted*. The leaders of the Raft groups bring their memberships there, step by step,
//! and report back with [`MastersCommand::Settle`]; so a change goes on wherever it was interrupted. A record that is
//! `Removed` stays for ever: ids are never used again (rule R4).

use crate::keys;
use crate::record::{decode, encode};
use crate::tables::Tables;
use lumeofs_base::{Code, FsError, FsResult, NodeId, NodeInfo};
use serde::{Deserialize, Serialize};

/// Most masters that vote: election time-outs of more would not lie apart (rule R1).
pub const VOTERS_MAX: usize = 5;
/// Most masters that are known and not removed: those that vote, their replacements, and candidates.
const KNOWN_MAX: usize = 32;
/// Allocations that are remembered for those who ask again.
const ALLOCATIONS_MAX: usize = 1024;
/// Longest address.
const ADDRESS_LEN_MAX: usize = 300;

/// What a master is on its way to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MasterState {
    /// It has made itself known, and waits for somebody to admit it.
    Candidate,
    /// Becomes a learner of both groups, and a voter once it has caught up.
    Joining,
    /// A voter of both groups.
    Voter,
    /// Leaves both groups.
    Leaving,
    /// Has left. It never comes back, and nobody else gets its id.
    Removed,
}

/// A master.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterRecord {
    /// Its id.
    pub id: NodeId,
    /// `host:port` that others reach it by.
    pub address: String,
    /// What it is, or becomes.
    pub state: MasterState,
    /// Of one that is joining: the leaving master whose place it takes, in the same step.
    pub replaces: Option<NodeId>,
}

/// A change of the masters, or of what is known of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MastersCommand {
    /// The masters that founded the cluster. Ignored if any are recorded.
    Found(Vec<(NodeId, String)>),
    /// Gives a new node, master or datanode, its id; the same one to the same nonce.
    Allocate(u128),
    /// A master says where it is. A new one becomes a candidate, or begins to join.
    Announce {
        /// Its id.
        id: NodeId,
        /// Where others reach it.
        address: String,
        /// It wants to join without being admitted by anybody.
        join: bool,
    },
    /// Admits a master.
    Admit {
        /// Its id.
        id: NodeId,
        /// Where it is; known already of a candidate.
        address: Option<String>,
        /// The master whose place it takes.
        replaces: Option<NodeId>,
    },
    /// Lets a master leave.
    Remove(NodeId),
    /// Both groups are where the records want them: of this master, and of the one that it replaces.
    Settle(NodeId),
}

/// What a [`MastersCommand`] answers: the id that was allocated, or of the master that it is about.
pub type MastersOutcome = FsResult<NodeId>;

/// All masters that are or ever were, by id.
pub fn masters(tables: &impl Tables) -> Vec<MasterRecord> {
    super::rows(tables, keys::all::MASTER_RECORDS)
}

pub(super) fn run(tables: &mut dyn Tables, command: &MastersCommand) -> MastersOutcome {
    match command {
        MastersCommand::Found(masters) => found(tables, masters),
        MastersCommand::Allocate(nonce) => Ok(allocate(tables, *nonce)),
        MastersCommand::Announce { id, address, join } => announce(tables, *id, address, *join),
        MastersCommand::Admit {
            id,
            address,
            replaces,
        } => admit(tables, *id, address.as_deref(), *replaces),
        MastersCommand::Remove(id) => remove(tables, *id),
        MastersCommand::Settle(id) => settle(tables, *id),
    }
}

fn refuse<T>(code: Code, text: String) -> FsResult<T> {
    Err(FsError::new(code, text))
}

fn all(tables: &dyn Tables) -> Vec<MasterRecord> {
    super::rows(tables, keys::all::MASTER_RECORDS)
}

fn get(tables: &dyn Tables, id: NodeId) -> Option<MasterRecord> {
    let value = tables.get(&keys::master_record(id))?;
    Some(decode(&value))
}

fn put(tables: &mut dyn Tables, record: &MasterRecord) {
    tables.put(&keys::master_record(record.id), encode(record));
}

fn found(tables: &mut dyn Tables, masters: &[(NodeId, String)]) -> MastersOutcome {
    if all(tables).is_empty() {
        for (id, address) in masters {
            put(
                tables,
                &MasterRecord {
                    id: *id,
                    address: address.clone(),
                    state: MasterState::Voter,
                    replaces: None,
                },
            );
        }
    }
    let first = masters.first().map(|(id, _)| *id);
    first.ok_or_else(|| FsError::new(Code::Invalid, "a cluster needs a master"))
}

/// One number for masters and datanodes, above all that were ever given or taken.
fn allocate(tables: &mut dyn Tables, nonce: u128) -> NodeId {
    let given: Vec<(NodeId, u128)> = super::rows(tables, keys::all::ALLOCATIONS);
    if let Some((id, _)) = given.iter().find(|(_, known)| *known == nonce) {
        return *id;
    }
    let nodes: Vec<NodeInfo> = super::rows(tables, keys::all::NODES);
    let joined: Vec<NodeId> = super::rows(tables, keys::all::MASTERS);
    let taken = nodes.iter().map(|node| node.id).chain(joined);
    let taken = taken.chain(all(tables).into_iter().map(|master| master.id));
    // The last allocation is never forgotten, so neither is the highest id.
    let taken = taken.chain(given.iter().map(|(id, _)| *id));
    let id = NodeId(taken.map(NodeId::get).max().unwrap_or(0) + 1);
    tables.put(&keys::allocation(id), encode(&(id, nonce)));
    if given.len() >= ALLOCATIONS_MAX {
        tables.delete(&keys::allocation(given[0].0));
    }
    id
}

fn check_address(tables: &dyn Tables, id: NodeId, address: &str) -> FsResult<()> {
    let port = address
        .rsplit_once(':')
        .map(|(_, port)| port.parse::<u16>());
    if !matches!(port, Some(Ok(_))) || address.len() > ADDRESS_LEN_MAX {
        return refuse(
            Code::Invalid,
            format!("address {address:?}: want HOST:PORT"),
        );
    }
    let other = all(tables).into_iter().find(|master| {
        master.id != id && master.address == address && master.state != MasterState::Removed
    });
    match other {
        Some(other) => refuse(
            Code::Exists,
            format!(
                "master {} has the address {address}: give each master its own",
                other.id.get()
            ),
        ),
        None => Ok(()),
    }
}

/// A record for an id that has none.
fn fresh(tables: &dyn Tables, id: NodeId, address: &str) -> FsResult<MasterRecord> {
    if id.get() == 0 {
        return refuse(Code::Invalid, "id 0: want a number from 1".to_owned());
    }
    let known = all(tables);
    let present = known
        .iter()
        .filter(|master| master.state != MasterState::Removed);
    if present.count() >= KNOWN_MAX {
        return refuse(
            Code::NoSpace,
            format!("{KNOWN_MAX} masters are known: remove candidates that are gone"),
        );
    }
    Ok(MasterRecord {
        id,
        address: address.to_owned(),
        state: MasterState::Candidate,
        replaces: None,
    })
}

fn announce(tables: &mut dyn Tables, id: NodeId, address: &str, join: bool) -> MastersOutcome {
    let mut record = match get(tables, id) {
        Some(record) if record.state == MasterState::Removed => return Err(removed(id)),
        Some(record) => record,
        None => fresh(tables, id, address)?,
    };
    check_address(tables, id, address)?;
    record.address = address.to_owned();
    put(tables, &record);
    if join && record.state == MasterState::Candidate {
        return admit(tables, id, None, None);
    }
    Ok(id)
}

fn removed(id: NodeId) -> FsError {
    let text = format!(
        "master {id} was removed from this cluster, and ids are never used again: let the machine join \
         anew with an empty data directory and a token of `lumeofs cluster token`",
        id = id.get()
    );
    FsError::new(Code::Refused, text)
}

fn admit(
    tables: &mut dyn Tables,
    id: NodeId,
    address: Option<&str>,
    replaces: Option<NodeId>,
) -> MastersOutcome {
    let number = id.get();
    let mut record = match (get(tables, id), address) {
        (Some(record), _) => record,
        (None, Some(address)) => fresh(tables, id, address)?,
        (None, None) => {
            let text = format!(
                "master {number} is not known: start it with `lumeofs master --join`, or name its address \
                 ({number}=HOST:PORT)"
            );
            return refuse(Code::NotFound, text);
        }
    };
    if let Some(address) = address {
        check_address(tables, id, address)?;
        record.address = address.to_owned();
    }
    match record.state {
        MasterState::Removed => return Err(removed(id)),
        MasterState::Leaving => {
            let text =
                format!("master {number} is leaving: ids are never used again, take another");
            return refuse(Code::Busy, text);
        }
        // Asked again.
        MasterState::Voter | MasterState::Joining if replaces.is_none() => {
            put(tables, &record);
            return Ok(id);
        }
        MasterState::Voter => {
            // Settled: it has replaced that one already. Else it has a place of its own.
            let old = replaces.and_then(|old| get(tables, old));
            if old.is_some_and(|old| old.state == MasterState::Removed) {
                return Ok(id);
            }
            let text = format!("master {number} votes already: replace by a new one");
            return refuse(Code::Exists, text);
        }
        MasterState::Candidate | MasterState::Joining => {}
    }
    let known = all(tables);
    match replaces {
        None => {
            let others = known.iter().filter(|master| {
                matches!(master.state, MasterState::Voter | MasterState::Joining)
                    && master.id != id
                    && master.replaces.is_none()
            });
            // Those that are being replaced keep their places for their successors.
            let kept = known.iter().filter(|master| {
                matches!(master.state, MasterState::Joining)
                    && master.id != id
                    && master.replaces.is_some()
            });
            if others.count() + kept.count() >= VOTERS_MAX {
                let text = format!(
                    "there are {VOTERS_MAX} masters, more are not supported: remove or replace one"
                );
                return refuse(Code::NoSpace, text);
            }
        }
        Some(old) => prepare_replacement(tables, id, old, &known)?,
    }
    record.state = MasterState::Joining;
    record.replaces = replaces;
    put(tables, &record);
    Ok(id)
}

/// The old one goes, in the step in which the new one comes; another one that was to come in its place does not.
fn prepare_replacement(
    tables: &mut dyn Tables,
    id: NodeId,
    old: NodeId,
    known: &[MasterRecord],
) -> FsResult<()> {
    let there = known.iter().find(|master| master.id == old);
    let Some(there) = there.filter(|there| there.id != id) else {
        return refuse(
            Code::NotFound,
            format!("master {} is not known: nothing to replace", old.get()),
        );
    };
    match there.state {
        MasterState::Voter | MasterState::Leaving => {}
        _ => {
            return refuse(
                Code::Invalid,
                format!(
                    "master {} does not vote: add the new one, and remove it",
                    old.get()
                ),
            );
        }
    }
    put(
        tables,
        &MasterRecord {
            state: MasterState::Leaving,
            ..there.clone()
        },
    );
    let others = known
        .iter()
        .filter(|master| master.replaces == Some(old) && master.id != id);
    for other in others {
        put(
            tables,
            &MasterRecord {
                state: MasterState::Leaving,
                replaces: None,
                ..other.clone()
            },
        );
    }
    Ok(())
}

fn remove(tables: &mut dyn Tables, id: NodeId) -> MastersOutcome {
    let known = all(tables);
    let Some(record) = known.iter().find(|master| master.id == id) else {
        return refuse(Code::NotFound, format!("master {} is not known", id.get()));
    };
    if record.state == MasterState::Removed {
        return Ok(id);
    }
    if let Some(old) = record.replaces {
        let text = format!(
            "master {id} is taking the place of master {old}: give that to another (`replace {old} NEW=HOST:PORT`), or \
             remove {old} first",
            id = id.get(),
            old = old.get()
        );
        return refuse(Code::Busy, text);
    }
    let stays = |master: &&MasterRecord| master.id != id && master.state == MasterState::Voter;
    if !known.iter().any(|master| stays(&master)) && record.state != MasterState::Candidate {
        let text = format!(
            "master {} is the last one that votes: add another first",
            id.get()
        );
        return refuse(Code::Invalid, text);
    }
    // A candidate has never been in any group.
    let state = match record.state {
        MasterState::Candidate => MasterState::Removed,
        _ => MasterState::Leaving,
    };
    put(
        tables,
        &MasterRecord {
            state,
            ..record.clone()
        },
    );
    for successor in known.iter().filter(|master| master.replaces == Some(id)) {
        put(
            tables,
            &MasterRecord {
                replaces: None,
                ..successor.clone()
            },
        );
    }
    Ok(id)
}

fn settle(tables: &mut dyn Tables, id: NodeId) -> MastersOutcome {
    let Some(record) = get(tables, id) else {
        return refuse(Code::NotFound, format!("master {} is not known", id.get()));
    };
    let state = match record.state {
        MasterState::Joining => MasterState::Voter,
        MasterState::Leaving => MasterState::Removed,
        _ => return Ok(id),
    };
    put(
        tables,
        &MasterRecord {
            state,
            replaces: None,
            ..record.clone()
        },
    );
    if let Some(mut old) = record.replaces.and_then(|old| get(tables, old)) {
        old.state = MasterState::Removed;
        put(tables, &old);
    }
    Ok(id)
}
