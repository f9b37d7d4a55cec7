//! Raising an exception from inside an operator. torch turns a C++ `std::runtime_error` into a Python RuntimeError, so
//! one is thrown through the C++ runtime that torch itself uses (Itanium C++ ABI, chapter II).

use libloading::Library;
use metalcore::Error;
use std::ffi::{CString, c_char, c_void};

type Destructor = unsafe extern "C" fn(*mut c_void);

/// The functions of the C++ runtime that make and throw a `std::runtime_error`.
pub struct Thrower {
    allocate: unsafe extern "C" fn(usize) -> *mut c_void,
    construct: unsafe extern "C" fn(*mut c_void, *const c_char),
    destruct: Destructor,
    type_info: *const c_void,
    throw: unsafe extern "C-unwind" fn(*mut c_void, *const c_void, Destructor) -> !,
}
// SAFETY: addresses of code and constants.
unsafe impl Send for Thrower {}
// SAFETY: as above.
unsafe impl Sync for Thrower {}

/// Room for a `std::runtime_error`: a vtable pointer and a string pointer; some libraries add a word.
const SIZE: usize = 64;

impl Thrower {
    /// # Safety
    /// `library` is, or depends on, a C++ runtime of the Itanium ABI.
    pub unsafe fn load(library: &Library) -> Result<Thrower, libloading::Error> {
        // SAFETY: the types are those of the ABI.
        unsafe {
            Ok(Thrower {
                allocate: *library.get(b"__cxa_allocate_exception\0")?,
                construct: *library.get(b"_ZNSt13runtime_errorC1EPKc\0")?,
                destruct: *library.get(b"_ZNSt13runtime_errorD1Ev\0")?,
                type_info: *library.get::<*const c_void>(b"_ZTISt13runtime_error\0")?,
                throw: *library.get(b"__cxa_throw\0")?,
            })
        }
    }

    /// Throws `std::runtime_error(text)`.
    ///
    /// # Safety
    /// No frame between here and torch may hold a value that must be dropped.
    unsafe fn throw(&self, text: CString) -> ! {
        // SAFETY: the exception object has room, is constructed before it is thrown, and the runtime frees it.
        unsafe {
            let exception = (self.allocate)(SIZE);
            (self.construct)(exception, text.as_ptr());
            drop(text);
            (self.throw)(exception, self.type_info, self.destruct)
        }
    }
}

/// The Python class of an error.
pub fn class(error: &Error) -> &'static str {
    match error {
        Error::Argument { .. } => "ValueError",
        Error::DType { .. } => "TypeError",
        Error::Index { .. } => "IndexError",
        Error::Unsupported { .. } => "NotImplementedError",
        Error::Device { .. } | Error::OutOfMemory { .. } => "RuntimeError",
    }
}

/// Runs the body of a boxed kernel; an error or a panic becomes a C++ exception whose text starts with the Python
/// class in brackets, which the Python side reads (`metalcore._errors`).
///
/// # Safety
/// Must be the last thing that a boxed kernel does, with nothing left to drop.
pub unsafe fn boxed(body: impl FnOnce() -> metalcore::Result<()>) {
    let failure = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => format!("[{}] {error}", class(&error)),
        Err(_) => "[RuntimeError] metalcore: internal error, please report it (the panic is on stderr)".to_owned(),
    };
    let text = CString::new(failure.replace('\0', " ")).expect("zero bytes were replaced");
    drop(failure);
    // SAFETY: nothing is left to drop here; the caller promises the same of its own frame.
    unsafe { crate::shim::get().thrower.throw(text) }
}
