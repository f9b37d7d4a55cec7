//! One matrix in each lane of a vector, for batches of small matrices: no work crosses lanes, so a lane's results do not
//! depend on the others.

use super::simd::{Real, Simd, WithSimd, dispatch};
use std::marker::PhantomData;

struct Lanes<T>(PhantomData<T>);
impl<T: Real> WithSimd for Lanes<T> {
    type Output = usize;
    fn with_simd<S: Simd>(self, _simd: S) -> usize {
        T::lanes::<S>()
    }
}

/// Elements in a register of this processor.
pub fn lanes<T: Real>() -> usize {
    dispatch(Lanes::<T>(PhantomData))
}

/// Bytes of the widest register.
pub const ALIGNMENT: usize = 64;

/// Memory for `registers` registers, and where its first aligned element is.
pub fn scratch<T: Real>(registers: usize) -> (Vec<T>, usize) {
    let memory = vec![T::default(); registers * lanes::<T>() + ALIGNMENT / size_of::<T>()];
    let first = memory.as_ptr().align_offset(ALIGNMENT);
    (memory, first)
}

/// Quadruples of elements that are moved together: about 4 KiB, so that what is written has left the store buffer when
/// it is read.
const STAGED: usize = 16;

/// Transposes in: element e of matrix l goes to lane l of `vectors[e]`; lanes are numbered in the processor's order, the
/// same for every load and store. There are as many matrices as lanes at most; a missing one repeats the last.
#[inline(always)]
pub fn load<T: Real, S: Simd>(simd: S, matrices: &[T], elements: usize, vectors: &mut [T::Vector<S>]) {
    if elements == 0 {
        return;
    }
    let last = matrices.len() / elements - 1;
    let (quads, rest) = vectors[..elements].as_chunks_mut::<4>();
    for (block, quads) in quads.chunks_mut(STAGED).enumerate() {
        let first = 4 * STAGED * block;
        let width = 4 * quads.len();
        let places = pulp::bytemuck::cast_slice_mut::<T::Vector<S>, T>(quads.as_flattened_mut()).as_chunks_mut::<4>().0;
        for lane in 0..T::lanes::<S>() {
            let matrix = &matrices[lane.min(last) * elements + first..][..width];
            let places = places[lane..].iter_mut().step_by(T::lanes::<S>());
            for (place, quadruple) in places.zip(matrix.as_chunks::<4>().0) {
                *place = *quadruple;
            }
        }
        for quad in quads {
            *quad = T::from_quadruples(simd, *quad);
        }
    }
    if !rest.is_empty() {
        let mut quad = [T::splat(simd, T::default()); 4];
        let places = pulp::bytemuck::cast_slice_mut::<T::Vector<S>, T>(&mut quad).as_chunks_mut::<4>().0;
        for (lane, place) in places.iter_mut().enumerate() {
            let end = (lane.min(last) + 1) * elements;
            place[..rest.len()].copy_from_slice(&matrices[end - rest.len()..end]);
        }
        let quad = T::from_quadruples(simd, quad);
        rest.copy_from_slice(&quad[..rest.len()]);
    }
}

/// Transposes out: the reverse of [`load`]. Missing lanes are dropped.
#[inline(always)]
pub fn store<T: Real, S: Simd>(simd: S, vectors: &[T::Vector<S>], elements: usize, matrices: &mut [T]) {
    if elements == 0 {
        return;
    }
    let (quads, rest) = vectors[..elements].as_chunks::<4>();
    let mut stage = [[T::splat(simd, T::default()); 4]; STAGED];
    for (block, quads) in quads.chunks(STAGED).enumerate() {
        let first = 4 * STAGED * block;
        for (stage, quad) in stage.iter_mut().zip(quads) {
            *stage = T::to_quadruples(simd, *quad);
        }
        let staged = pulp::bytemuck::cast_slice::<T::Vector<S>, T>(stage.as_flattened()).as_chunks::<4>().0;
        for (lane, matrix) in matrices.chunks_exact_mut(elements).enumerate() {
            let staged = staged[lane..].iter().step_by(T::lanes::<S>());
            for (quadruple, staged) in
                matrix[first..first + 4 * quads.len()].as_chunks_mut::<4>().0.iter_mut().zip(staged)
            {
                *quadruple = *staged;
            }
        }
    }
    if !rest.is_empty() {
        let mut quad = [T::splat(simd, T::default()); 4];
        quad[..rest.len()].copy_from_slice(rest);
        let quad = T::to_quadruples(simd, quad);
        let staged = pulp::bytemuck::cast_slice::<T::Vector<S>, T>(&quad).as_chunks::<4>().0;
        for (matrix, staged) in matrices.chunks_exact_mut(elements).zip(staged) {
            matrix[elements - rest.len()..].copy_from_slice(&staged[..rest.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::simd::narrow::for_each_width;

    struct RoundTrip<'a, T>(&'a [T], usize, &'a mut [T]);
    impl<T: Real> WithSimd for RoundTrip<'_, T> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let RoundTrip(from, elements, to) = self;
            let mut vectors = vec![T::splat(simd, T::default()); elements];
            load(simd, from, elements, &mut vectors);
            store::<T, S>(simd, &vectors, elements, to);
            // Every matrix is in one lane, the same for each element, and the missing ones repeat the last.
            let count = from.len() / elements;
            let flat = pulp::bytemuck::cast_slice::<T::Vector<S>, T>(&vectors);
            for lane in 0..T::lanes::<S>() {
                let held = (0..elements).map(|e| flat[e * T::lanes::<S>() + lane]);
                let held: Vec<T> = held.collect();
                assert!((0..count).any(|l| held == from[l * elements..][..elements]));
            }
        }
    }

    #[test]
    fn a_round_trip_is_exact_for_every_size() {
        fn check<T: Real>() {
            for elements in (0..20).chain([63, 64, 65, 131]) {
                for count in 1..=lanes::<T>() {
                    let mut value = T::default();
                    let from: Vec<T> = (0..count * elements)
                        .map(|_| {
                            value += T::ONE;
                            value
                        })
                        .collect();
                    let mut to = vec![T::default(); from.len()];
                    if elements > 0 {
                        dispatch(RoundTrip(&from, elements, &mut to));
                    }
                    assert!(from == to, "{elements} elements, {count} matrices");
                }
            }
        }
        let all = || {
            check::<f32>();
            check::<f64>();
        };
        all();
        for_each_width(all);
    }
}
