//! The bytes of one simulated file: sparse blocks that images share until one of them changes.

use crate::limits::BLOCK_SIZE;
use std::collections::BTreeMap;
use std::sync::Arc;

const BLOCK: u64 = BLOCK_SIZE as u64;

type Block = [u8; BLOCK_SIZE];

/// Content of a file. Missing blocks are holes and read as zero.
#[derive(Clone, Default)]
pub(super) struct Image {
    pub(super) len: u64,
    blocks: BTreeMap<u64, Arc<Block>>,
}

impl Image {
    /// Bytes of allocated blocks.
    pub(super) fn allocated_bytes(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK
    }

    /// How many more bytes a write of this range would allocate.
    pub(super) fn missing_bytes(&self, offset: u64, len: u64) -> u64 {
        if len == 0 {
            return 0;
        }
        let (first, last) = (offset / BLOCK, (offset + len - 1) / BLOCK);
        let present = self.blocks.range(first..=last).count() as u64;
        (last - first + 1 - present) * BLOCK
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.len = self.len.max(offset + data.len() as u64);
        for_each_block(offset, data.len(), |index, within, range| {
            let block = self
                .blocks
                .entry(index)
                .or_insert_with(|| Arc::new([0; BLOCK_SIZE]));
            let piece = &data[range];
            Arc::make_mut(block)[within..within + piece.len()].copy_from_slice(piece);
        });
    }

    /// Copies out a range that lies below the length.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) {
        for_each_block(offset, buf.len(), |index, within, range| {
            let piece = &mut buf[range];
            match self.blocks.get(&index) {
                Some(block) => piece.copy_from_slice(&block[within..within + piece.len()]),
                None => piece.fill(0),
            }
        });
    }

    pub(super) fn set_len(&mut self, len: u64) {
        self.blocks.split_off(&len.div_ceil(BLOCK));
        let within = (len % BLOCK) as usize;
        if len < self.len
            && within != 0
            && let Some(block) = self.blocks.get_mut(&(len / BLOCK))
        {
            Arc::make_mut(block)[within..].fill(0);
        }
        self.len = len;
    }

    pub(super) fn allocate(&mut self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let zero = Arc::new([0; BLOCK_SIZE]);
        for index in offset / BLOCK..=(offset + len - 1) / BLOCK {
            self.blocks.entry(index).or_insert_with(|| zero.clone());
        }
        self.len = self.len.max(offset + len);
    }

    /// Inverts the lowest bit of one byte. Whether the byte exists.
    pub(super) fn flip_bit(&mut self, offset: u64) -> bool {
        if offset >= self.len {
            return false;
        }
        let mut byte = [0];
        self.read(offset, &mut byte);
        self.write(offset, &[byte[0] ^ 1]);
        true
    }
}

/// Calls `visit(block index, offset within the block, range of the data)` for each block touched.
fn for_each_block(
    offset: u64,
    len: usize,
    mut visit: impl FnMut(u64, usize, std::ops::Range<usize>),
) {
    let mut done = 0;
    while done < len {
        let position = offset + done as u64;
        let within = (position % BLOCK) as usize;
        let end = len.min(done + BLOCK_SIZE - within);
        visit(position / BLOCK, within, done..end);
        done = end;
    }
}
