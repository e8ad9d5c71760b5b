//! The part of an operation that concerns the copied beginning of a chunk.

use crate::message::Payload;
use lumeofs_base::ChunkOp;
use lumeofs_base::checksum::pieces;

/// Cuts an operation at byte `end` of its chunk, a block boundary. `None` if nothing of it is below.
/// A deletion is never below: who copies the chunk finds it deleted.
pub fn below<P: Payload>(op: &ChunkOp, data: &P, end: u64) -> Option<(ChunkOp, P)> {
    let mut op = op.clone();
    let mut data = data.clone();
    match &mut op {
        ChunkOp::Write {
            offset, checksums, ..
        } => {
            let room = end.saturating_sub(*offset);
            if room == 0 {
                return None;
            }
            if room < data.len() as u64 {
                data = data.prefix(room as usize);
                checksums.truncate(pieces(*offset, room as usize).count());
            }
        }
        ChunkOp::Zero { offset, len, .. } => {
            *len = (*len).min(end.saturating_sub(*offset));
            if *len == 0 {
                return None;
            }
        }
        ChunkOp::Truncate {
            chunk,
            len,
            truncations,
            era,
        } => {
            if *len >= end {
                return None;
            }
            let (chunk, truncations, era) = (*chunk, *truncations, *era);
            op = ChunkOp::Zero {
                chunk,
                offset: *len,
                len: end - *len,
                truncations,
                era,
            };
        }
        ChunkOp::Delete { .. } | ChunkOp::Fence { .. } => return None,
    }
    Some((op, data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lumeofs_base::{ChunkId, checksum::block_checksums};

    #[test]
    fn a_write_across_the_end_keeps_its_first_blocks_and_their_checksums() {
        let bytes: Vec<u8> = (0..20_000).map(|at| at as u8).collect();
        let op = ChunkOp::Write {
            chunk: ChunkId(1),
            offset: 100,
            truncations: 3,
            era: 0,
            checksums: block_checksums(100, &bytes),
            part: None,
        };
        let (clipped, data) = below(&op, &bytes, 8192).unwrap();
        assert_eq!(data, bytes[..8092]);
        let ChunkOp::Write { checksums, .. } = clipped else {
            panic!("still a write")
        };
        assert_eq!(checksums, block_checksums(100, &bytes[..8092]));
        assert!(below(&op, &bytes, 0).is_none());
        assert_eq!(below(&op, &bytes, 1 << 20).unwrap().1, bytes);
    }
}
