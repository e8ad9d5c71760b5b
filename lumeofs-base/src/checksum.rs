//! CRC-32C, the checksum of every block, frame and record.
//!
//! The client computes one per [`BLOCK_SIZE`] block, every hop checks it, the disk keeps it.

use crate::limits::BLOCK_SIZE;

/// CRC-32C (Castagnoli) of `data`; 0xE3069283 for "123456789".
pub fn crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
}

/// CRC-32C of what `seed` was computed over, followed by `data`.
pub fn crc32c_append(seed: u32, data: &[u8]) -> u32 {
    crc32c::crc32c_append(seed, data)
}

/// Checksums of the pieces of `data` between block boundaries, where `offset` is the position of
/// `data` in its chunk: the first and the last piece may be shorter than a block.
pub fn block_checksums(offset: u64, data: &[u8]) -> Vec<u32> {
    pieces(offset, data.len())
        .map(|range| crc32c(&data[range]))
        .collect()
}

/// Whether `checksums` are those of `data` at `offset`, as [`block_checksums`] makes them.
pub fn verify_blocks(offset: u64, data: &[u8], checksums: &[u32]) -> bool {
    let mut expected = checksums.iter();
    pieces(offset, data.len()).all(|range| expected.next() == Some(&crc32c(&data[range])))
        && expected.next().is_none()
}

/// Splits `len` bytes at `offset` at block boundaries into index ranges of the data.
pub fn pieces(offset: u64, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == len {
            return None;
        }
        let within = ((offset + start as u64) % BLOCK_SIZE as u64) as usize;
        let end = len.min(start + BLOCK_SIZE - within);
        let range = start..end;
        start = end;
        Some(range)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_value() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn pieces_follow_block_boundaries() {
        assert_eq!(pieces(0, 0).count(), 0);
        let ranges: Vec<_> = pieces(4000, 5000).collect();
        assert_eq!(ranges, [0..96, 96..4192, 4192..5000]);
    }

    #[test]
    fn a_flipped_bit_or_a_missing_block_is_found() {
        let mut data = vec![7; 10_000];
        let sums = block_checksums(100, &data);
        assert!(verify_blocks(100, &data, &sums));
        assert!(!verify_blocks(100, &data, &sums[..sums.len() - 1]));
        data[9_999] ^= 1;
        assert!(!verify_blocks(100, &data, &sums));
    }
}
