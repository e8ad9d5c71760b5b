//! A shared mapping of a file, without unsafe code where it is used.

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};
use std::fs::File;

/// `MAP_SHARED` of the start of a file. What lies past the end of the file must not be touched: that is a SIGBUS.
#[derive(Debug)]
pub struct Mapping {
    address: *mut u8,
    length: usize,
}

impl Mapping {
    /// Maps so many bytes; the file must be open for reading and, if `writable`, for writing.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`.
    pub fn new(file: &File, length: usize, writable: bool) -> rustix::io::Result<Self> {
        let mut prot = ProtFlags::READ;
        prot.set(ProtFlags::WRITE, writable);
        // SAFETY: a new mapping at an address that the kernel chooses; only this value knows it.
        #[expect(unsafe_code, reason = "mapping is what is tested")]
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                prot,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        let address = address.cast();
        Ok(Self { address, length })
    }

    /// The first bytes as they are now.
    pub fn read(&self, length: usize) -> Vec<u8> {
        assert!(length <= self.length, "within the mapping");
        let byte = |at: usize| {
            // SAFETY: within the mapping, which lives as long as this. Others may change it, so the read is volatile.
            #[expect(unsafe_code, reason = "mapping is what is tested")]
            unsafe {
                self.address.add(at).read_volatile()
            }
        };
        (0..length).map(byte).collect()
    }

    /// Stores bytes and waits until the servers have them (`MS_SYNC`). The mapping must be writable.
    ///
    /// # Errors
    ///
    /// Those of `msync(2)`.
    pub fn store(&mut self, offset: usize, bytes: &[u8]) -> rustix::io::Result<()> {
        assert!(offset + bytes.len() <= self.length, "within the mapping");
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: within the mapping, which lives as long as this.
            #[expect(unsafe_code, reason = "mapping is what is tested")]
            unsafe {
                self.address.add(offset + at).write_volatile(*byte);
            }
        }
        // SAFETY: exactly what was mapped.
        #[expect(unsafe_code, reason = "mapping is what is tested")]
        unsafe {
            rustix::mm::msync(self.address.cast(), self.length, MsyncFlags::SYNC)
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped; nobody uses it any more. It cannot fail.
        #[expect(unsafe_code, reason = "mapping is what is tested")]
        let _ = unsafe { rustix::mm::munmap(self.address.cast(), self.length) };
    }
}
