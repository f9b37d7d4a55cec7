//! embedding_bag on the host. Rows are added eight at a time to sums that stay in the first cache: a row is read from
//! memory once, in order.

use super::{EmbeddingBag, Mode, OP};
use crate::IndexElement;
use crate::device::cpu::Threads;
use crate::device::cpu::rows::block_sum;
use crate::device::cpu::simd::{Real, Simd, Storage, WithSimd, dispatch, stream};
use crate::dtype::Element;
use crate::error::{Error, Result};
use std::ops::Range;

/// Elements that a thread reads or writes at a time: more work than the taking.
const CHUNK: usize = 32 * 1024;
/// Rows that are added before their sum is: rounding errors grow with the length of a chain of sums.
const BLOCK: usize = 256;

/// A row and its factor.
type Term<C> = (usize, C);

/// Sums of rows, and room for them.
struct Sums<C> {
    part: Vec<C>,
    total: Vec<C>,
    /// What additions to `total` have lost.
    lost: Vec<C>,
    terms: Vec<Term<C>>,
}

impl<C: Real> Sums<C> {
    fn new(cols: usize) -> Sums<C> {
        let zeros = || vec![C::default(); cols];
        Sums { part: zeros(), total: zeros(), lost: zeros(), terms: Vec::new() }
    }

    fn clear(&mut self) {
        for sums in [&mut self.part, &mut self.total, &mut self.lost] {
            sums.fill(C::default());
        }
    }

    /// `total` += `part` (Kahan); `part` := 0. A row may have any number of entries, and equal ones.
    #[inline(always)]
    fn flush(&mut self) {
        let zero = C::default();
        for ((total, lost), part) in self.total.iter_mut().zip(&mut self.lost).zip(&mut self.part) {
            let term = *part - *lost;
            let next = *total + term;
            let error = (next - *total) - term;
            // Not of infinities.
            *lost = if next * zero == zero { error } else { zero };
            *total = next;
            *part = zero;
        }
    }

    /// `total` := the sum of `terms`, rows of `matrix`.
    #[inline(always)]
    fn add<T: Storage<Compute = C>, S: Simd, const WEIGHTED: bool>(&mut self, simd: S, matrix: &[T]) {
        let cols = self.total.len();
        if self.terms.len() <= BLOCK {
            self.total.fill(C::default());
            return add_rows::<T, S, WEIGHTED>(simd, matrix, cols, &self.terms, &mut self.total);
        }
        self.clear();
        for at in (0..self.terms.len()).step_by(BLOCK) {
            let block = &self.terms[at..self.terms.len().min(at + BLOCK)];
            add_rows::<T, S, WEIGHTED>(simd, matrix, cols, block, &mut self.part);
            self.flush();
        }
    }

    /// y := total / divisor
    #[inline(always)]
    fn put<T: Storage<Compute = C>, S: Simd>(&self, simd: S, divisor: C, y: &mut [T]) {
        let lanes = C::lanes::<S>();
        let divisor = C::splat(simd, divisor);
        let (mut total, mut y) = (self.total.chunks_exact(lanes), y.chunks_exact_mut(lanes));
        for (total, y) in (&mut total).zip(&mut y) {
            C::store(simd, C::vdiv(simd, C::load(simd, total), divisor), y);
        }
        let rest = C::vdiv(simd, C::load_part(simd, total.remainder()), divisor);
        C::store_part(simd, rest, y.into_remainder());
    }
}

/// sum += the terms
#[inline(always)]
fn add_rows<T: Storage, S: Simd, const WEIGHTED: bool>(
    simd: S,
    matrix: &[T],
    cols: usize,
    terms: &[Term<T::Compute>],
    sum: &mut [T::Compute],
) {
    let mut rest = terms;
    while rest.len() >= 8 {
        let (eight, after) = rest.split_at(8);
        add_some::<T, S, 8, WEIGHTED>(simd, matrix, cols, eight, after, sum);
        rest = after;
    }
    while rest.len() >= 2 {
        let (two, after) = rest.split_at(2);
        add_some::<T, S, 2, WEIGHTED>(simd, matrix, cols, two, after, sum);
        rest = after;
    }
    if !rest.is_empty() {
        add_some::<T, S, 1, WEIGHTED>(simd, matrix, cols, rest, &[], sum);
    }
}

/// sum += N terms, which are added first; asks for the rows `after` them, which lie anywhere in memory.
#[inline(always)]
fn add_some<T: Storage, S: Simd, const N: usize, const WEIGHTED: bool>(
    simd: S,
    matrix: &[T],
    cols: usize,
    terms: &[Term<T::Compute>],
    after: &[Term<T::Compute>],
    sum: &mut [T::Compute],
) {
    // Loops, not closures, which would be compiled for a lesser processor.
    let (mut rows, mut ahead) = ([&matrix[..0]; N], [&matrix[..0]; N]);
    let mut factors = [T::Compute::splat(simd, T::Compute::ONE); N];
    for k in 0..N {
        rows[k] = &matrix[terms[k].0 * cols..][..cols];
        ahead[k] = after.get(k).map_or(rows[k], |(row, _)| &matrix[row * cols..][..cols]);
        factors[k] = T::Compute::splat(simd, terms[k].1);
    }
    let lanes = T::Compute::lanes::<S>();
    let whole = cols / lanes * lanes;
    let (sum, sum_rest) = sum[..cols].split_at_mut(whole);
    for (j, sum) in sum.chunks_exact_mut(lanes).enumerate() {
        let at = j * lanes..(j + 1) * lanes;
        let mut part = T::Compute::load(simd, &rows[0][at.clone()]);
        stream::prefetch(&ahead[0][at.start]);
        if WEIGHTED {
            part = T::Compute::vmul(simd, part, factors[0]);
        }
        for k in 1..N {
            stream::prefetch(&ahead[k][at.start]);
            let value = T::Compute::load(simd, &rows[k][at.clone()]);
            part = if WEIGHTED {
                T::Compute::mul_add(simd, value, factors[k], part)
            } else {
                T::Compute::vadd(simd, part, value)
            };
        }
        T::Compute::store(simd, T::Compute::vadd(simd, T::Compute::load(simd, sum), part), sum);
    }
    for (j, sum) in sum_rest.iter_mut().enumerate() {
        let mut part = T::Compute::default();
        for k in 0..N {
            let value = T::Compute::get(rows[k][whole + j]);
            part += if WEIGHTED { value * terms[k].1 } else { value };
        }
        *sum += part;
    }
}

/// Entries of a bag. The offsets were checked.
fn entries_of<I: IndexElement>(bag: &EmbeddingBag, offsets: &[I], b: usize) -> Range<usize> {
    let at = |b: usize| offsets.get(b).map_or(bag.entries, |offset| (*offset).into() as usize);
    at(b)..at(b + 1)
}

fn check<I: IndexElement>(bag: &EmbeddingBag, indices: &[I], offsets: &[I]) -> Result<()> {
    let mut before = 0;
    for (b, offset) in offsets.iter().enumerate() {
        let offset: i64 = (*offset).into();
        let expected = match b {
            0 if offset != 0 => "0 at its start".to_owned(),
            _ if offset < before => format!("{before} or more at {b}"),
            _ if offset > bag.entries as i64 => format!("at most {} at {b}, the number of indices", bag.entries),
            _ => {
                before = offset;
                continue;
            }
        };
        return Err(Error::argument(OP, "offsets", offset, expected));
    }
    let outside = |index: &&I| usize::try_from((**index).into()).map_or(true, |row| row >= bag.rows);
    if let Some(index) = indices.iter().find(outside) {
        let expected = format!("0 to {}", bag.rows as i64 - 1);
        return Err(Error::Index { op: OP, argument: "indices", got: (*index).into(), expected });
    }
    Ok(())
}

/// y, scale, and for a maximum the entry of each.
pub fn forward<T: Storage, I: IndexElement>(
    threads: &Threads,
    bag: &EmbeddingBag,
    weight: &[T],
    indices: &[I],
    offsets: &[I],
    samples: Option<&[T]>,
    y: &mut [T],
    scale: &mut [T::Compute],
    largest: Option<&mut [i32]>,
) -> Result<()> {
    check(bag, indices, offsets)?;
    let cols = bag.cols;
    assert!(weight.len() == bag.rows * cols && y.len() == bag.bags * cols && scale.len() == bag.bags);
    let elements = bag.entries / bag.bags.max(1) * cols + cols;
    let some = (CHUNK / elements.max(1)).max(1);
    let mut places = largest.map(|largest| largest.chunks_mut((some * cols).max(1)));
    let mut rows = y.chunks_mut((some * cols).max(1));
    let mut tasks: Vec<_> = scale
        .chunks_mut(some)
        .enumerate()
        .map(|(part, scale)| Bags {
            bag,
            weight,
            indices,
            offsets,
            samples,
            first: part * some,
            y: rows.next().unwrap_or_default(),
            scale,
            largest: places.as_mut().map(|places| places.next().unwrap_or_default()),
        })
        .collect();
    threads.for_each_mut_init(&mut tasks, 1, || Sums::new(cols), |sums, task| dispatch(WithSums { task, sums }));
    Ok(())
}

struct Bags<'a, T: Storage, I> {
    bag: &'a EmbeddingBag,
    weight: &'a [T],
    indices: &'a [I],
    offsets: &'a [I],
    samples: Option<&'a [T]>,
    first: usize,
    y: &'a mut [T],
    scale: &'a mut [T::Compute],
    largest: Option<&'a mut [i32]>,
}

struct WithSums<'a, K, C> {
    task: &'a mut K,
    sums: &'a mut Sums<C>,
}

impl<T: Storage, I: IndexElement> WithSimd for WithSums<'_, Bags<'_, T, I>, T::Compute> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let WithSums { task, sums } = self;
        let (bag, cols) = (task.bag, task.bag.cols);
        for b in 0..task.scale.len() {
            let entries = entries_of(bag, task.offsets, task.first + b);
            let y = &mut task.y[b * cols..(b + 1) * cols];
            sums.terms.clear();
            sums.terms.reserve(entries.len());
            for entry in entries.clone() {
                let row = task.indices[entry].into() as usize;
                if bag.padding != Some(row) {
                    let factor = task.samples.map_or(T::Compute::ONE, |samples| T::Compute::get(samples[entry]));
                    sums.terms.push((row, factor));
                }
            }
            let count = T::Compute::from_f64(sums.terms.len() as f64);
            let divisor = if bag.mode == Mode::Mean && !sums.terms.is_empty() { count } else { T::Compute::ONE };
            task.scale[b] = if sums.terms.is_empty() { T::Compute::default() } else { T::Compute::ONE / divisor };
            if let Some(places) = &mut task.largest {
                let places = &mut places[b * cols..(b + 1) * cols];
                maximum(task.weight, task.indices, entries, bag.padding, y, places);
                continue;
            }
            match task.samples {
                Some(_) => sums.add::<T, S, true>(simd, task.weight),
                None => sums.add::<T, S, false>(simd, task.weight),
            }
            sums.put(simd, divisor, y);
        }
    }
}

#[expect(clippy::eq_op, reason = "what NaN is known by")]
#[inline(always)]
fn is_nan<C: Real>(x: C) -> bool {
    x != x
}

/// The largest of each column, and its entry.
#[inline(always)]
fn maximum<T: Storage, I: IndexElement>(
    weight: &[T],
    indices: &[I],
    entries: Range<usize>,
    padding: Option<usize>,
    y: &mut [T],
    places: &mut [i32],
) {
    let cols = y.len();
    y.fill(T::from_f32(0.0));
    places.fill(-1);
    let mut first = true;
    for entry in entries {
        let row = indices[entry].into() as usize;
        if padding == Some(row) {
            continue;
        }
        let values = &weight[row * cols..][..cols];
        if std::mem::take(&mut first) {
            y.copy_from_slice(values);
            places.fill(entry as i32);
            continue;
        }
        for ((y, place), value) in y.iter_mut().zip(places.iter_mut()).zip(values) {
            let (x, best) = (T::Compute::get(*value), T::Compute::get(*y));
            let better = (x > best) | (is_nan(x) & !is_nan(best));
            *y = if better { *value } else { *y };
            *place = if better { entry as i32 } else { *place };
        }
    }
}

/// What the gradients are made of.
pub struct Gradient<'a, T: Storage, I> {
    /// The call.
    pub bag: &'a EmbeddingBag,
    /// (B, D).
    pub dy: &'a [T],
    /// (B) or (B + 1).
    pub offsets: &'a [I],
    /// (L).
    pub samples: Option<&'a [T]>,
    /// (B).
    pub scale: &'a [T::Compute],
    /// (B, D).
    pub largest: Option<&'a [i32]>,
}

const NO_BAG: u32 = u32::MAX;

impl<T: Storage, I: IndexElement> Gradient<'_, T, I> {
    /// The bag of each entry. Offsets are taken as they are on a GPU: the forward pass has refused wrong ones.
    fn bags(&self) -> Vec<u32> {
        let entries = self.bag.entries;
        let mut bags = vec![NO_BAG; entries];
        for b in 0..self.bag.bags {
            let at = |b: usize| {
                let offset = self.offsets.get(b).map_or(entries as i64, |offset| (*offset).into());
                offset.clamp(0, entries as i64) as usize
            };
            if let Some(bags) = bags.get_mut(at(b)..at(b + 1)) {
                bags.fill(b as u32);
            }
        }
        bags
    }

    /// dw, from the sorted indices and where each was.
    pub fn of_weight(&self, threads: &Threads, keys: &[I], order: &[i64], dw: &mut [T]) {
        let cols = self.bag.cols;
        assert!(dw.len() == self.bag.rows * cols && self.dy.len() == self.bag.bags * cols);
        if cols == 0 {
            return;
        }
        let some = (CHUNK / cols).max(1);
        let bags = self.bags();
        let mut tasks: Vec<_> = dw
            .chunks_mut(some * cols)
            .enumerate()
            .map(|(part, dw)| Rows { gradient: self, bags: &bags, keys, order, first: part * some, dw })
            .collect();
        threads.for_each_mut_init(&mut tasks, 1, || Sums::new(cols), |sums, task| dispatch(WithSums { task, sums }));
    }

    /// The gradient of the samples.
    pub fn of_samples(&self, threads: &Threads, weight: &[T], indices: &[I], d_samples: &mut [T]) {
        let cols = self.bag.cols;
        assert!(weight.len() == self.bag.rows * cols && self.dy.len() == self.bag.bags * cols);
        let bags = self.bags();
        let some = (CHUNK / cols.max(1)).max(1);
        let parts = d_samples.chunks_mut(some).zip(bags.chunks(some)).zip(indices.chunks(some));
        let mut tasks: Vec<_> =
            parts.map(|((to, bags), indices)| Dots { gradient: self, weight, bags, indices, to }).collect();
        threads.for_each_mut(&mut tasks, 1, |task| dispatch(task));
    }
}

struct Rows<'a, T: Storage, I> {
    gradient: &'a Gradient<'a, T, I>,
    bags: &'a [u32],
    keys: &'a [I],
    order: &'a [i64],
    first: usize,
    dw: &'a mut [T],
}

impl<T: Storage, I: IndexElement> WithSimd for WithSums<'_, Rows<'_, T, I>, T::Compute> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let WithSums { task, sums } = self;
        let Gradient { bag, dy, samples, scale, largest, .. } = *task.gradient;
        let key = |at: usize| -> i64 { task.keys[at].into() };
        let mut at = task.keys.partition_point(|key| (*key).into() < task.first as i64);
        for (row, dw) in task.dw.chunks_exact_mut(bag.cols).enumerate() {
            let row = task.first + row;
            let from = at;
            while at < task.keys.len() && key(at) == row as i64 {
                at += 1;
            }
            if from == at {
                dw.fill(T::from_f32(0.0));
                continue;
            }
            let entries = task.order[from..at].iter().map(|entry| *entry as usize);
            let entries = entries.filter(|_| bag.padding != Some(row));
            sums.terms.clear();
            if largest.is_some() {
                sums.clear();
            } else {
                sums.total.fill(T::Compute::default());
            }
            for (i, entry) in entries.enumerate() {
                let b = task.bags[entry];
                if b == NO_BAG || scale[b as usize] == T::Compute::default() {
                    continue;
                }
                let b = b as usize;
                if let Some(largest) = largest {
                    let places = &largest[b * bag.cols..][..bag.cols];
                    for ((sum, place), d) in sums.part.iter_mut().zip(places).zip(&dy[b * bag.cols..]) {
                        let d = T::Compute::get(*d);
                        *sum += if *place == entry as i32 { d } else { T::Compute::default() };
                    }
                    if i % BLOCK == BLOCK - 1 {
                        sums.flush();
                    }
                    continue;
                }
                let sample = samples.map_or(T::Compute::ONE, |samples| T::Compute::get(samples[entry]));
                sums.terms.push((b, sample * scale[b]));
            }
            if largest.is_some() {
                sums.flush();
            } else if !sums.terms.is_empty() {
                sums.add::<T, S, true>(simd, dy);
            }
            sums.put(simd, T::Compute::ONE, dw);
        }
    }
}

struct Dots<'a, T: Storage, I> {
    gradient: &'a Gradient<'a, T, I>,
    weight: &'a [T],
    bags: &'a [u32],
    indices: &'a [I],
    to: &'a mut [T],
}

impl<T: Storage, I: IndexElement> WithSimd for &mut Dots<'_, T, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Gradient { bag, dy, .. } = *self.gradient;
        let lanes = T::Compute::lanes::<S>();
        let whole = bag.cols / lanes;
        for ((to, b), index) in self.to.iter_mut().zip(self.bags).zip(self.indices) {
            let row: i64 = (*index).into();
            let row = usize::try_from(row).ok().filter(|row| *row < bag.rows && bag.padding != Some(*row));
            let (Some(row), true) = (row, *b != NO_BAG) else {
                *to = T::from_f32(0.0);
                continue;
            };
            let (x, y) = (&self.weight[row * bag.cols..][..bag.cols], &dy[*b as usize * bag.cols..][..bag.cols]);
            let rest = [x, y].map(|values| T::Compute::load_part(simd, &values[whole * lanes..]));
            let dot = block_sum::<T::Compute, S>(
                simd,
                T::Compute::vmul(simd, rest[0], rest[1]),
                whole,
                #[inline(always)]
                |j, sum| {
                    let at = j * lanes..(j + 1) * lanes;
                    let (x, y) = (T::Compute::load(simd, &x[at.clone()]), T::Compute::load(simd, &y[at]));
                    T::Compute::mul_add(simd, x, y, sum)
                },
            );
            *to = dot.put();
        }
    }
}
