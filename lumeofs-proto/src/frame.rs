//! The frame: a fixed header, a typed header (a prost message), a payload.
//!
//! ```text
//!  0  magic "LMFR"           4
//!  4  wire version           2
//!  6  operation              2   see Op
//!  8  flags                  2   1 reply, 2 failure, 4 payload is checked by block checksums
//! 10  zero                   2
//! 12  deadline in ms         4   from receipt; 0 = none
//! 16  request id             8   chosen by the asker, repeated in the reply; of a client: the operation, see RequestId
//! 24  typed header length    4
//! 28  payload length         4
//! 32  CRC-32C of payload     4   0 with flag 4
//! 36  CRC-32C of bytes 0..36 and of the typed header
//! 40  typed header, then payload
//! ```
//! All numbers are little-endian. Lengths are checked against the limits before anything is
//! allocated; a frame with a wrong checksum ends its connection.

use lumeofs_base::checksum::{crc32c, crc32c_append};
use lumeofs_base::limits::{FRAME_HEADER_BYTES_MAX, FRAME_PAYLOAD_BYTES_MAX};
use lumeofs_base::{Code, FsError, FsResult};

/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"LMFR";
/// Length of the fixed header.
pub const FIXED_BYTES: usize = 40;

/// What a frame asks for. The typed header of request and reply stands behind each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Op {
    /// `Hello` -> `Hello`. First frame of a connection.
    Hello = 1,
    /// `Proof` -> empty. Second frame of a connection.
    Proof = 2,
    /// `MetaRequest` with a query -> `MetaReply`.
    Query = 16,
    /// `MetaRequest` with a mutation -> `MetaReply`.
    Mutate = 17,
    /// `SessionRequest` -> `SessionReply`.
    Session = 18,
    /// `OpenReport` -> `SessionReply`.
    Opens = 19,
    /// `MapRequest` -> `MapReply`.
    Map = 20,
    /// `LeaseRequest` -> `LeaseReply`.
    Lease = 21,
    /// `LockWait` -> `LockVerdict`.
    LockWait = 22,
    /// `RaftMessage` both ways.
    RaftAppend = 32,
    /// `RaftMessage` both ways.
    RaftVote = 33,
    /// `RaftMessage` both ways, with a piece of the snapshot as payload.
    RaftSnapshot = 34,
    /// `ChunkRequest` + data -> `ChunkReply`.
    Write = 64,
    /// `ChunkRequest` -> `ChunkReply` + data.
    Read = 65,
    /// `ChunkRequest` -> `ChunkReply`. Makes a range a hole.
    Zero = 66,
    /// `ChunkRequest` -> `ChunkReply`. Cuts a chunk at `offset` and fences older truncation numbers.
    Truncate = 67,
    /// `ChunkRequest` -> `ChunkReply`. Deletes a chunk.
    Delete = 68,
    /// `ChunkRequest` -> `ChunkReply`. Everything up to `after` is on disk.
    Sync = 69,
    /// `ChunkRequest` -> `ChunkReply` with the ranges that hold data.
    Extents = 70,
    /// `ChunkRequest` -> `ChunkReply`. Shuts ended sessions out of the group; from masters only.
    Fence = 71,
    /// `ChunkRequest` -> `ChunkReply` with the chunk's version + data. One block, for another member; between datanodes only.
    Fetch = 72,
    /// `ChunkRequest` with a `CopySource` -> `ChunkReply`. A write of what the primary reads from another chunk.
    Copy = 73,
    /// `StreamMessage` + data; answered by `StreamAnswer`s, not one to one.
    Replicate = 80,
    /// Not used.
    ReplicateSync = 81,
    /// `Beacon` -> `BeaconAnswer`.
    Beacon = 82,
    /// `GroupStateRequest` -> `GroupState`.
    GroupState = 83,
    /// `StreamMessage` with `attach`: opens a replication stream on this connection.
    Join = 84,
    /// Not used.
    CatchUp = 85,
    /// `ScrubRequest` -> `ScrubReply`.
    Scrub = 86,
    /// `BlockedRequest` -> `BlockedReply`. What masters and datanodes have in work.
    Blocked = 87,
}

impl Op {
    const ALL: [Op; 29] = [
        Op::Hello,
        Op::Proof,
        Op::Query,
        Op::Mutate,
        Op::Session,
        Op::Opens,
        Op::Map,
        Op::Lease,
        Op::LockWait,
        Op::RaftAppend,
        Op::RaftVote,
        Op::RaftSnapshot,
        Op::Write,
        Op::Read,
        Op::Zero,
        Op::Truncate,
        Op::Delete,
        Op::Sync,
        Op::Extents,
        Op::Fence,
        Op::Fetch,
        Op::Copy,
        Op::Replicate,
        Op::ReplicateSync,
        Op::Beacon,
        Op::GroupState,
        Op::Join,
        Op::Scrub,
        Op::Blocked,
    ];

    fn from_wire(number: u16) -> FsResult<Self> {
        Self::ALL
            .into_iter()
            .chain([Op::CatchUp])
            .find(|op| *op as u16 == number)
            .ok_or_else(|| {
                FsError::new(
                    Code::Refused,
                    format!("unknown operation {number} in a frame"),
                )
            })
    }
}

/// The payload's integrity is held by block checksums in the typed header.
pub const FLAG_REPLY: u16 = 1;
/// The typed header is a `Failure`.
pub const FLAG_FAILURE: u16 = 2;
/// The payload is covered by block checksums in the typed header, not by a checksum of its own.
pub const FLAG_BLOCK_CHECKSUMS: u16 = 4;

/// The fixed header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// What is asked or answered.
    pub op: Op,
    /// `FLAG_*`.
    pub flags: u16,
    /// Time that the asker waits, in milliseconds; 0 = without limit.
    pub deadline_ms: u32,
    /// Chosen by the asker. Of a client: a [`lumeofs_base::RequestId`], the same in all frames of an operation.
    pub request: u64,
    /// Bytes of the typed header.
    pub header_len: u32,
    /// Bytes of the payload.
    pub payload_len: u32,
    payload_crc: u32,
    frame_crc: u32,
}

impl Fixed {
    /// Stands for a first frame that could not be read, so that it can be answered: a peer that speaks
    /// another wire version learns at least that, from the answer's own version.
    pub(crate) fn unreadable() -> Self {
        Self {
            op: Op::Hello,
            flags: 0,
            deadline_ms: 0,
            request: 0,
            header_len: 0,
            payload_len: 0,
            payload_crc: 0,
            frame_crc: 0,
        }
    }

    /// Whether this is a reply.
    pub fn is_reply(&self) -> bool {
        self.flags & FLAG_REPLY != 0
    }

    /// Encodes fixed and typed header of a frame; the payload follows them on the wire.
    pub fn encode(
        op: Op,
        flags: u16,
        deadline_ms: u32,
        request: u64,
        header: &[u8],
        payload: &[&[u8]],
    ) -> Vec<u8> {
        let payload_len: usize = payload.iter().map(|part| part.len()).sum();
        assert!(
            header.len() <= FRAME_HEADER_BYTES_MAX,
            "typed header of {} bytes",
            header.len()
        );
        assert!(
            payload_len <= FRAME_PAYLOAD_BYTES_MAX,
            "payload of {payload_len} bytes"
        );
        let payload_crc = if flags & FLAG_BLOCK_CHECKSUMS != 0 {
            0
        } else {
            payload.iter().fold(0, |crc, part| crc32c_append(crc, part))
        };
        let mut bytes = Vec::with_capacity(FIXED_BYTES + header.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&crate::WIRE_VERSION.to_le_bytes());
        bytes.extend_from_slice(&(op as u16).to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&0u16.to_le_bytes());
        bytes.extend_from_slice(&deadline_ms.to_le_bytes());
        bytes.extend_from_slice(&request.to_le_bytes());
        bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(payload_len as u32).to_le_bytes());
        bytes.extend_from_slice(&payload_crc.to_le_bytes());
        let crc = crc32c_append(crc32c(&bytes), header);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(header);
        bytes
    }

    /// Decodes the first [`FIXED_BYTES`]. The checksum can be checked once the typed header is there:
    /// [`Fixed::check_header`].
    pub fn decode(bytes: &[u8; FIXED_BYTES]) -> FsResult<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        if bytes[0] == crate::tls::FIRST_BYTE {
            return Err(crate::tls::tls_refused());
        }
        if bytes[..4] != MAGIC {
            return Err(FsError::new(
                Code::Refused,
                format!(
                    "not a LumeoFS frame: it starts with {:02x?}, not \"LMFR\"",
                    &bytes[..4]
                ),
            ));
        }
        if u16_at(4) != crate::WIRE_VERSION {
            return Err(FsError::new(
                Code::Refused,
                format!(
                    "peer speaks wire version {}, this build {}",
                    u16_at(4),
                    crate::WIRE_VERSION
                ),
            ));
        }
        let fixed = Self {
            op: Op::from_wire(u16_at(6))?,
            flags: u16_at(8),
            deadline_ms: u32_at(12),
            request: u64::from(u32_at(16)) | u64::from(u32_at(20)) << 32,
            header_len: u32_at(24),
            payload_len: u32_at(28),
            payload_crc: u32_at(32),
            frame_crc: u32_at(36),
        };
        if fixed.header_len as usize > FRAME_HEADER_BYTES_MAX {
            return Err(FsError::new(
                Code::Refused,
                format!(
                    "frame header of {} bytes, at most {FRAME_HEADER_BYTES_MAX} are accepted",
                    fixed.header_len
                ),
            ));
        }
        if fixed.payload_len as usize > FRAME_PAYLOAD_BYTES_MAX {
            return Err(FsError::new(
                Code::Refused,
                format!(
                    "payload of {} bytes, at most {FRAME_PAYLOAD_BYTES_MAX} are accepted",
                    fixed.payload_len
                ),
            ));
        }
        Ok(fixed)
    }

    /// Checks the checksum over fixed and typed header.
    pub fn check_header(&self, fixed: &[u8; FIXED_BYTES], header: &[u8]) -> FsResult<()> {
        if crc32c_append(crc32c(&fixed[..36]), header) == self.frame_crc {
            return Ok(());
        }
        Err(FsError::new(
            Code::Refused,
            format!("bad checksum of a {:?} frame's header", self.op),
        ))
    }

    /// Checks the payload's checksum, unless block checksums cover it.
    pub fn check_payload(&self, payload: &[u8]) -> FsResult<()> {
        if self.flags & FLAG_BLOCK_CHECKSUMS != 0 || crc32c(payload) == self.payload_crc {
            return Ok(());
        }
        Err(FsError::new(
            Code::Refused,
            format!("bad checksum of a {:?} frame's payload", self.op),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed_of(bytes: &[u8]) -> [u8; FIXED_BYTES] {
        bytes[..FIXED_BYTES].try_into().unwrap()
    }

    #[test]
    fn a_frame_survives_the_round_trip() {
        let bytes = Fixed::encode(
            Op::CatchUp,
            FLAG_REPLY,
            50,
            1 << 40,
            b"typed",
            &[b"pay", b"load"],
        );
        let fixed = Fixed::decode(&fixed_of(&bytes)).unwrap();
        assert_eq!(
            (fixed.op, fixed.request, fixed.payload_len),
            (Op::CatchUp, 1 << 40, 7)
        );
        fixed
            .check_header(&fixed_of(&bytes), &bytes[FIXED_BYTES..])
            .unwrap();
        fixed.check_payload(b"payload").unwrap();
        assert!(fixed.check_payload(b"paylOad").is_err());
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_refused() {
        let bytes = Fixed::encode(Op::Write, 0, 0, 7, b"typed header", &[]);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let refused = Fixed::decode(&fixed_of(&bad))
                .and_then(|fixed| fixed.check_header(&fixed_of(&bad), &bad[FIXED_BYTES..]));
            assert!(refused.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn absurd_lengths_are_refused_before_allocation() {
        let mut bytes = Fixed::encode(Op::Write, 0, 0, 7, b"", &[]);
        bytes[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
        let error = Fixed::decode(&fixed_of(&bytes)).unwrap_err();
        assert!(error.context.contains("4294967295"), "{error}");
    }
}
