//! What only the host's form has: threads, registers with a rest, streamed results.

use super::*;
use crate::device::cpu::simd::{narrow::for_each_width, stream};
use crate::testing::{Random, bits};
use half::{bf16, f16};

/// Everything a call reads.
struct Input<T> {
    x: Vec<T>,
    residual: Vec<T>,
    dy: Vec<T>,
    weight: Vec<T>,
    cols: usize,
}

impl<T: Storage> Input<T> {
    fn new(rows: usize, cols: usize) -> Input<T> {
        let mut random = Random::new((rows * 1000 + cols) as u64);
        let mut normals = |count| random.normals(count);
        let (x, residual, dy) = (normals(rows * cols), normals(rows * cols), normals(rows * cols));
        Input { x, residual, dy, weight: normals(cols), cols }
    }

    /// Bits of y, the rounded sum, rstd, dx and dw; results go to memory full of NaN.
    fn results(&self, threads: usize) -> [Vec<u64>; 5] {
        let Input { x, residual, dy, weight, cols } = self;
        let (cols, rows, threads) = (*cols, x.len() / cols, Threads::new(threads));
        let nan = vec![T::from_f64(f64::NAN); x.len()];
        let (mut y, mut sum, mut dx, mut dw) = (nan.clone(), nan.clone(), nan, vec![T::from_f64(f64::NAN); cols]);
        let mut rstd = vec![T::Compute::from_f64(f64::NAN); rows];
        forward(&threads, x, Some(residual), Some(weight), &mut y, Some(&mut sum), &mut rstd, rows, cols, 1e-6);
        backward(&threads, dy, &sum, Some(weight), &rstd, Some(residual), &mut dx, Some(&mut dw), rows, cols);
        [bits(&y), bits(&sum), bits(&rstd), bits(&dx), bits(&dw)]
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    fn check<T: Storage>() {
        for (rows, cols) in [(1, 5), (33, 17), (100, 130), (2100, 24), (129, 515), (3, 70_000)] {
            let input = Input::<T>::new(rows, cols);
            let one = input.results(1);
            for threads in [2, 3, 7] {
                assert!(one == input.results(threads), "{} {rows} x {cols}, {threads} threads", T::DTYPE);
            }
        }
    }
    check::<f32>();
    check::<f64>();
    check::<f16>();
    check::<bf16>();
}

/// Sums go in another order there; everything else is the same.
#[test]
fn lesser_processors_compute_the_same() {
    fn check<T: Storage>() {
        for (rows, cols) in [(5, 1), (7, 19), (40, 130), (3, 5000)] {
            let input = Input::<T>::new(rows, cols);
            let widest = input.results(1);
            for_each_width(|| {
                for (index, (narrow, wide)) in input.results(1).iter().zip(&widest).enumerate() {
                    let values = |bits: &[u64]| bits.iter().map(|bits| f64::from_bits(*bits)).collect::<Vec<_>>();
                    let largest = values(wide).iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
                    for (narrow, wide) in values(narrow).iter().zip(values(wide)) {
                        let tolerance = 4.0 * T::DTYPE.unit_roundoff() * (largest + wide.abs());
                        assert!((narrow - wide).abs() <= tolerance, "{} {rows} x {cols}, result {index}", T::DTYPE);
                    }
                }
            });
        }
    }
    check::<f32>();
    check::<f64>();
    check::<f16>();
    check::<bf16>();
}

/// Rows of the forward and backward pass do not depend on each other, so a call on part of the rows, too small to be
/// streamed, must give the same bits.
#[test]
fn streamed_results_are_those_of_smaller_calls() {
    fn check<T: Storage>(rows: usize, cols: usize) {
        let input = Input::<T>::new(rows, cols);
        let Input { x, dy, weight, .. } = &input;
        let threads = Threads::new(2);
        let run = |x: &[T], dy: &[T], y: &mut [T], dx: &mut [T]| {
            let rows = x.len() / cols;
            let mut rstd = vec![T::Compute::default(); rows];
            forward(&threads, x, None, Some(weight), y, None, &mut rstd, rows, cols, 1e-6);
            backward(&threads, dy, x, Some(weight), &rstd, None, dx, None, rows, cols);
        };
        let fresh = || vec![T::from_f64(f64::NAN); x.len() + 64];
        let (mut y, mut dx) = (fresh(), fresh());
        for part in 0..4 {
            let at = part * x.len() / 4..(part + 1) * x.len() / 4;
            run(&x[at.clone()], &dy[at.clone()], &mut y[at.clone()], &mut dx[at]);
        }
        for shift in [0, 1, 4] {
            let (mut y_large, mut dx_large) = (fresh(), fresh());
            let at = y_large.as_ptr().align_offset(64) + shift..;
            let y_large = &mut y_large[at][..x.len()];
            let at = dx_large.as_ptr().align_offset(64) + shift..;
            let dx_large = &mut dx_large[at][..x.len()];
            assert_eq!(stream::wanted(y_large, cols), cfg!(target_arch = "x86_64") && shift == 0);
            run(x, dy, y_large, dx_large);
            assert!(bits(y_large) == bits(&y[..x.len()]), "{} y, shift {shift}", T::DTYPE);
            assert!(bits(dx_large) == bits(&dx[..x.len()]), "{} dx, shift {shift}", T::DTYPE);
        }
    }
    check::<f32>(1040, 2048);
    check::<f64>(520, 2048);
    check::<f16>(2080, 2048);
    check::<bf16>(2080, 2048);
}

#[test]
fn weight_gradients_of_many_rows_stay_accurate() {
    let (rows, cols) = (100_000, 3);
    // All terms of one sign: nothing cancels, and every rounding error counts.
    let ones = vec![1.0f32; rows * cols];
    let x: Vec<f32> = Random::new(1).normals::<f32>(rows * cols).iter().map(|x| x.abs()).collect();
    let (mut dx, mut dw) = (ones.clone(), vec![0.0f32; cols]);
    let rstd = vec![1.0; rows];
    backward(&Threads::new(2), &ones, &x, None::<&[f32]>, &rstd, None, &mut dx, Some(&mut dw), rows, cols);
    for (j, dw) in dw.iter().enumerate() {
        let exact: f64 = x.iter().skip(j).step_by(cols).map(|x| f64::from(*x)).sum();
        let bound = 2.0 * (8.0 + (rows as f64).log2()) * 2f64.powi(-24) * exact;
        assert!((f64::from(*dw) - exact).abs() <= bound);
    }
}
