//! Cholesky on the host, and which of its two forms factors what.

use super::{Triangle, cpu_blocked, cpu_interleaved};
use crate::device::cpu::Threads;
use crate::device::cpu::interleaved::lanes;
use crate::device::cpu::simd::Real;

/// Rows up to which matrices are interleaved: they stay in the second-level cache.
const INTERLEAVED_ROWS: usize = 64;

/// L and info of each matrix of `a`, (batch, n, n). Entries from a bad pivot on are unspecified.
pub fn factor<T: Real>(threads: &Threads, a: &[T], n: usize, triangle: Triangle, l: &mut [T], info: &mut [i32]) {
    assert!(a.len() == info.len() * n * n && l.len() == a.len());
    if n == 0 {
        return info.fill(0);
    }
    // A pack that is partly filled costs as much as a full one.
    if n <= INTERLEAVED_ROWS && info.len() >= (lanes::<T>() / 4).max(2) {
        cpu_interleaved::factor(threads, a, n, triangle, l, info);
    } else {
        cpu_blocked::factor(threads, a, n, triangle, l, info);
    }
}

/// The transpose of a square matrix.
pub(super) fn transpose<T: Real>(n: usize, from: &[T], to: &mut [T]) {
    const BLOCK: usize = 16;
    for i0 in (0..n).step_by(BLOCK) {
        for j0 in (0..n).step_by(BLOCK) {
            for i in i0..n.min(i0 + BLOCK) {
                for j in j0..n.min(j0 + BLOCK) {
                    to[j * n + i] = from[i * n + j];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::simd::narrow::for_each_width;
    use crate::ops::cholesky::reference::ratios;
    use crate::testing::{Random, definite};

    #[test]
    fn both_forms_are_right_with_vectors_of_every_width() {
        let check = || {
            let mut random = Random::new(7);
            for n in [1, 2, 3, 4, 5, 8, 13, 16, 31, 64, 67] {
                let values: Vec<f32> = (0..5).flat_map(|_| definite(n, &mut random)).map(|v| v as f32).collect();
                for triangle in [Triangle::Lower, Triangle::Upper] {
                    for form in [cpu_interleaved::factor::<f32>, cpu_blocked::factor::<f32>] {
                        let (mut l, mut info) = (vec![f32::NAN; values.len()], vec![-1; 5]);
                        form(&Threads::new(1), &values, n, triangle, &mut l, &mut info);
                        assert_eq!(info, [0; 5]);
                        assert!(ratios(&values, &l, n, triangle).iter().all(|ratio| *ratio <= 3.0), "n = {n}");
                    }
                }
            }
        };
        check();
        for_each_width(check);
    }
}
