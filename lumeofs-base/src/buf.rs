//! Page-aligned buffers: what O_DIRECT accepts and what the network fills without a copy.

//!
//! Buffers of [`POOLED_BYTES_MIN`] and more are kept for the next one of their size when they are
//! dropped: asking the kernel for fresh pages costs several times what filling them does.

#![allow(unsafe_code, reason = "an aligned allocation cannot be had from Vec")]

use crate::limits::{BLOCK_SIZE, POOLED_BYTES_MAX, POOLED_BYTES_MIN, POOLED_CLASS_BYTES_MAX};
use parking_lot::Mutex;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes whose address is a multiple of [`BLOCK_SIZE`]. The capacity is a multiple of it too. An empty
/// buffer has no memory.
pub struct AlignedBuf {
    address: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the buffer is owned memory without interior sharing, like Vec<u8>.
unsafe impl Send for AlignedBuf {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for AlignedBuf {}

/// Memory that nobody owns now.
struct Spare(NonNull<u8>);
// SAFETY: as for AlignedBuf; the pool is its only holder.
unsafe impl Send for Spare {}

const CLASSES: usize = (POOLED_BYTES_MAX / POOLED_BYTES_MIN).ilog2() as usize + 1;
static POOL: [Mutex<Vec<Spare>>; CLASSES] = [const { Mutex::new(Vec::new()) }; CLASSES];

/// The pool's list for buffers of this capacity, and how many it may hold.
fn class(capacity: usize) -> Option<(&'static Mutex<Vec<Spare>>, usize)> {
    let pooled = (POOLED_BYTES_MIN..=POOLED_BYTES_MAX).contains(&capacity);
    pooled.then(|| {
        let index = (capacity / POOLED_BYTES_MIN).ilog2() as usize;
        (&POOL[index], POOLED_CLASS_BYTES_MAX / capacity)
    })
}

impl AlignedBuf {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let (mut buf, fresh) = Self::take(len);
        if !fresh {
            buf.fill(0);
        }
        buf
    }

    /// `len` bytes of any value, for a caller that fills them all.
    pub fn scratch(len: usize) -> Self {
        Self::take(len).0
    }

    /// A copy of `data`.
    pub fn copy_of(data: &[u8]) -> Self {
        let mut buf = Self::scratch(data.len());
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

    /// A buffer, and whether it is fresh and so all zero.
    fn take(len: usize) -> (Self, bool) {
        let mut capacity = len.next_multiple_of(BLOCK_SIZE);
        if capacity == 0 {
            let address = NonNull::without_provenance(
                std::num::NonZero::new(BLOCK_SIZE).expect("blocks have a size"),
            );
            return (
                Self {
                    address,
                    len,
                    capacity,
                },
                true,
            );
        }
        if (POOLED_BYTES_MIN..=POOLED_BYTES_MAX).contains(&capacity) {
            capacity = capacity.next_power_of_two();
        }
        let spare = class(capacity).and_then(|(list, _)| list.lock().pop());
        if let Some(Spare(address)) = spare {
            return (
                Self {
                    address,
                    len,
                    capacity,
                },
                false,
            );
        }
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a size above zero.
        let address = unsafe { alloc_zeroed(layout) };
        let address = NonNull::new(address).unwrap_or_else(|| handle_alloc_error(layout));
        (
            Self {
                address,
                len,
                capacity,
            },
            true,
        )
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BLOCK_SIZE).expect("a buffer is far below isize::MAX")
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Some((list, count_max)) = class(self.capacity) {
            let mut list = list.lock();
            if list.len() < count_max {
                return list.push(Spare(self.address));
            }
        }
        if self.capacity == 0 {
            return;
        }
        // SAFETY: allocated in `take` with this layout, freed once.
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

    #[test]
    fn a_reused_buffer_is_zeroed_when_asked_and_keeps_its_class() {
        for len in [POOLED_BYTES_MIN, 100_000, POOLED_BYTES_MAX] {
            let mut buf = AlignedBuf::zeroed(len);
            buf.fill(7);
            drop(buf);
            let buf = AlignedBuf::zeroed(len);
            assert!(buf.iter().all(|&byte| byte == 0));
            assert!(buf.capacity().is_power_of_two());
        }
        assert_eq!(&AlignedBuf::copy_of(&[3; 70_000])[..], [3; 70_000]);
    }
}
