//! gather, index_select and scatter_add on the host: loops over runs along the fastest dimension.

use super::{Dim, Indexing};
use crate::IndexElement;
use crate::device::cpu::Threads;
use crate::device::cpu::simd::{Real, Simd, Storage, WithSimd, dispatch};
use crate::error::{Error, Result};
use smallvec::SmallVec;
use std::sync::OnceLock;

/// Elements that a thread takes at a time: more work than the taking.
const CHUNK: usize = 16 * 1024;

/// An index that is out of range, once one was found.
struct Outside(OnceLock<i64>);

impl Outside {
    fn new() -> Outside {
        Outside(OnceLock::new())
    }
    /// The index, if it is in range.
    #[inline(always)]
    fn pick<I: IndexElement>(&self, index: I, limit: usize) -> Option<usize> {
        let index: i64 = index.into();
        if (index as u64) < limit as u64 {
            return Some(index as usize);
        }
        self.0.get_or_init(|| index);
        None
    }
    fn result(self, op: &'static str, limit: usize) -> Result<()> {
        let expected = format!("0 to {}", limit as i64 - 1);
        self.0.into_inner().map_or(Ok(()), |got| Err(Error::Index { op, argument: "index", got, expected }))
    }
}

/// A run along the fastest dimension: where it begins in each tensor.
struct Run {
    table: usize,
    index: usize,
    values: usize,
}

/// Calls `body` with the runs of some dimensions from element `first` on, `count` elements in all, and their lengths.
#[inline(always)]
fn runs(dims: &[Dim], first: usize, mut count: usize, mut body: impl FnMut(Run, usize)) {
    let mut at: SmallVec<[usize; 8]> = SmallVec::new();
    let mut rest = first;
    for dim in dims {
        at.push(rest % dim.size);
        rest /= dim.size;
    }
    while count > 0 {
        let offset = |of: fn(&Dim) -> usize| dims.iter().zip(&at).map(|(dim, at)| of(dim) * at).sum();
        let run = Run { table: offset(|dim| dim.table), index: offset(|dim| dim.index), values: offset(|dim| dim.values) };
        let length = count.min(dims[0].size - at[0]);
        body(run, length);
        count -= length;
        at[0] = 0;
        for (at, dim) in at.iter_mut().zip(dims).skip(1) {
            *at += 1;
            if *at < dim.size {
                break;
            }
            *at = 0;
        }
    }
}

/// out := the elements of src that the index names.
pub fn gather<W: Copy + Send + Sync, I: IndexElement>(
    threads: &Threads,
    indexing: &Indexing,
    src: &[W],
    index: &[I],
    out: &mut [W],
) -> Result<()> {
    let Indexing { dims, limit, step, .. } = indexing;
    let outside = Outside::new();
    let mut chunks: Vec<_> = out.chunks_mut(CHUNK).enumerate().collect();
    threads.for_each_mut(&mut chunks, 1, |(chunk, out)| {
        let (mut rest, dim) = (&mut out[..], dims[0]);
        runs(dims, *chunk * CHUNK, rest.len(), |run, length| {
            let (out, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            if dim.index != 0 {
                for (j, out) in out.iter_mut().enumerate() {
                    if let Some(pick) = outside.pick(index[run.index + j * dim.index], *limit) {
                        *out = src[run.table + j * dim.table + pick * step];
                    }
                }
            } else if let Some(pick) = outside.pick(index[run.index], *limit) {
                let from = run.table + pick * step;
                if dim.table == 1 {
                    out.copy_from_slice(&src[from..from + length]);
                } else {
                    out.iter_mut().enumerate().for_each(|(j, out)| *out = src[from + j * dim.table]);
                }
            }
        });
    });
    outside.result("gather", *limit)
}

/// Values of one type to another.
struct Convert<'a, G, H> {
    from: &'a [G],
    to: &'a mut [H],
}

impl<G: Storage, H: Storage<Compute = G::Compute>> WithSimd for Convert<'_, G, H> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = G::Compute::lanes::<S>();
        let (mut from, mut to) = (self.from.chunks_exact(lanes), self.to.chunks_exact_mut(lanes));
        for (from, to) in (&mut from).zip(&mut to) {
            G::Compute::store(simd, G::Compute::load(simd, from), to);
        }
        let rest = G::Compute::load_part(simd, from.remainder());
        G::Compute::store_part(simd, rest, to.into_remainder());
    }
}

fn convert<G: Storage, H: Storage<Compute = G::Compute>>(threads: &Threads, from: &[G], to: &mut [H]) {
    let mut chunks: Vec<_> = from.chunks(CHUNK).zip(to.chunks_mut(CHUNK)).collect();
    threads.for_each_mut(&mut chunks, 1, |(from, to)| dispatch(Convert { from, to }));
}

/// out += src, where the index says, in its order.
pub fn scatter_add<T: Storage, I: IndexElement>(
    threads: &Threads,
    indexing: &Indexing,
    index: &[I],
    src: &[T],
    out: &mut [T],
) -> Result<()>
where
    T::Compute: Storage<Compute = T::Compute>,
{
    if indexing.total == 0 || out.is_empty() {
        return Ok(());
    }
    if T::DTYPE == T::DTYPE.compute() {
        // SAFETY: T is its own compute type.
        let sums = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), out.len()) };
        return add(threads, indexing, index, src, sums);
    }
    let mut sums = vec![T::Compute::default(); out.len()];
    convert(threads, out, &mut sums);
    add(threads, indexing, index, src, &mut sums)?;
    convert(threads, &sums, out);
    Ok(())
}

/// The share of a thread: a range of one dimension, and of the places that the index names.
struct Part {
    dims: SmallVec<[Dim; 4]>,
    first: Run,
    low: usize,
    high: usize,
}

/// Parts that add to different elements. Where no dimension but the index's own is there to divide, each part reads the
/// whole index.
fn parts(indexing: &Indexing, count: usize) -> Vec<Part> {
    let count = if indexing.total < CHUNK { 1 } else { count };
    // A line of the cache belongs to one thread.
    let enough = |(d, dim): &(usize, &Dim)| dim.table != 0 && dim.size >= count * if *d == 0 { 64 } else { 1 };
    let divided = indexing.dims.iter().enumerate().rev().find(enough);
    let bounds = |size: usize, part: usize| (size * part / count, size * (part + 1) / count);
    (0..count)
        .map(|part| {
            let mut dims = indexing.dims.clone();
            let Some((d, dim)) = divided else {
                let (low, high) = bounds(indexing.limit, part);
                return Part { dims, first: Run { table: 0, index: 0, values: 0 }, low, high };
            };
            let (from, to) = bounds(dim.size, part);
            dims[d].size = to - from;
            let first = Run { table: from * dim.table, index: from * dim.index, values: from * dim.values };
            Part { dims, first, low: 0, high: indexing.limit }
        })
        .collect()
}

/// Sums that threads add to, each to its own.
struct Sums<C> {
    first: *mut C,
    len: usize,
}
// SAFETY: handed to threads whose parts add to different elements.
unsafe impl<C: Send> Sync for Sums<C> {}

impl<C> Sums<C> {
    /// # Safety
    /// Nobody else uses the elements meanwhile.
    #[expect(clippy::mut_from_ref, reason = "each element is one part's")]
    #[inline(always)]
    unsafe fn at(&self, from: usize, length: usize) -> &mut [C] {
        assert!(from + length <= self.len);
        // SAFETY: in bounds, and the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(from), length) }
    }
}

fn add<T: Storage, I: IndexElement>(
    threads: &Threads,
    indexing: &Indexing,
    index: &[I],
    src: &[T],
    sums: &mut [T::Compute],
) -> Result<()> {
    let (limit, step) = (indexing.limit, indexing.step);
    let outside = Outside::new();
    let sums = Sums { first: sums.as_mut_ptr(), len: sums.len() };
    let mut parts = parts(indexing, threads.count());
    threads.for_each_mut(&mut parts, 1, |part| {
        let (dim, total) = (part.dims[0], part.dims.iter().map(|dim| dim.size).product());
        let mine = |index: I| outside.pick(index, limit).filter(|pick| (part.low..part.high).contains(pick));
        runs(&part.dims, 0, total, |run, length| {
            let table = part.first.table + run.table;
            let (at, values) = (part.first.index + run.index, part.first.values + run.values);
            if dim.index != 0 || dim.table != 1 || dim.values != 1 {
                for j in 0..length {
                    if let Some(pick) = mine(index[at + j * dim.index]) {
                        // SAFETY: the element is this part's.
                        let sum = unsafe { sums.at(table + j * dim.table + pick * step, 1) };
                        sum[0] += T::Compute::get(src[values + j * dim.values]);
                    }
                }
            } else if let Some(pick) = mine(index[at]) {
                // SAFETY: the elements are this part's.
                let sums = unsafe { sums.at(table + pick * step, length) };
                for (sum, value) in sums.iter_mut().zip(&src[values..values + length]) {
                    *sum += T::Compute::get(*value);
                }
            }
        });
    });
    outside.result("scatter_add", limit)
}
