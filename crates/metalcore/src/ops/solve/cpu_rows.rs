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

    /// Entries of a column from row `first` on.
    #[inline(always)]
    fn column(&self, first: usize, col: usize, to: &mut [T]) {
        let width = self.pitch * T::lanes::<S>();
        let elements: &[T] = pulp::bytemuck::cast_slice(&self.vectors[first * self.pitch..]);
        for row in 0..to.len() {
            to[row] = elements[row * width + col];
        }
    }

    #[inline(always)]
    fn set_column(&mut self, first: usize, col: usize, from: &[T]) {
        let width = self.pitch * T::lanes::<S>();
        let elements: &mut [T] = pulp::bytemuck::cast_slice_mut(&mut self.vectors[first * self.pitch..]);
        for row in 0..from.len() {
            elements[row * width + col] = from[row];
        }
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
        // Loops by index: the compiler leaves calls of iterators' methods in functions of this size.
        let pitch = self.pitch;
        let source = &source[..pitch];
        let rows = &mut self.vectors[first * pitch..][..factors.len() * pitch];
        let mut row = 0;
        while row + 4 <= factors.len() {
            let f0 = T::splat(simd, factors[row]);
            let f1 = T::splat(simd, factors[row + 1]);
            let f2 = T::splat(simd, factors[row + 2]);
            let f3 = T::splat(simd, factors[row + 3]);
            let (r0, rest) = rows[row * pitch..].split_at_mut(pitch);
            let (r1, rest) = rest.split_at_mut(pitch);
            let (r2, rest) = rest.split_at_mut(pitch);
            let r3 = &mut rest[..pitch];
            for j in from..pitch {
                let x = source[j];
                r0[j] = T::neg_mul_add(simd, f0, x, r0[j]);
                r1[j] = T::neg_mul_add(simd, f1, x, r1[j]);
                r2[j] = T::neg_mul_add(simd, f2, x, r2[j]);
                r3[j] = T::neg_mul_add(simd, f3, x, r3[j]);
            }
            row += 4;
        }
        while row < factors.len() {
            let f = T::splat(simd, factors[row]);
            let r = &mut rows[row * pitch..][..pitch];
            for j in from..pitch {
                r[j] = T::neg_mul_add(simd, f, source[j], r[j]);
            }
            row += 1;
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
            let column = &mut factors[k..];
            a.column(k, k, column);
            // A NaN is larger than all numbers.
            let size = |x: T| if x.partial_cmp(&x).is_some() { x.abs() } else { T::ONE / T::default() };
            let (mut pivot, mut largest) = (0, size(column[0]));
            for row in 1..column.len() {
                let size = size(column[row]);
                if size > largest {
                    (pivot, largest) = (row, size);
                }
            }
            column.swap(0, pivot);
            a.swap(k, k + pivot);
            b.swap(k, k + pivot);
            if let Some(place) = part.pivots.get_mut(k) {
                *place = (k + pivot) as i32 + 1;
            }
            if largest == T::default() {
                info = if info == 0 { k as i32 + 1 } else { info };
                continue;
            }
            let (diagonal, factors) = column.split_first_mut().expect("a row is left");
            factors.iter_mut().for_each(|factor| *factor = *factor / *diagonal);
            a.set_column(k + 1, k, factors);
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
            for j in 0..b_pitch {
                pivot_row[a_pitch + j] = T::vdiv(simd, b.row(k)[j], diagonal);
            }
            a.column(0, k, &mut factors[..k]);
            b.subtract(simd, 0, &factors[..k], &pivot_row[a_pitch..], 0);
            let elements: &[T] = pulp::bytemuck::cast_slice(&pivot_row[a_pitch..]);
            part.x[k * sides..][..sides].copy_from_slice(&elements[..sides]);
        }
    }
}
