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
    /// The index less `low`, if that is less than `count`; notes one that is not less than `limit` either.
    #[inline(always)]
    fn pick<I: IndexElement>(&self, index: I, (low, count): (usize, usize), limit: usize) -> Option<usize> {
        let index: i64 = index.into();
        let found = (index as usize).wrapping_sub(low);
        if found < count {
            return Some(index as usize);
        }
        if index as u64 >= limit as u64 {
            self.note(index);
        }
        None
    }
    #[cold]
    fn note(&self, index: i64) {
        self.0.get_or_init(|| index);
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
        let run =
            Run { table: offset(|dim| dim.table), index: offset(|dim| dim.index), values: offset(|dim| dim.values) };
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
    let Indexing { op, dims, limit, step, .. } = indexing;
    let outside = Outside::new();
    let mut chunks: Vec<_> = out.chunks_mut(CHUNK).enumerate().collect();
    threads.for_each_mut(&mut chunks, 1, |(chunk, out)| {
        let (mut rest, dim) = (&mut out[..], dims[0]);
        runs(dims, *chunk * CHUNK, rest.len(), |run, length| {
            let (out, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            let pick = |index: &I| outside.pick(*index, (0, *limit), *limit);
            if dim.index == 1 {
                let index = &index[run.index..run.index + length];
                for (j, (out, index)) in out.iter_mut().zip(index).enumerate() {
                    if let Some(pick) = pick(index) {
                        *out = src[run.table + j * dim.table + pick * step];
                    }
                }
            } else if dim.index != 0 {
                for (j, out) in out.iter_mut().enumerate() {
                    if let Some(pick) = pick(&index[run.index + j * dim.index]) {
                        *out = src[run.table + j * dim.table + pick * step];
                    }
                }
            } else if let Some(pick) = pick(&index[run.index]) {
                let from = run.table + pick * step;
                if dim.table == 1 {
                    out.copy_from_slice(&src[from..from + length]);
                } else {
                    out.iter_mut().enumerate().for_each(|(j, out)| *out = src[from + j * dim.table]);
                }
            }
        });
    });
    outside.result(op, *limit)
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

/// out := dst
pub fn copy<T: Copy + Send + Sync>(threads: &Threads, dst: &[T], out: &mut [T]) {
    let mut chunks: Vec<_> = dst.chunks(CHUNK).zip(out.chunks_mut(CHUNK)).collect();
    threads.for_each_mut(&mut chunks, 1, |(dst, out)| out.copy_from_slice(dst));
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
    if indexing.total == 0 {
        return Ok(());
    }
    let outside = Outside::new();
    let call = Call { indexing, index, src, outside: &outside };
    if T::DTYPE == T::DTYPE.compute() {
        // SAFETY: T is its own compute type.
        let sums: &mut [T::Compute] = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast(), out.len()) };
        call.add(threads, &Shared::new(sums), None);
    } else {
        let mut sums = vec![T::Compute::default(); out.len()];
        if indexing.total < out.len() / FEW {
            call.add(threads, &Shared::new(&mut sums), Some(&Shared::new(out)));
        } else {
            convert(threads, out, &mut sums);
            call.add(threads, &Shared::new(&mut sums), None);
            convert(threads, &sums, out);
        }
    }
    outside.result(indexing.op, indexing.limit)
}

/// One in so many elements of a tensor: fewer are widened and rounded one by one, with those that are added.
const FEW: usize = 4;

/// The share of a thread: a range of one dimension, and of the places that the index names.
struct Part {
    dims: SmallVec<[Dim; 4]>,
    first: Run,
    low: usize,
    count: usize,
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
                return Part { dims, first: Run { table: 0, index: 0, values: 0 }, low, count: high - low };
            };
            let (from, to) = bounds(dim.size, part);
            dims[d].size = to - from;
            let first = Run { table: from * dim.table, index: from * dim.index, values: from * dim.values };
            Part { dims, first, low: 0, count: indexing.limit }
        })
        .collect()
}

/// Elements that threads write, each its own.
struct Shared<C> {
    first: *mut C,
    len: usize,
}
// SAFETY: handed to threads whose parts have different elements.
unsafe impl<C: Send> Sync for Shared<C> {}

impl<C> Shared<C> {
    fn new(elements: &mut [C]) -> Shared<C> {
        Shared { first: elements.as_mut_ptr(), len: elements.len() }
    }
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

struct Call<'a, T, I> {
    indexing: &'a Indexing,
    index: &'a [I],
    src: &'a [T],
    outside: &'a Outside,
}

impl<T: Storage, I: IndexElement> Call<'_, T, I> {
    /// sums += src. With `stored`, the sums that are added to begin as its elements, and are rounded to them.
    fn add(&self, threads: &Threads, sums: &Shared<T::Compute>, stored: Option<&Shared<T>>) {
        let mut parts = parts(self.indexing, threads.count());
        threads.for_each_mut(&mut parts, 1, |part| {
            if let Some(stored) = stored {
                self.visit(part, |at, length, _, _| {
                    // SAFETY: the elements are this part's.
                    let (sums, stored) = unsafe { (sums.at(at, length), stored.at(at, length)) };
                    sums.iter_mut().zip(stored).for_each(|(sum, stored)| *sum = T::Compute::get(*stored));
                });
            }
            self.visit(part, |at, length, from, step| {
                // SAFETY: the elements are this part's.
                let sums = unsafe { sums.at(at, length) };
                if length == 1 {
                    sums[0] += T::Compute::get(self.src[from]);
                } else if step == 1 {
                    let terms = &self.src[from..from + length];
                    sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += T::Compute::get(*term));
                } else {
                    let add = |(j, sum): (usize, &mut T::Compute)| *sum += T::Compute::get(self.src[from + j * step]);
                    sums.iter_mut().enumerate().for_each(add);
                }
            });
            if let Some(stored) = stored {
                self.visit(part, |at, length, _, _| {
                    // SAFETY: the elements are this part's.
                    let (sums, stored) = unsafe { (sums.at(at, length), stored.at(at, length)) };
                    stored.iter_mut().zip(sums).for_each(|(stored, sum)| *stored = sum.put());
                });
            }
        });
    }

    /// Calls `body` with runs of neighbours in the table: where, how many, and where and how far apart in `src`.
    #[inline(always)]
    fn visit(&self, part: &Part, body: impl Fn(usize, usize, usize, usize)) {
        let step = self.indexing.step;
        let (dim, total) = (part.dims[0], part.dims.iter().map(|dim| dim.size).product());
        let mine = |index: &I| self.outside.pick(*index, (part.low, part.count), self.indexing.limit);
        runs(&part.dims, 0, total, |run, length| {
            let table = part.first.table + run.table;
            let (at, values) = (part.first.index + run.index, part.first.values + run.values);
            if dim.index == 0 && dim.table == 1 {
                if let Some(pick) = mine(&self.index[at]) {
                    body(table + pick * step, length, values, dim.values);
                }
            } else if dim.index == 1 {
                for (j, index) in self.index[at..at + length].iter().enumerate() {
                    if let Some(pick) = mine(index) {
                        body(table + j * dim.table + pick * step, 1, values + j * dim.values, 0);
                    }
                }
            } else {
                for j in 0..length {
                    if let Some(pick) = mine(&self.index[at + j * dim.index]) {
                        body(table + j * dim.table + pick * step, 1, values + j * dim.values, 0);
                    }
                }
            }
        });
    }
}
