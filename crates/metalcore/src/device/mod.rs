//! Devices: where memory lives and work runs. A device knows buffers and launches, never operations.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod gpu;

use crate::error::Result;

/// Limits and properties that plans look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    /// `cpu`, `cuda`, `emulator`, `mps`.
    pub kind: &'static str,
    /// Threadgroup (shared) memory that a kernel may use, in bytes.
    pub threadgroup_bytes: usize,
    /// Multiprocessors (GPU) or threads (CPU).
    pub units: usize,
    /// Whether float64 exists.
    pub float64: bool,
}

/// Memory and a queue. Everything enqueued runs in order; [`Device::read`] and [`Device::wait`] wait.
pub trait Device: Clone + Send + Sync + 'static {
    /// A piece of device memory; clones share it, and the last one frees it.
    type Buffer: Clone + Send + Sync;

    /// Limits and properties.
    fn caps(&self) -> &Caps;
    /// Uninitialised memory.
    fn alloc(&self, bytes: usize) -> Result<Self::Buffer>;
    /// Copies `src` to `dst` from byte `at` on.
    fn write(&self, dst: &Self::Buffer, at: usize, src: &[u8]) -> Result<()>;
    /// Waits for everything enqueued, then copies from byte `at` of `src`.
    fn read(&self, src: &Self::Buffer, at: usize, dst: &mut [u8]) -> Result<()>;
    /// Waits for everything enqueued and returns asynchronous errors.
    fn wait(&self) -> Result<()>;
}

/// A device that can execute the problem `P`. There is no fallback: a missing form is a compile error.
pub trait Run<P: Problem>: Device {
    /// Enqueues the work. Sizes were checked when the problem was made.
    fn run(&self, problem: &P, args: P::Args<'_, Self::Buffer>) -> Result<()>;
}

/// One call's checked sizes and options, with the named tensors it works on.
pub trait Problem {
    /// The tensors by name, so that they cannot be swapped.
    type Args<'a, B: 'a>;
}
