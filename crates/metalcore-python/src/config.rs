//! Settings that Python changes and native code reads.

use std::sync::atomic::{AtomicUsize, Ordering};

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Threads of a cpu operator.
pub fn threads() -> usize {
    match THREADS.load(Ordering::Relaxed) {
        0 => crate::shim::num_threads().unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        count => count,
    }
}

/// Sets them; 0: as many as torch uses at the time of a call.
pub fn set_threads(count: usize) {
    THREADS.store(count, Ordering::Relaxed);
}
