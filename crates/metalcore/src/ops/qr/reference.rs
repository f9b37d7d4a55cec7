//! The oracle of QR: how far A = Q R and QᵀQ = I hold, in float64.

use crate::dtype::{DType, Element};

/// Worst of all matrices of a batch, in units of the size and the unit roundoff. Not finite if a result is not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratios {
    /// |A - Q R| / (max(M, N) |A| u), 1-norms.
    pub reconstruction: f64,
    /// |I - QᵀQ| / (M u), 1-norm.
    pub orthogonality: f64,
}

/// Ratios of row-major A (batch, rows, cols), Q (batch, rows, inner) and R (batch, inner, cols).
pub fn ratios<T: Element>(a: &[T], q: &[T], r: &[T], rows: usize, cols: usize, inner: usize) -> Ratios {
    let mut worst = Ratios { reconstruction: 0.0, orthogonality: 0.0 };
    let roundoff = T::DTYPE.unit_roundoff();
    // Float64 residuals of float64 results need more than float64 where few terms hide their own rounding.
    let compensate = T::DTYPE == DType::F64 && rows.max(cols) < 64;
    let items = if rows == 0 { 0 } else { a.len().checked_div(rows * cols).unwrap_or(q.len() / (rows * inner).max(1)) };
    for item in 0..items {
        let a = |i: usize, j: usize| a[(item * rows + i) * cols + j].to_f64();
        let q = |i: usize, j: usize| q[(item * rows + i) * inner + j].to_f64();
        let r = |i: usize, j: usize| r[(item * inner + i) * cols + j].to_f64();
        let error = norm(rows, cols, |i, j| residual(a(i, j), inner, |l| (q(i, l), r(l, j)), compensate));
        let scale = rows.max(cols) as f64 * norm(rows, cols, a) * roundoff;
        let identity = |i, j| if i == j { 1.0 } else { 0.0 };
        let defect = norm(inner, inner, |i, j| residual(identity(i, j), rows, |l| (q(l, i), q(l, j)), compensate));
        let ratio = |value: f64, unit: f64| if value == 0.0 { 0.0 } else { value / unit };
        worst.reconstruction = larger(worst.reconstruction, ratio(error, scale));
        worst.orthogonality = larger(worst.orthogonality, ratio(defect, rows as f64 * roundoff));
    }
    worst
}

/// The larger one; a NaN is larger than everything.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Largest column sum of magnitudes.
fn norm(rows: usize, cols: usize, entry: impl Fn(usize, usize) -> f64) -> f64 {
    (0..cols).map(|j| (0..rows).map(|i| entry(i, j).abs()).sum()).fold(0.0, larger)
}

/// start - sum of products; in twice the precision if `compensate` (Ogita, Rump, Oishi, Accurate sum and dot product).
fn residual(start: f64, terms: usize, term: impl Fn(usize) -> (f64, f64), compensate: bool) -> f64 {
    let (mut sum, mut lost) = (start, 0.0);
    for l in 0..terms {
        let (x, y) = term(l);
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
