//! Many small matrices: one in each lane of a register. Rows are swapped by blending: in every row of a step a lane keeps
//! its entry or takes that of row k, and the pivot's row is blended together from all rows.

use super::cpu::{INTERLEAVED, Part, Sizes};
use crate::device::cpu::interleaved::{self, ALIGNMENT, lanes};
use crate::device::cpu::simd::{Real, Simd, WithSimd, dispatch};

/// Matrices from which a register that is partly filled beats one matrix after the other.
pub(super) fn fewest_matrices<T: Real>(n: usize) -> usize {
    (lanes::<T>() * n / 64).max(2)
}

/// Registers for A, B, pivots, info, and the row where each lane has its pivot.
pub(super) struct Scratch<T> {
    memory: Vec<T>,
    words: Vec<T>,
}

impl<T: Real> Scratch<T> {
    pub fn new(sizes: Sizes) -> Scratch<T> {
        let registers = sizes.rows * (sizes.cols + sizes.sides) + sizes.steps() + 1;
        let memory = vec![T::default(); registers * lanes::<T>() + ALIGNMENT / size_of::<T>()];
        Scratch { memory, words: vec![T::default(); lanes::<T>() * (sizes.steps() + 1)] }
    }
}

pub(super) fn eliminate<T: Real>(part: &mut Part<'_, T>, sizes: Sizes, scratch: &mut Scratch<T>) {
    dispatch(Eliminate { part, sizes, scratch });
}

struct Eliminate<'a, 'b, T> {
    part: &'a mut Part<'b, T>,
    sizes: Sizes,
    scratch: &'a mut Scratch<T>,
}

impl<T: Real> WithSimd for Eliminate<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Eliminate { part, sizes, scratch } = self;
        let Sizes { rows, cols, sides } = sizes;
        let steps = sizes.steps();
        let aligned = scratch.memory.as_ptr().align_offset(ALIGNMENT);
        let (vectors, _) = T::vectors_mut::<S>(&mut scratch.memory[aligned..]);
        let (a, vectors) = vectors.split_at_mut(rows * cols);
        let (b, vectors) = vectors.split_at_mut(rows * sides);
        let (pivots, info) = vectors.split_at_mut(steps);
        interleaved::load(simd, part.a, rows * cols, a);
        if part.b.is_empty() {
            b.fill(T::splat(simd, T::default()));
            b.iter_mut().step_by(sides + 1).for_each(|diagonal| *diagonal = T::splat(simd, T::ONE));
        } else {
            interleaved::load(simd, part.b, rows * sides, b);
        }
        factor::<T, S>(simd, sizes, a, b, pivots, &mut info[0]);
        let count = part.info.len();
        let words = &mut scratch.words[..count];
        interleaved::store::<T, S>(simd, &info[..1], 1, words);
        whole(words, part.info);
        if !part.lu.is_empty() {
            let words = &mut scratch.words[..count * steps];
            interleaved::store::<T, S>(simd, pivots, steps, words);
            whole(words, part.pivots);
            interleaved::store::<T, S>(simd, a, rows * cols, part.lu);
            for (lu, pivots) in part.lu.chunks_exact_mut(rows * cols).zip(part.pivots.chunks_exact_mut(steps)) {
                swap_left(lu, pivots, cols);
            }
        }
        if sides > 0 {
            substitute::<T, S>(simd, sizes, a, b);
            interleaved::store::<T, S>(simd, b, rows * sides, part.x);
        }
    }
}

/// Small whole numbers as integers.
fn whole<T: Real>(words: &[T], to: &mut [i32]) {
    to.iter_mut().zip(words).for_each(|(to, word)| *to = word.put::<f32>() as i32);
}

/// Swaps the rows of L as the steps after its columns did, and counts pivots from 1.
fn swap_left<T>(lu: &mut [T], pivots: &mut [i32], cols: usize) {
    for (k, pivot) in pivots.iter_mut().enumerate() {
        let other = *pivot as usize;
        if other > k {
            let (top, rest) = lu.split_at_mut(other * cols);
            top[k * cols..][..k].swap_with_slice(&mut rest[..k]);
        }
        *pivot += 1;
    }
}

/// Magnitudes. A NaN is larger than all numbers.
#[inline(always)]
fn size<T: Real, S: Simd>(simd: S, x: T::Vector<S>) -> T::Vector<S> {
    let infinity = T::splat(simd, T::ONE / T::default());
    T::select(simd, T::equal(simd, x, x), T::vabs(simd, x), infinity)
}

/// U and L, the latter with the rows of each column as they stood in its step.
#[inline(always)]
fn factor<T: Real, S: Simd>(
    simd: S,
    sizes: Sizes,
    a: &mut [T::Vector<S>],
    b: &mut [T::Vector<S>],
    pivots: &mut [T::Vector<S>],
    info: &mut T::Vector<S>,
) {
    let Sizes { rows, cols, sides } = sizes;
    let (zero, one) = (T::splat(simd, T::default()), T::splat(simd, T::ONE));
    let mut numbers = [zero; INTERLEAVED + 1];
    for row in 0..INTERLEAVED {
        numbers[row + 1] = T::vadd(simd, numbers[row], one);
    }
    let mut factors = [zero; INTERLEAVED];
    *info = zero;
    for k in 0..sizes.steps() {
        let old = a[k * cols + k];
        let (mut index, mut largest, mut value) = (numbers[k], size::<T, S>(simd, old), old);
        for row in k + 1..rows {
            let x = a[row * cols + k];
            let candidate = size::<T, S>(simd, x);
            let larger = T::less(simd, largest, candidate);
            index = T::select(simd, larger, numbers[row], index);
            largest = T::select(simd, larger, candidate, largest);
            value = T::select(simd, larger, x, value);
        }
        pivots[k] = index;
        let singular = T::equal(simd, largest, zero);
        if T::any(simd, singular) {
            let first = T::select(simd, singular, numbers[k + 1], zero);
            *info = T::select(simd, T::equal(simd, *info, zero), first, *info);
        }
        let divisor = T::select(simd, singular, one, value);
        for row in k + 1..rows {
            let entry = T::select(simd, T::equal(simd, index, numbers[row]), old, a[row * cols + k]);
            factors[row] = T::vdiv(simd, entry, divisor);
            a[row * cols + k] = factors[row];
        }
        a[k * cols + k] = value;
        let step: Step<'_, T, S> = Step { simd, k, index, factors: &factors[..rows], numbers: &numbers[..rows] };
        if T::any(simd, T::less(simd, numbers[k], index)) {
            step.columns::<true>(a, cols, k + 1);
            step.columns::<true>(b, sides, 0);
        } else {
            step.columns::<false>(a, cols, k + 1);
            step.columns::<false>(b, sides, 0);
        }
    }
}

/// A step of elimination, whose pivot and multipliers are known.
#[derive(Clone, Copy)]
struct Step<'a, T: Real, S: Simd> {
    simd: S,
    k: usize,
    index: T::Vector<S>,
    factors: &'a [T::Vector<S>],
    numbers: &'a [T::Vector<S>],
}

impl<T: Real, S: Simd> Step<'_, T, S> {
    // Loops by index: the compiler leaves calls of iterators' methods in functions of this size.
    /// Swaps (if a lane has to) and eliminates in all columns from `first` on: groups of columns from multiples of 4.
    #[inline(always)]
    fn columns<const SWAP: bool>(self, matrix: &mut [T::Vector<S>], cols: usize, first: usize) {
        let mut col = first.next_multiple_of(4).min(cols);
        self.few::<SWAP>(matrix, cols, first, col - first);
        while S::REGISTER_COUNT >= 32 && col + 8 <= cols {
            self.some::<SWAP, 8>(matrix, cols, col);
            col += 8;
        }
        while col + 4 <= cols {
            self.some::<SWAP, 4>(matrix, cols, col);
            col += 4;
        }
        self.few::<SWAP>(matrix, cols, col, cols - col);
    }

    /// Up to three columns.
    #[inline(always)]
    fn few<const SWAP: bool>(self, matrix: &mut [T::Vector<S>], cols: usize, col: usize, count: usize) {
        match count {
            1 => self.some::<SWAP, 1>(matrix, cols, col),
            2 => self.some::<SWAP, 2>(matrix, cols, col),
            3 => self.some::<SWAP, 3>(matrix, cols, col),
            _ => (),
        }
    }

    #[inline(always)]
    fn some<const SWAP: bool, const C: usize>(self, matrix: &mut [T::Vector<S>], cols: usize, col: usize) {
        let Step { simd, k, index, factors, numbers } = self;
        let old = *entries::<_, C>(matrix, k * cols + col);
        let mut pivot = old;
        if SWAP {
            for row in k + 1..numbers.len() {
                let chosen = T::equal(simd, index, numbers[row]);
                let row = entries::<_, C>(matrix, row * cols + col);
                for c in 0..C {
                    pivot[c] = T::select(simd, chosen, row[c], pivot[c]);
                }
            }
            *entries(matrix, k * cols + col) = pivot;
        }
        for row in k + 1..numbers.len() {
            let (chosen, factor) = (T::equal(simd, index, numbers[row]), factors[row]);
            let row = entries::<_, C>(matrix, row * cols + col);
            for c in 0..C {
                let x = if SWAP { T::select(simd, chosen, old[c], row[c]) } else { row[c] };
                row[c] = T::neg_mul_add(simd, factor, pivot[c], x);
            }
        }
    }
}

#[inline(always)]
fn entries<V, const C: usize>(row: &mut [V], col: usize) -> &mut [V; C] {
    row[col..].first_chunk_mut().expect("a row has these columns")
}

/// U X = Y, in place.
#[inline(always)]
fn substitute<T: Real, S: Simd>(simd: S, sizes: Sizes, a: &[T::Vector<S>], b: &mut [T::Vector<S>]) {
    let mut col = 0;
    while col + 8 <= sizes.sides {
        substitute_some::<T, S, 8>(simd, sizes, a, b, col);
        col += 8;
    }
    while col + 4 <= sizes.sides {
        substitute_some::<T, S, 4>(simd, sizes, a, b, col);
        col += 4;
    }
    while col < sizes.sides {
        substitute_some::<T, S, 1>(simd, sizes, a, b, col);
        col += 1;
    }
}

#[inline(always)]
fn substitute_some<T: Real, S: Simd, const C: usize>(
    simd: S,
    sizes: Sizes,
    a: &[T::Vector<S>],
    b: &mut [T::Vector<S>],
    col: usize,
) {
    let Sizes { cols, sides, .. } = sizes;
    for i in (0..cols).rev() {
        let row = &a[i * cols..][..cols];
        let mut sums = *entries::<_, C>(b, i * sides + col);
        for j in i + 1..cols {
            let x = *entries::<_, C>(b, j * sides + col);
            for c in 0..C {
                sums[c] = T::neg_mul_add(simd, row[j], x[c], sums[c]);
            }
        }
        for sum in &mut sums {
            *sum = T::vdiv(simd, *sum, row[i]);
        }
        *entries(b, i * sides + col) = sums;
    }
}
