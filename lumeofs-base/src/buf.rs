//! Page-aligned buffers: what O_DIRECT accepts and what the network fills without a copy.

#![allow(unsafe_code, reason = "an aligned allocation cannot be had from Vec")]

use crate::limits::BLOCK_SIZE;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};

/// Bytes whose address is a multiple of [`BLOCK_SIZE`]. The capacity is a multiple of it too.
pub struct AlignedBuf {
    address: std::ptr::NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the buffer is owned memory without interior sharing, like Vec<u8>.
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let capacity = len.next_multiple_of(BLOCK_SIZE).max(BLOCK_SIZE);
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a size above zero.
        let address = unsafe { alloc_zeroed(layout) };
        let address = std::ptr::NonNull::new(address).unwrap_or_else(|| handle_alloc_error(layout));
        Self {
            address,
            len,
            capacity,
        }
    }

    /// A copy of `data`.
    pub fn copy_of(data: &[u8]) -> Self {
        let mut buf = Self::zeroed(data.len());
        buf.copy_from_slice(data);
        buf
    }

    /// Sets the length to any value up to the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity,
            "length {len} exceeds capacity {}",
            self.capacity
        );
        self.len = len;
    }

    /// Bytes that fit without another allocation.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BLOCK_SIZE).expect("a buffer is far below isize::MAX")
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout, freed once.
        unsafe { dealloc(self.address.as_ptr(), Self::layout(self.capacity)) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `len <= capacity` bytes are allocated and initialised.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr(), self.len) }
    }
}
impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the reference is unique.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_and_zero() {
        for len in [0, 1, 4096, 4097] {
            let buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr() as usize % BLOCK_SIZE, 0);
            assert!(buf.iter().all(|&byte| byte == 0));
        }
    }
}
