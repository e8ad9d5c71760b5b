//! Records of a Raft log in its WAL.
//!
//! ```text
//! 0  kind     1   1 entry, 2 vote, 3 committed, 4 truncate, 5 state
//! entry:      index 8, term 8, leader 8, then the payload in postcard
//! vote:       the vote in postcard
//! committed:  the log id in postcard; a hint, written without a sync of its own
//! truncate:   index 8: entries from here on are gone
//! state:      vote, committed and purged in postcard; restates all of them, so that everything
//!             before the first entry after `purged` may be cut off
//! ```
//! Numbers are little-endian. Vote, truncation and entries share one file, so the order in which they
//! became durable is the order in which they were decided.

use super::types::{Entry, LeaderId, LogId, TypeConfig, Vote};
use lumeofs_base::{Code, FsError, FsResult};
use openraft::EntryPayload;
use serde::{Deserialize, Serialize};

/// A record, decoded. An entry's payload stays encoded.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record {
    Entry(LogId),
    Vote(Vote),
    Committed(LogId),
    Truncate { since: u64 },
    State(State),
}

/// Everything beside the entries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) vote: Option<Vote>,
    pub(super) committed: Option<LogId>,
    pub(super) purged: Option<LogId>,
}

const ENTRY: u8 = 1;
const VOTE: u8 = 2;
const COMMITTED: u8 = 3;
const TRUNCATE: u8 = 4;
const STATE: u8 = 5;
/// Length of an entry's record before its payload.
const ENTRY_HEAD_BYTES: usize = 25;

/// An entry's record.
pub(super) fn encode_entry(entry: &Entry) -> Vec<u8> {
    let id = entry.log_id;
    let mut out = Vec::with_capacity(256);
    out.push(ENTRY);
    out.extend_from_slice(&id.index.to_le_bytes());
    out.extend_from_slice(&id.leader_id.term.to_le_bytes());
    out.extend_from_slice(&id.leader_id.node_id.to_le_bytes());
    postcard::to_extend(&entry.payload, out).expect("an entry is plain data")
}

/// The entry of an entry's record.
pub(super) fn decode_entry(bytes: &[u8]) -> FsResult<Entry> {
    let Record::Entry(log_id) = decode(bytes)? else {
        return Err(malformed("an entry was expected"));
    };
    let payload: EntryPayload<TypeConfig> =
        postcard::from_bytes(&bytes[ENTRY_HEAD_BYTES..]).map_err(malformed)?;
    Ok(Entry { log_id, payload })
}

/// Any other record.
pub(super) fn encode(record: &Record) -> Vec<u8> {
    let plain = "ids and votes are plain data";
    match record {
        Record::Entry(_) => unreachable!("entries have their own encoder"),
        Record::Vote(vote) => postcard::to_extend(vote, vec![VOTE]).expect(plain),
        Record::Committed(id) => postcard::to_extend(id, vec![COMMITTED]).expect(plain),
        Record::Truncate { since } => [&[TRUNCATE][..], &since.to_le_bytes()].concat(),
        Record::State(state) => postcard::to_extend(state, vec![STATE]).expect(plain),
    }
}

/// Decodes a record, of an entry its log id only.
pub(super) fn decode(bytes: &[u8]) -> FsResult<Record> {
    let (kind, body) = bytes
        .split_first()
        .ok_or_else(|| malformed("empty record"))?;
    let u64_at = |at: usize| -> FsResult<u64> {
        let bytes = body
            .get(at..at + 8)
            .ok_or_else(|| malformed("short record"))?;
        Ok(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    };
    Ok(match *kind {
        ENTRY => {
            let leader_id = LeaderId {
                term: u64_at(8)?,
                node_id: u64_at(16)?,
            };
            Record::Entry(LogId {
                index: u64_at(0)?,
                leader_id,
            })
        }
        VOTE => Record::Vote(postcard::from_bytes(body).map_err(malformed)?),
        COMMITTED => Record::Committed(postcard::from_bytes(body).map_err(malformed)?),
        TRUNCATE => Record::Truncate { since: u64_at(0)? },
        STATE => Record::State(postcard::from_bytes(body).map_err(malformed)?),
        other => return Err(malformed(format_args!("unknown kind {other}"))),
    })
}

fn malformed(what: impl std::fmt::Display) -> FsError {
    FsError::new(Code::Io, format!("record of the Raft log: {what}"))
}

#[cfg(test)]
mod tests {
    use super::super::types::Payload;
    use super::*;

    #[test]
    fn records_survive_the_round_trip() {
        let log_id = LogId {
            leader_id: LeaderId {
                term: 3,
                node_id: 2,
            },
            index: 77,
        };
        let payload = Payload(vec![7; 300].into());
        let entry = Entry {
            log_id,
            payload: EntryPayload::Normal(payload.clone()),
        };
        let bytes = encode_entry(&entry);
        assert_eq!(decode(&bytes).unwrap(), Record::Entry(log_id));
        let back = decode_entry(&bytes).unwrap();
        assert_eq!(
            (back.log_id, back.payload),
            (log_id, EntryPayload::Normal(payload))
        );
        let state = State {
            vote: Some(Vote::new(4, 1)),
            committed: Some(log_id),
            purged: Some(log_id),
        };
        for record in [
            Record::Vote(Vote::new_committed(9, 3)),
            Record::Committed(log_id),
            Record::Truncate { since: 5 },
            Record::State(state),
        ] {
            assert_eq!(decode(&encode(&record)).unwrap(), record);
        }
        assert!(decode(&[]).is_err());
        assert!(decode(&[9, 9]).is_err());
        assert!(decode(&bytes[..10]).is_err());
    }
}
