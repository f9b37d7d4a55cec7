//! The host: its memory and its threads. Work is done when a call returns.

pub mod interleaved;
pub mod rows;
pub mod simd;
mod threads;

pub use threads::Threads;

use super::{Caps, Device};
use crate::error::{Error, Result};
use std::alloc::{Layout, alloc, dealloc};
use std::sync::Arc;

/// The host processor, with a number of threads.
#[derive(Clone)]
pub struct Cpu {
    caps: Caps,
    threads: Threads,
}

impl Cpu {
    /// As many threads as the machine has processors.
    pub fn new() -> Cpu {
        Cpu::with_threads(std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// A given number of threads.
    pub fn with_threads(count: usize) -> Cpu {
        let caps = Caps { kind: "cpu", threadgroup_bytes: 0, units: count, float64: true };
        Cpu { caps, threads: Threads::new(count) }
    }

    /// Where loops run.
    pub fn threads(&self) -> &Threads {
        &self.threads
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Cpu::new()
    }
}

/// Host memory: its own, or somebody else's.
#[derive(Clone)]
pub struct Buffer {
    pointer: *mut u8,
    bytes: usize,
    _owner: Option<Arc<Owned>>,
}
// SAFETY: a buffer is an address; who reads and writes when is decided by the calls, which take turns.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

struct Owned {
    pointer: *mut u8,
    layout: Layout,
}
// SAFETY: freed once, by whichever thread drops it last.
unsafe impl Send for Owned {}
// SAFETY: nothing but drop touches it.
unsafe impl Sync for Owned {}
impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `alloc`.
        unsafe { dealloc(self.pointer, self.layout) }
    }
}

impl Buffer {
    /// Memory that belongs to somebody else.
    ///
    /// # Safety
    /// `pointer` must stay valid for `bytes` bytes as long as the buffer or a clone of it is used.
    pub unsafe fn foreign(pointer: *mut u8, bytes: usize) -> Buffer {
        Buffer { pointer, bytes, _owner: None }
    }

    /// First byte.
    pub fn pointer(&self) -> *mut u8 {
        self.pointer
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first `len` elements.
    ///
    /// # Safety
    /// The buffer must hold them, initialised, and nobody may write them meanwhile.
    pub unsafe fn slice<T>(&self, len: usize) -> &[T] {
        assert!(len * size_of::<T>() <= self.bytes);
        if len == 0 {
            return &[];
        }
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.pointer.cast(), len) }
    }

    /// The first `len` elements, to be written.
    ///
    /// # Safety
    /// The buffer must hold them, and nobody else may touch them meanwhile.
    #[allow(clippy::mut_from_ref)] // the buffer is a handle; exclusive use is the caller's promise
    pub unsafe fn slice_mut<T>(&self, len: usize) -> &mut [T] {
        assert!(len * size_of::<T>() <= self.bytes);
        if len == 0 {
            return &mut [];
        }
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast(), len) }
    }
}

impl Device for Cpu {
    type Buffer = Buffer;

    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        // 64 bytes: a cache line, and the widest vector.
        let layout =
            Layout::from_size_align(bytes.max(64), 64).map_err(|_| Error::OutOfMemory { device: "cpu", bytes })?;
        // SAFETY: the size is not zero.
        let pointer = unsafe { alloc(layout) };
        if pointer.is_null() {
            return Err(Error::OutOfMemory { device: "cpu", bytes });
        }
        Ok(Buffer { pointer, bytes, _owner: Some(Arc::new(Owned { pointer, layout })) })
    }

    fn write(&self, dst: &Buffer, at: usize, src: &[u8]) -> Result<()> {
        assert!(at + src.len() <= dst.bytes, "write of {} bytes at {at} to {}", src.len(), dst.bytes);
        // SAFETY: in bounds by the assertion; the regions are different allocations.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), dst.pointer.add(at), src.len()) };
        Ok(())
    }

    fn read(&self, src: &Buffer, at: usize, dst: &mut [u8]) -> Result<()> {
        assert!(at + dst.len() <= src.bytes, "read of {} bytes at {at} of {}", dst.len(), src.bytes);
        // SAFETY: in bounds by the assertion; the regions are different allocations.
        unsafe { std::ptr::copy_nonoverlapping(src.pointer.add(at), dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}
