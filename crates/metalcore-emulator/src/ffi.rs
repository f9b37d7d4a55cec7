//! The structures of abi.h.

use std::ffi::{c_char, c_int, c_void};

#[repr(C)]
pub(crate) struct ArgumentInfo {
    pub(crate) index: u32,
    pub(crate) kind: u32,
    pub(crate) element_bytes: u64,
}

#[repr(C)]
pub(crate) struct Argument {
    pub(crate) pointer: *mut c_void,
    pub(crate) bytes: u64,
    pub(crate) name: *const c_char,
}

#[repr(C)]
pub(crate) struct Kernel {
    pub(crate) name: *const c_char,
    pub(crate) signature: *const c_char,
    pub(crate) arguments: *const ArgumentInfo,
    call: *const c_void,
    pub(crate) next: *const Kernel,
    pub(crate) argument_count: u32,
    pub(crate) threads: u32,
    float64: u32,
}

#[repr(C)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) schedule: u32,
    pub(crate) workers: u32,
    pub(crate) check_threadgroup: u32,
    pub(crate) check_device: u32,
    pub(crate) threadgroup_limit: u32,
    pub(crate) flush_denormals: u32,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct Stats {
    pub(crate) switches: u64,
    pub(crate) barriers: u64,
    pub(crate) simd_operations: u64,
    pub(crate) threadgroup_bytes: u64,
}

/// The table of functions that the runtime offers kernels; Rust only hands it on.
#[repr(C)]
pub(crate) struct Runtime {
    _private: [u8; 0],
}

pub(crate) type RuntimeFn = unsafe extern "C" fn() -> *const Runtime;
pub(crate) type KernelsFn = unsafe extern "C" fn(*const Runtime) -> *const Kernel;
pub(crate) type LaunchFn = unsafe extern "C" fn(
    kernel: *const Kernel,
    groups: u32,
    threads: u32,
    argument_count: u32,
    arguments: *const Argument,
    options: *const Options,
    stats: *mut Stats,
    error: *mut c_char,
    error_length: usize,
) -> c_int;
