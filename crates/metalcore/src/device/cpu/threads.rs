//! Loops over independent items, shared between the calling thread and a pool.
//!
//! The caller works too, and never waits for a helper that has not started: a loop of a few microseconds is done
//! before a sleeping thread wakes, and then costs nothing but the wake-up call. Pools are made when a loop first
//! needs one, one for each number of threads and process (a forked child has none of its parent's threads), and
//! live until the process ends. Which thread runs an item is not fixed, so no result may depend on it.
//!
//! A program that keeps threads of its own lends them with [`Threads::lend`]. Idle OpenMP threads spin for
//! milliseconds after each loop: beside them our helpers would find no processor free.

use rayon::{ThreadPool, ThreadPoolBuilder};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Thread;

/// How many threads a loop may use, the caller's included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    count: usize,
}

impl Threads {
    /// A number of threads; 0 means 1. Starts none.
    pub fn new(count: usize) -> Threads {
        Threads { count: count.max(1) }
    }

    /// The number of threads, the caller's included.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Calls `task` with ranges of at most `chunk` items that together cover `0..items` once.
    pub fn for_each_chunk(&self, items: usize, chunk: usize, task: impl Fn(Range<usize>) + Sync) {
        self.for_each_chunk_init(items, chunk, || (), |(), range| task(range));
    }

    /// As [`Threads::for_each_chunk`], with a value that each thread makes once and keeps for all its chunks.
    pub fn for_each_chunk_init<S>(
        &self,
        items: usize,
        chunk: usize,
        init: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, Range<usize>) + Sync,
    ) {
        let chunk = chunk.max(1);
        let chunks = items.div_ceil(chunk);
        if chunks == 0 {
            return;
        }
        let next = AtomicUsize::new(0);
        let body = || {
            let mut claimed = next.fetch_add(1, Ordering::Relaxed);
            if claimed >= chunks {
                return;
            }
            let mut state = init();
            while claimed < chunks {
                task(&mut state, claimed * chunk..items.min((claimed + 1) * chunk));
                claimed = next.fetch_add(1, Ordering::Relaxed);
            }
        };
        self.share(self.count.min(chunks) - 1, &body);
    }

    /// Calls `task` once with each item; a thread takes `chunk` neighbours at a time.
    pub fn for_each_mut<I: Send>(&self, items: &mut [I], chunk: usize, task: impl Fn(&mut I) + Sync) {
        self.for_each_mut_init(items, chunk, || (), |(), item| task(item));
    }

    /// As [`Threads::for_each_mut`], with a value that each thread makes once and keeps for all its items.
    pub fn for_each_mut_init<I: Send, S>(
        &self,
        items: &mut [I],
        chunk: usize,
        init: impl Fn() -> S + Sync,
        task: impl Fn(&mut S, &mut I) + Sync,
    ) {
        let first = Items(items.as_mut_ptr());
        self.for_each_chunk_init(items.len(), chunk, init, |state, range| {
            for index in range {
                // SAFETY: index < items.len(), and ranges do not overlap: each item has one borrower.
                task(state, unsafe { first.item(index) });
            }
        });
    }

    /// Makes the loops of this process, though not of its forked children, use another pool. The first lender stays.
    pub fn lend(pool: HostPool) {
        let _ = HOST.set((std::process::id(), pool));
    }

    /// Runs `body` on the caller and on up to `helpers` other threads.
    fn share(&self, helpers: usize, body: &(dyn Fn() + Sync)) {
        if helpers == 0 {
            return body();
        }
        let panic = Mutex::new(None);
        let guarded = || {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(body)) {
                *panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
            }
        };
        let lent =
            HOST.get().is_some_and(|(process, host)| *process == std::process::id() && host(helpers + 1, &guarded));
        if !lent {
            match pool(self.count - 1) {
                Some(pool) => share_with(pool, helpers, &guarded),
                None => guarded(),
            }
        }
        if let Some(payload) = panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
            resume_unwind(payload);
        }
    }
}

/// Calls a body, which does not panic, from the calling thread and from other threads, at most so many calls in all,
/// and returns after them; false if it has not called it, for want of so many threads.
pub type HostPool = fn(calls: usize, body: &(dyn Fn() + Sync)) -> bool;
static HOST: OnceLock<(u32, HostPool)> = OnceLock::new();

fn share_with(pool: &ThreadPool, helpers: usize, body: &(dyn Fn() + Sync)) {
    let job = Arc::new(Job::new(body));
    for _ in 0..helpers {
        let job = Arc::clone(&job);
        pool.spawn(move || job.help());
    }
    body();
    job.close();
}

/// The address of the first of some items.
struct Items<I>(*mut I);
// SAFETY: shared between threads only to hand each item to one of them, and `I` may be sent.
unsafe impl<I: Send> Sync for Items<I> {}
impl<I> Items<I> {
    /// # Safety
    /// `index` must be in bounds, and asked for once.
    #[expect(clippy::mut_from_ref, reason = "each item is handed out once")]
    unsafe fn item(&self, index: usize) -> &mut I {
        // SAFETY: the caller's promise.
        unsafe { &mut *self.0.add(index) }
    }
}

/// A body, which does not panic, that helpers may enter until the caller closes it.
struct Job {
    body: *const (dyn Fn() + Sync),
    /// Twice the number of helpers inside, plus 1 once closed.
    state: AtomicUsize,
    caller: Thread,
}
// SAFETY: the body may be called from any thread (it is Sync), and is called only between entering and leaving.
unsafe impl Send for Job {}
// SAFETY: as above; the rest is atomic.
unsafe impl Sync for Job {}

const CLOSED: usize = 1;
const HELPER: usize = 2;
/// About 20 microseconds: longer than the rest of a small chunk, shorter than a sleep and a wake-up.
const SPINS: usize = 2000;

impl Job {
    fn new<'a>(body: &'a (dyn Fn() + Sync + 'a)) -> Job {
        // SAFETY: only the lifetime changes. `share_with` lets the body go only after `close`, from when on nobody is
        // inside it or can enter it.
        let body: &'static (dyn Fn() + Sync) = unsafe { std::mem::transmute(body) };
        Job { body, state: AtomicUsize::new(0), caller: std::thread::current() }
    }

    fn help(&self) {
        if self.state.fetch_add(HELPER, Ordering::Acquire) & CLOSED == 0 {
            // SAFETY: entered before `close`, which waits until this has left: the body is alive.
            unsafe { (*self.body)() };
        }
        // Closed and empty: the caller may be asleep waiting for this.
        if self.state.fetch_sub(HELPER, Ordering::Release) == HELPER + CLOSED {
            self.caller.unpark();
        }
    }

    /// Lets no helper in any more and waits for those inside.
    fn close(&self) {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
        let mut spins = 0;
        while self.state.load(Ordering::Acquire) != CLOSED {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::park();
            }
        }
    }
}

/// A pool and the next one, in a list that only grows: found without a lock that a fork could leave taken.
struct Node {
    process: u32,
    helpers: usize,
    pool: ThreadPool,
    next: OnceLock<Box<Node>>,
}
static POOLS: OnceLock<Box<Node>> = OnceLock::new();

/// This process' pool of that many helpers; none if the system gives no threads.
fn pool(helpers: usize) -> Option<&'static ThreadPool> {
    let process = std::process::id();
    let mut slot = &POOLS;
    let mut made = None;
    loop {
        if let Some(node) = slot.get() {
            if node.process == process && node.helpers == helpers {
                return Some(&node.pool);
            }
            slot = &node.next;
            continue;
        }
        let node = match made.take() {
            Some(node) => node,
            None => {
                let name = |index| format!("metalcore-{index}");
                let pool = ThreadPoolBuilder::new().num_threads(helpers).thread_name(name).build().ok()?;
                Box::new(Node { process, helpers, pool, next: OnceLock::new() })
            }
        };
        // Another thread may have filled the slot meanwhile: look again, keeping ours for a later slot.
        made = slot.set(node).err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_visited_once_by_any_number_of_threads() {
        for threads in [1, 2, 3, 7] {
            for items in [0, 1, 2, 5, 64, 1000] {
                for chunk in [1, 3, 64, 5000] {
                    let visits: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                    Threads::new(threads).for_each_chunk(items, chunk, |range| {
                        assert!(!range.is_empty() && range.len() <= chunk);
                        for index in range {
                            visits[index].fetch_add(1, Ordering::Relaxed);
                        }
                    });
                    assert!(visits.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn items_are_handed_out_mutably() {
        let mut items: Vec<usize> = (0..513).collect();
        Threads::new(4).for_each_mut(&mut items, 10, |item| *item *= 2);
        assert!(items.iter().enumerate().all(|(index, item)| *item == 2 * index));
    }

    #[test]
    fn loops_nest_and_run_from_many_threads_at_once() {
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        Threads::new(3).for_each_chunk(10, 1, |outer| {
                            Threads::new(3).for_each_chunk(10, 1, |inner| {
                                total.fetch_add(outer.len() * inner.len(), Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 8 * 50 * 100);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for _ in 0..20 {
            let result = catch_unwind(|| {
                Threads::new(4).for_each_chunk(100, 1, |range| assert!(range.start != 57, "item 57"));
            });
            assert!(result.is_err());
        }
        items_are_handed_out_mutably();
    }
}
