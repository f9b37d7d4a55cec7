//! One file per operation: its operators, written once over `Host`, and their boxed kernels.

pub mod adamw;
pub mod qr;
pub mod rms_norm;

use crate::shim::{Handle, Tensor, Value};

/// Takes tensor `i` of a boxed call over.
///
/// # Safety
/// The schema has a tensor there, and it is taken once.
unsafe fn take(stack: *const Value, i: usize) -> Tensor {
    // SAFETY: the caller's promise.
    unsafe { Tensor::from_handle(*stack.add(i) as Handle) }
}

/// Takes optional tensor `i` of a boxed call over: nothing, or a cell of the C++ heap with a handle.
///
/// # Safety
/// The schema has an optional tensor there, and it is taken once.
unsafe fn take_optional(stack: *const Value, i: usize) -> Option<Tensor> {
    unsafe extern "C" {
        fn free(pointer: *mut std::ffi::c_void);
    }
    // SAFETY: the caller's promise; operator new of every C++ runtime that torch ships with is malloc's.
    unsafe {
        let cell = *stack.add(i) as *mut Value;
        if cell.is_null() {
            return None;
        }
        let tensor = Tensor::from_handle(*cell as Handle);
        free(cell.cast());
        Some(tensor)
    }
}

/// Puts result `i` of a boxed call.
///
/// # Safety
/// The schema has a tensor there.
unsafe fn put(stack: *mut Value, i: usize, tensor: Tensor) {
    // SAFETY: the stack has room for every result.
    unsafe { *stack.add(i) = tensor.into_handle() as Value }
}
