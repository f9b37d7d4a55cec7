//! Runs the GPU kernels of metalcore on the CPU, thread by thread, and reports what a GPU would not.
//!
//! A kernel text is compiled at run time by the machine's C++ compiler behind the emulator's own prelude. Every
//! thread of a group is a fiber; barriers and simd-group operations are where fibers wait for each other. A launch
//! fails with the kernel's file and line, the thread and the argument's name on
//!
//! - an access out of bounds or a misaligned vector access,
//! - a race: two threads at one element without a barrier between, of which one writes,
//! - a read of threadgroup memory that nothing was written to,
//! - a barrier or simd-group operation that not all threads reach,
//! - more than 32 KiB of threadgroup memory, 1024 threads or 31 arguments,
//! - use of an argument whose memory another argument shares, unless both are `IO`.
//!
//! Output buffers are filled with NaN before a launch, so what a kernel forgets to write is seen in its results.
//!
//! Environment: `METALCORE_CXX` names the compiler (else `CXX`, `c++`, `g++`, `clang++`, and last the clang that
//! the Python package `ziglang` brings, for the Python named by `METALCORE_PYTHON` or `python3`).

mod cache;
mod compiler;
mod error;
mod ffi;
mod library;
mod sources;

pub use error::Error;
pub use library::Library;

/// What a kernel is and takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelInfo {
    /// Name of the function.
    pub name: String,
    /// Threads in a group, as the kernel declares them.
    pub threads: u32,
    /// Arguments in the order of their buffer indices.
    pub args: Vec<ArgInfo>,
}

/// What an argument of a kernel is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgInfo {
    /// Name of the parameter in the kernel's text.
    pub name: String,
    /// What it is for.
    pub kind: ArgKind,
    /// Bytes of an element, or of the whole parameter block.
    pub element_bytes: usize,
}

/// What an argument is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgKind {
    /// A buffer that is only read.
    In,
    /// A buffer that is only written; filled with NaN before the launch.
    Out,
    /// A buffer that is read and written.
    InOut,
    /// The parameter block.
    Params,
}

/// An argument of a launch.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// Memory of the host, standing in for a device buffer.
    Buffer {
        /// Its first byte.
        pointer: *mut u8,
        /// Its length.
        bytes: usize,
    },
    /// The parameter block, as it lies in memory.
    Params(&'a [u8]),
}

/// The order in which threads, and groups, are run. A right kernel gives the same bits in every order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    /// By rising number.
    #[default]
    Forward,
    /// By falling number.
    Reverse,
    /// Any thread that is ready, chosen by a generator with this seed.
    Random(u64),
}

/// How to run a launch.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Order of threads.
    pub schedule: Schedule,
    /// Host threads over the groups. With more than one, races in device memory are not looked for.
    pub workers: u32,
    /// Look for races and uninitialised reads in threadgroup memory.
    pub check_threadgroup: bool,
    /// Look for races in device memory.
    pub check_device: bool,
    /// Bytes of threadgroup memory that a group may have; at most 256 KiB.
    pub threadgroup_limit: u32,
    /// Flush denormals to zero, as Metal does. Float64 kernels never do.
    pub flush_denormals: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            schedule: Schedule::Forward,
            workers: 1,
            check_threadgroup: true,
            check_device: true,
            threadgroup_limit: 32 * 1024,
            flush_denormals: true,
        }
    }
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Switches from one thread to another.
    pub switches: u64,
    /// Group barriers passed.
    pub barriers: u64,
    /// Simd-group operations and barriers.
    pub simd_ops: u64,
    /// Threadgroup memory of a group.
    pub threadgroup_bytes: u64,
}
