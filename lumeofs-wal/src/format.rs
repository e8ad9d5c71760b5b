//! The bytes of the log: segment header, record header, floor. Integers are little-endian.
//!
//! ```text
//! DIR/segment-GENERATION   a part of the log      (GENERATION: 16 hex digits)
//! DIR/spare-NUMBER         a file for a later segment; its content means nothing
//! DIR/floor                where the log starts
//!
//! segment file     0        4096                                                   filled
//!                  | header | batch | batch | batch | ... | zeros or older generation |
//! batch            | record | record | ... | zeros up to a multiple of 4096 |
//! record           | header (24) | payload | zeros up to a multiple of 8 |
//! ```
//!
//! The position of a record ([`Lsn`](crate::Lsn)) is `base + offset in the file`; each segment's
//! base lies at or above the end of the one before, so positions grow for the life of the log.

use lumeofs_base::checksum::{crc32c, crc32c_append};
use lumeofs_base::limits::BLOCK_SIZE;
use lumeofs_base::{Code, FsError, FsResult};
use std::fmt;
use std::path::{Path, PathBuf};

/// Version of the byte layout; another one is refused.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// Bytes in front of a record's payload.
pub(crate) const RECORD_HEADER_BYTES: usize = 24;
/// Records start at multiples of this.
pub(crate) const RECORD_ALIGNMENT: u64 = 8;
/// [`BLOCK_SIZE`] as a file offset: unit of batches, and size of a segment's header.
pub(crate) const BLOCK: u64 = BLOCK_SIZE as u64;
/// Name of the file that says where the log starts.
pub(crate) const FLOOR_NAME: &str = "floor";

const SEGMENT_MAGIC: [u8; 4] = *b"LMWL";
const FLOOR_MAGIC: [u8; 4] = *b"LMWF";
const SEGMENT_HEADER_BYTES: usize = 48;
const FLOOR_BYTES: usize = 24;

/// Number of a segment, higher for each one, never reused in a log: it seeds the checksums of its
/// records, so that what a recycled file held before is not taken for new. 0 stands for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Generation(pub(crate) u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// First block of a segment.
///
/// ```text
///  0  magic "LMWL"          4
///  4  format version        4
///  8  generation            8
/// 16  base                  8  position of the file's byte 0; the first record is at base + 4096
/// 24  capacity              8  bytes of the file that the log uses
/// 32  previous generation   8  the segment that the log goes back to; 0: the log starts here
/// 40  previous last         8  position of the last record before this segment
/// 48  CRC-32C of the above  4
/// ```
///
/// The newest header defines the log: it reads backwards from it through `previous generation`, and
/// records of that segment above `previous last` are not part of it. So one header write truncates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) generation: Generation,
    pub(crate) base: u64,
    pub(crate) capacity: u64,
    pub(crate) previous_generation: Generation,
    pub(crate) previous_last: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self, block: &mut [u8]) {
        block.fill(0);
        block[0..4].copy_from_slice(&SEGMENT_MAGIC);
        block[4..8].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[8..16].copy_from_slice(&self.generation.0.to_le_bytes());
        block[16..24].copy_from_slice(&self.base.to_le_bytes());
        block[24..32].copy_from_slice(&self.capacity.to_le_bytes());
        block[32..40].copy_from_slice(&self.previous_generation.0.to_le_bytes());
        block[40..48].copy_from_slice(&self.previous_last.to_le_bytes());
        seal(block, SEGMENT_HEADER_BYTES);
    }

    /// Decodes the first block of the segment file `path`, which errors name.
    pub(crate) fn decode(block: &[u8], path: &Path) -> FsResult<Self> {
        check_envelope(block, SEGMENT_MAGIC, SEGMENT_HEADER_BYTES, path)?;
        let header = Self {
            generation: Generation(u64_at(block, 8)),
            base: u64_at(block, 16),
            capacity: u64_at(block, 24),
            previous_generation: Generation(u64_at(block, 32)),
            previous_last: u64_at(block, 40),
        };
        let plausible = header.generation > header.previous_generation
            && header.base.is_multiple_of(BLOCK)
            && header.capacity.is_multiple_of(BLOCK)
            && header.previous_last <= header.base;
        if plausible {
            Ok(header)
        } else {
            Err(damaged(path, 0, "segment header contradicts itself"))
        }
    }
}

/// What stands in front of a payload.
///
/// ```text
///  0  payload bytes         4
///  4  CRC-32C               4  of generation, the other fields and the payload's CRC-32C
///  8  position              8
/// 16  offset in the batch   4  distance from the start of the batch
/// 20  batch's predecessor   4  distance from the start of the batch back to the last record before
///                              it in this segment; 0: none
/// ```
///
/// A batch is written only after the one before it is durable. So an intact record proves that the
/// record before its batch was durable: if that one cannot be read, the disk lost data, and what
/// looks like a torn tail is damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) payload_bytes: u32,
    pub(crate) position: u64,
    pub(crate) offset_in_batch: u32,
    pub(crate) predecessor_distance: u32,
}

impl RecordHeader {
    pub(crate) fn encode(
        &self,
        generation: Generation,
        payload_crc: u32,
    ) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.offset_in_batch.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.predecessor_distance.to_le_bytes());
        let crc = record_crc(&bytes, generation, payload_crc);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Takes `bytes` for a header. Nothing is checked yet.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        Self {
            payload_bytes: u32_at(bytes, 0),
            position: u64_at(bytes, 8),
            offset_in_batch: u32_at(bytes, 16),
            predecessor_distance: u32_at(bytes, 20),
        }
    }

    /// Whether `record` (header and payload) is what was written in this generation.
    pub(crate) fn verify(record: &[u8], generation: Generation) -> bool {
        let (header, payload) = record.split_at(RECORD_HEADER_BYTES);
        u32_at(header, 4) == record_crc(header, generation, crc32c(payload))
    }

    /// Bytes of the record in the file.
    pub(crate) fn record_bytes(&self) -> u64 {
        record_bytes(self.payload_bytes as usize)
    }

    /// Position of the batch that the record is part of.
    pub(crate) fn batch_start(&self) -> u64 {
        self.position
            .saturating_sub(u64::from(self.offset_in_batch))
    }

    /// Position of the last record before the batch in this segment; 0 if there was none.
    pub(crate) fn predecessor(&self) -> u64 {
        match self.predecessor_distance {
            0 => 0,
            distance => self.batch_start().saturating_sub(u64::from(distance)),
        }
    }
}

/// Bytes of a record with this payload, header and alignment included.
pub(crate) fn record_bytes(payload_bytes: usize) -> u64 {
    ((RECORD_HEADER_BYTES + payload_bytes) as u64).next_multiple_of(RECORD_ALIGNMENT)
}

fn record_crc(header: &[u8], generation: Generation, payload_crc: u32) -> u32 {
    let seed = crc32c(&generation.0.to_le_bytes());
    let seed = crc32c_append(seed, &header[0..4]);
    let seed = crc32c_append(seed, &header[8..24]);
    crc32c_append(seed, &payload_crc.to_le_bytes())
}

/// Where the log starts: segments whose base is lower were given up. Two slots of one block are
/// written in turn, so that a torn write leaves the other.
///
/// ```text
///  0  magic "LMWF"          4
///  4  format version        4
///  8  counter               8  the slot is counter mod 2; the higher one counts
/// 16  floor                 8  base of the first segment of the log
/// 24  CRC-32C of the above  4
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Floor {
    pub(crate) counter: u64,
    pub(crate) base: u64,
}

impl Floor {
    pub(crate) fn encode(&self, block: &mut [u8]) {
        block.fill(0);
        block[0..4].copy_from_slice(&FLOOR_MAGIC);
        block[4..8].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[8..16].copy_from_slice(&self.counter.to_le_bytes());
        block[16..24].copy_from_slice(&self.base.to_le_bytes());
        seal(block, FLOOR_BYTES);
    }

    /// Decodes both slots of the file `path`. A file of zeros, or none, is a log never shortened.
    pub(crate) fn decode(slots: &[u8], path: &Path) -> FsResult<Self> {
        let mut newest = None;
        let mut problem = None;
        for slot in slots
            .chunks_exact(BLOCK_SIZE)
            .filter(|slot| slot.iter().any(|byte| *byte != 0))
        {
            match check_envelope(slot, FLOOR_MAGIC, FLOOR_BYTES, path) {
                Ok(()) => {
                    let floor = Self {
                        counter: u64_at(slot, 8),
                        base: u64_at(slot, 16),
                    };
                    if newest.is_none_or(|newest: Floor| newest.counter < floor.counter) {
                        newest = Some(floor);
                    }
                }
                Err(error) => problem = Some(error),
            }
        }
        match (newest, problem) {
            (Some(floor), _) => Ok(floor),
            // The first write ever was torn: nothing had been given up yet.
            (None, Some(error)) if error.code == Code::Io && slots.len() > BLOCK_SIZE => {
                if slots[..BLOCK_SIZE].iter().all(|byte| *byte == 0) {
                    Ok(Self::default())
                } else {
                    Err(error)
                }
            }
            (None, Some(error)) => Err(error),
            (None, None) => Ok(Self::default()),
        }
    }
}

/// What a name in the log's directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    Segment(Generation),
    Spare(u64),
}

impl Name {
    pub(crate) fn parse(name: &Path) -> Option<Self> {
        let (kind, number) = name.to_str()?.split_once('-')?;
        let number = if number.len() == 16 {
            u64::from_str_radix(number, 16).ok()?
        } else {
            return None;
        };
        match kind {
            "segment" => Some(Self::Segment(Generation(number))),
            "spare" => Some(Self::Spare(number)),
            _ => None,
        }
    }

    pub(crate) fn path(self, dir: &Path) -> PathBuf {
        match self {
            Self::Segment(generation) => dir.join(format!("segment-{generation}")),
            Self::Spare(number) => dir.join(format!("spare-{number:016x}")),
        }
    }
}

/// The error for bytes that were durable and cannot be what was written.
pub(crate) fn damaged(path: &Path, offset: u64, what: impl fmt::Display) -> FsError {
    FsError::new(
        Code::Io,
        format!("{} is damaged at offset {offset}: {what}", path.display()),
    )
}

fn seal(block: &mut [u8], len: usize) {
    let crc = crc32c(&block[..len]);
    block[len..len + 4].copy_from_slice(&crc.to_le_bytes());
}

fn check_envelope(block: &[u8], magic: [u8; 4], len: usize, path: &Path) -> FsResult<()> {
    let version = u32_at(block, 4);
    if block[0..4] != magic {
        Err(FsError::new(
            Code::Invalid,
            format!(
                "{} is not a file of a LumeoFS log: its magic number is wrong",
                path.display()
            ),
        ))
    } else if version != FORMAT_VERSION {
        Err(FsError::new(
            Code::Invalid,
            format!(
                "{} has log format version {version}; this program reads version {FORMAT_VERSION}",
                path.display()
            ),
        ))
    } else if u32_at(block, len) != crc32c(&block[..len]) {
        Err(damaged(path, 0, "wrong header checksum"))
    } else {
        Ok(())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_encoding_and_refuse_what_is_not_theirs() {
        let header = SegmentHeader {
            generation: Generation(7),
            base: 1 << 20,
            capacity: 1 << 16,
            previous_generation: Generation(5),
            previous_last: 4096,
        };
        let mut block = [0; BLOCK_SIZE];
        header.encode(&mut block);
        let path = Path::new("x");
        assert_eq!(SegmentHeader::decode(&block, path), Ok(header));
        let refuse = |at: usize| {
            let mut block = block;
            block[at] ^= 1;
            SegmentHeader::decode(&block, path).unwrap_err()
        };
        assert!(refuse(0).context.contains("magic"));
        assert!(refuse(4).context.contains("version 0"));
        assert_eq!(refuse(4).code, Code::Invalid);
        assert_eq!(refuse(20).code, Code::Io);
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_bytes_of_version_1_do_not_change() {
        let mut block = [0; BLOCK_SIZE];
        SegmentHeader {
            generation: Generation(2),
            base: 0x10000,
            capacity: 0x8000,
            previous_generation: Generation(1),
            previous_last: 0x1008,
        }
        .encode(&mut block);
        let expected = "4c4d574c01000000020000000000000000000100000000000080000000000000\
            0100000000000000081000000000000061b59963";
        assert_eq!(hex(&block[..52]), expected);
        let record = RecordHeader {
            payload_bytes: 5,
            position: 0x11008,
            offset_in_batch: 8,
            predecessor_distance: 0x100,
        };
        let header = record.encode(Generation(2), crc32c(b"hello"));
        assert_eq!(
            hex(&header),
            "050000004ef8a3f608100100000000000800000000010000"
        );
    }

    #[test]
    fn a_record_counts_only_in_its_own_generation() {
        let header = RecordHeader {
            payload_bytes: 5,
            position: 4096,
            offset_in_batch: 0,
            predecessor_distance: 0,
        };
        let mut record = header.encode(Generation(3), crc32c(b"hello")).to_vec();
        record.extend(b"hello");
        assert_eq!(RecordHeader::decode(&record), header);
        assert!(RecordHeader::verify(&record, Generation(3)));
        assert!(!RecordHeader::verify(&record, Generation(4)));
        record[25] ^= 1;
        assert!(!RecordHeader::verify(&record, Generation(3)));
    }

    #[test]
    fn a_torn_floor_leaves_the_one_before() {
        let mut slots = [0; 2 * BLOCK_SIZE];
        let path = Path::new("floor");
        assert_eq!(Floor::decode(&slots, path), Ok(Floor::default()));
        Floor {
            counter: 1,
            base: 8192,
        }
        .encode(&mut slots[BLOCK_SIZE..]);
        Floor {
            counter: 2,
            base: 16384,
        }
        .encode(&mut slots[..BLOCK_SIZE]);
        assert_eq!(Floor::decode(&slots, path).unwrap().base, 16384);
        slots[17] ^= 1;
        assert_eq!(Floor::decode(&slots, path).unwrap().base, 8192);
        slots[BLOCK_SIZE + 17] ^= 1;
        assert_eq!(Floor::decode(&slots, path).unwrap_err().code, Code::Io);
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in [Name::Segment(Generation(255)), Name::Spare(3)] {
            assert_eq!(
                Name::parse(name.path(Path::new("d")).file_name().unwrap().as_ref()),
                Some(name)
            );
        }
        assert_eq!(Name::parse(Path::new("segment-1")), None);
        assert_eq!(Name::parse(Path::new("floor")), None);
    }
}
