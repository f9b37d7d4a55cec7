//! One matrix at a time, row by row: vectors run along rows, which are padded to whole registers.

use super::cpu::{Part, Sizes};
use crate::device::cpu::interleaved::{ALIGNMENT, lanes};
use crate::device::cpu::simd::{Real, Simd, WithSimd, dispatch};

/// A and B with padded rows, and a row that elimination subtracts.
pub(super) struct Scratch<T> {
    memory: Vec<T>,
    a_pitch: usize,
    b_pitch: usize,
}

impl<T: Real> Scratch<T> {
    pub fn new(sizes: Sizes) -> Scratch<T> {
        let lanes = lanes::<T>();
        let (a_pitch, b_pitch) = (sizes.cols.next_multiple_of(lanes), sizes.sides.next_multiple_of(lanes));
        let elements = (sizes.rows + 1) * (a_pitch + b_pitch) + ALIGNMENT / size_of::<T>();
        Scratch { memory: vec![T::default(); elements], a_pitch, b_pitch }
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

/// Rows of a padded matrix as registers.
struct Rows<'a, T: Real, S: Simd> {
    vectors: &'a mut [T::Vector<S>],
    pitch: usize,
}

impl<T: Real, S: Simd> Rows<'_, T, S> {
    #[inline(always)]
    fn row(&self, row: usize) -> &[T::Vector<S>] {
        &self.vectors[row * self.pitch..][..self.pitch]
    }

    #[inline(always)]
    fn at(&self, row: usize, col: usize) -> T {
        let elements: &[T] = pulp::bytemuck::cast_slice(self.row(row));
        elements[col]
    }

    #[inline(always)]
    fn set(&mut self, row: usize, col: usize, value: T) {
        let at = row * self.pitch * T::lanes::<S>() + col;
        let elements: &mut [T] = pulp::bytemuck::cast_slice_mut(self.vectors);
        elements[at] = value;
    }

    #[inline(always)]
    fn fill(&mut self, row: usize, values: &[T]) {
        let width = self.pitch * T::lanes::<S>();
        let elements: &mut [T] = pulp::bytemuck::cast_slice_mut(self.vectors);
        let to = &mut elements[row * width..][..width];
        to[..values.len()].copy_from_slice(values);
        to[values.len()..].fill(T::default());
    }

    #[inline(always)]
    fn swap(&mut self, a: usize, b: usize) {
        if a != b && self.pitch > 0 {
            let (low, high) = self.vectors.split_at_mut(a.max(b) * self.pitch);
            low[a.min(b) * self.pitch..][..self.pitch].swap_with_slice(&mut high[..self.pitch]);
        }
    }

    /// Rows `rows` -= factors times `source`, from register `from` on.
    #[inline(always)]
    fn subtract(&mut self, simd: S, first: usize, factors: &[T], source: &[T::Vector<S>], from: usize) {
        if self.pitch == 0 {
            return;
        }
        let source = &source[from..];
        let mut rows = self.vectors[first * self.pitch..].chunks_exact_mut(4 * self.pitch);
        let mut quads = factors.chunks_exact(4);
        for (rows, quad) in rows.by_ref().zip(quads.by_ref()) {
            let [f0, f1, f2, f3] = [0, 1, 2, 3].map(|i| T::splat(simd, quad[i]));
            let (r0, rows) = rows.split_at_mut(self.pitch);
            let (r1, rows) = rows.split_at_mut(self.pitch);
            let (r2, r3) = rows.split_at_mut(self.pitch);
            let targets = r0[from..].iter_mut().zip(&mut r1[from..]).zip(&mut r2[from..]).zip(&mut r3[from..]);
            for ((((y0, y1), y2), y3), x) in targets.zip(source) {
                *y0 = T::neg_mul_add(simd, f0, *x, *y0);
                *y1 = T::neg_mul_add(simd, f1, *x, *y1);
                *y2 = T::neg_mul_add(simd, f2, *x, *y2);
                *y3 = T::neg_mul_add(simd, f3, *x, *y3);
            }
        }
        let done = first + factors.len() - quads.remainder().len();
        for (i, factor) in quads.remainder().iter().enumerate() {
            let factor = T::splat(simd, *factor);
            let row = &mut self.vectors[(done + i) * self.pitch..][..self.pitch];
            for (y, x) in row[from..].iter_mut().zip(source) {
                *y = T::neg_mul_add(simd, factor, *x, *y);
            }
        }
    }
}

impl<T: Real> WithSimd for Eliminate<'_, '_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Eliminate { part, sizes, scratch } = self;
        let Sizes { rows, cols, sides } = sizes;
        let Scratch { memory, a_pitch, b_pitch } = scratch;
        let (a_pitch, b_pitch) = (*a_pitch / T::lanes::<S>(), *b_pitch / T::lanes::<S>());
        let aligned = memory.as_ptr().align_offset(ALIGNMENT);
        let (vectors, _) = T::vectors_mut::<S>(&mut memory[aligned..]);
        let (pivot_row, vectors) = vectors.split_at_mut(a_pitch + b_pitch);
        let (a_vectors, b_vectors) = vectors.split_at_mut(rows * a_pitch);
        let mut a = Rows::<T, S> { vectors: a_vectors, pitch: a_pitch };
        let mut b = Rows::<T, S> { vectors: &mut b_vectors[..rows * b_pitch], pitch: b_pitch };
        for row in 0..rows {
            a.fill(row, &part.a[row * cols..][..cols]);
            match part.b.get(row * sides..(row + 1) * sides) {
                Some(values) if !part.b.is_empty() => b.fill(row, values),
                _ => b.fill(row, &[]),
            }
            if part.b.is_empty() && row < sides {
                b.set(row, row, T::ONE);
            }
        }
        let mut info = 0;
        let mut factors = vec![T::default(); rows];
        for k in 0..sizes.steps() {
            // A NaN is larger than all numbers.
            let size = |x: T| if x == x { x.abs() } else { T::ONE / T::default() };
            let (mut pivot, mut largest) = (k, size(a.at(k, k)));
            for row in k + 1..rows {
                let size = size(a.at(row, k));
                if size > largest {
                    (pivot, largest) = (row, size);
                }
            }
            if let Some(place) = part.pivots.get_mut(k) {
                *place = pivot as i32 + 1;
            }
            a.swap(k, pivot);
            b.swap(k, pivot);
            if largest == T::default() {
                info = if info == 0 { k as i32 + 1 } else { info };
                continue;
            }
            let diagonal = a.at(k, k);
            let factors = &mut factors[..rows - k - 1];
            for (row, factor) in factors.iter_mut().enumerate() {
                *factor = a.at(k + 1 + row, k) / diagonal;
                a.set(k + 1 + row, k, *factor);
            }
            // Columns up to k of the first register stay as they are.
            let from = (k + 1) / T::lanes::<S>();
            pivot_row[..a_pitch].copy_from_slice(a.row(k));
            let elements: &mut [T] = pulp::bytemuck::cast_slice_mut(pivot_row);
            elements[..k + 1].fill(T::default());
            pivot_row[a_pitch..].copy_from_slice(b.row(k));
            a.subtract(simd, k + 1, factors, &pivot_row[..a_pitch], from);
            b.subtract(simd, k + 1, factors, &pivot_row[a_pitch..], 0);
        }
        part.info[0] = info;
        for (row, to) in part.lu.chunks_exact_mut(cols.max(1)).enumerate() {
            let elements: &[T] = pulp::bytemuck::cast_slice(a.row(row));
            to.copy_from_slice(&elements[..cols]);
        }
        if sides == 0 {
            return;
        }
        for k in (0..rows).rev() {
            let diagonal = T::splat(simd, a.at(k, k));
            for (to, y) in pivot_row[a_pitch..].iter_mut().zip(b.row(k)) {
                *to = T::vdiv(simd, *y, diagonal);
            }
            for (row, factor) in factors[..k].iter_mut().enumerate() {
                *factor = a.at(row, k);
            }
            b.subtract(simd, 0, &factors[..k], &pivot_row[a_pitch..], 0);
            let elements: &[T] = pulp::bytemuck::cast_slice(&pivot_row[a_pitch..]);
            part.x[k * sides..][..sides].copy_from_slice(&elements[..sides]);
        }
    }
}
