//! The oracle of cholesky: how far A = L L' holds, in float64.

use super::Triangle;
use crate::dtype::{DType, Element};

/// |A - L L'| / (N |A| u) of every matrix, 1-norms; not finite where L is not.
pub fn ratios<T: Element>(a: &[T], l: &[T], n: usize, triangle: Triangle) -> Vec<f64> {
    // Float64 residuals of float64 results need more than float64 where few terms hide their own rounding.
    let compensate = T::DTYPE == DType::F64 && n < 64;
    let pair = |i: usize, j: usize| match triangle {
        Triangle::Lower => i.max(j) * n + i.min(j),
        Triangle::Upper => i.min(j) * n + i.max(j),
    };
    let item = |(a, l): (&[T], &[T])| {
        let (mut error, mut size) = (0.0, 0.0);
        for j in 0..n {
            let (mut error_of_column, mut size_of_column) = (0.0, 0.0);
            for i in 0..n {
                let entry = a[pair(i, j)].to_f64();
                let terms = (0..=i.min(j)).map(|k| (l[pair(i, k)].to_f64(), l[pair(j, k)].to_f64()));
                error_of_column += residual(entry, terms, compensate).abs();
                size_of_column += entry.abs();
            }
            error = larger(error, error_of_column);
            size = larger(size, size_of_column);
        }
        if error == 0.0 { 0.0 } else { error / (n as f64 * size * T::DTYPE.unit_roundoff()) }
    };
    a.chunks_exact((n * n).max(1)).zip(l.chunks_exact((n * n).max(1))).map(item).collect()
}

/// The larger one; a NaN is larger than everything.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// start - sum of products; in twice the precision if `compensate` (Ogita, Rump, Oishi, Accurate sum and dot product).
fn residual(start: f64, terms: impl Iterator<Item = (f64, f64)>, compensate: bool) -> f64 {
    let (mut sum, mut lost) = (start, 0.0);
    for (x, y) in terms {
        let product = -x * y;
        let total = sum + product;
        if compensate {
            let virtual_product = total - sum;
            lost += (sum - (total - virtual_product)) + (product - virtual_product);
            lost += (-x).mul_add(y, -product);
        }
        sum = total;
    }
    sum + lost
}
