//! Settings that Python changes and native code reads.

use std::sync::atomic::{AtomicUsize, Ordering};

static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Threads of a cpu operator.
pub fn threads() -> usize {
    match THREADS.load(Ordering::Relaxed) {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

/// Sets them; 0: all processors.
pub fn set_threads(count: usize) {
    THREADS.store(count, Ordering::Relaxed);
}
