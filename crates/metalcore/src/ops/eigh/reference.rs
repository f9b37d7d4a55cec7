//! The oracle of eigh: how far A = Q L Q' and Q'Q = I hold, in float64.

use super::Triangle;
use crate::dtype::Element;

/// Worst of all matrices of a batch, in units of the size and the unit roundoff. Not finite if a result is not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratios {
    /// |A - Q L Q'| / (N |A| u), 1-norms.
    pub reconstruction: f64,
    /// |I - Q'Q| / (N u), 1-norm.
    pub orthogonality: f64,
}

/// Ratios of row-major A (batch, n, n), of which one triangle counts, L (batch, n) and Q (batch, n, n).
pub fn ratios<T: Element>(a: &[T], l: &[T], q: &[T], n: usize, triangle: Triangle) -> Ratios {
    let mut worst = Ratios { reconstruction: 0.0, orthogonality: 0.0 };
    let roundoff = T::DTYPE.unit_roundoff();
    for item in 0..if n == 0 { 0 } else { a.len() / (n * n) } {
        let a = |i: usize, j: usize| {
            let (i, j) = if (triangle == Triangle::Lower) == (i >= j) { (i, j) } else { (j, i) };
            a[(item * n + i) * n + j].to_f64()
        };
        let q = |i: usize, j: usize| q[(item * n + i) * n + j].to_f64();
        // Entries near the largest number overflow in sums of float64 too.
        let size = (0..n * n).map(|e| a(e / n, e % n).abs()).fold(0.0, f64::max);
        let size = if size == 0.0 { 1.0 } else { size };
        let product = |i, j| (0..n).map(|k| q(i, k) * (l[item * n + k].to_f64() / size) * q(j, k)).sum::<f64>();
        let error = norm(n, |i, j| a(i, j) / size - product(i, j));
        let scale = n as f64 * norm(n, |i, j| a(i, j) / size) * roundoff;
        let identity = |i, j| if i == j { 1.0 } else { 0.0 };
        let defect = norm(n, |i, j| identity(i, j) - (0..n).map(|k| q(k, i) * q(k, j)).sum::<f64>());
        let ratio = |value: f64, unit: f64| if value == 0.0 { 0.0 } else { value / unit };
        worst.reconstruction = larger(worst.reconstruction, ratio(error, scale));
        worst.orthogonality = larger(worst.orthogonality, ratio(defect, n as f64 * roundoff));
    }
    worst
}

/// The larger one; a NaN is larger than everything.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Largest column sum of magnitudes.
fn norm(n: usize, entry: impl Fn(usize, usize) -> f64) -> f64 {
    (0..n).map(|j| (0..n).map(|i| entry(i, j).abs()).sum()).fold(0.0, larger)
}
