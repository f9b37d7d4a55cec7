//! The oracle of svd: how far A = U S V', U'U = I and V'V = I hold, in float64.

use crate::dtype::Element;

/// Worst of all matrices of a batch, in units of the size and the unit roundoff. Not finite if a result is not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratios {
    /// |A - U S V'| / (max(M, N) |A| u), 1-norms.
    pub reconstruction: f64,
    /// The larger of |I - U'U| / (M u) and |I - V'V| / (N u), 1-norms.
    pub orthogonality: f64,
}

/// Ratios of row-major A (batch, rows, cols), U (batch, rows, k), S (batch, k) and V (batch, cols, k).
pub fn ratios<T: Element>(a: &[T], u: &[T], s: &[T], v: &[T], rows: usize, cols: usize) -> Ratios {
    let (mut worst, k) = (Ratios { reconstruction: 0.0, orthogonality: 0.0 }, rows.min(cols));
    let roundoff = T::DTYPE.unit_roundoff();
    for item in 0..a.len().checked_div(rows * cols).unwrap_or(0) {
        let a = |i: usize, j: usize| a[(item * rows + i) * cols + j].to_f64();
        let u = |i: usize, l: usize| u[(item * rows + i) * k + l].to_f64();
        let s = |l: usize| s[item * k + l].to_f64();
        let v = |j: usize, l: usize| v[(item * cols + j) * k + l].to_f64();
        let error = norm(rows, cols, |i, j| a(i, j) - (0..k).map(|l| u(i, l) * s(l) * v(j, l)).sum::<f64>());
        let scale = rows.max(cols) as f64 * norm(rows, cols, a) * roundoff;
        worst.reconstruction = larger(worst.reconstruction, if error == 0.0 { 0.0 } else { error / scale });
        let identity = |i, j| if i == j { 1.0 } else { 0.0 };
        let left = norm(k, k, |i, j| identity(i, j) - (0..rows).map(|l| u(l, i) * u(l, j)).sum::<f64>());
        let right = norm(k, k, |i, j| identity(i, j) - (0..cols).map(|l| v(l, i) * v(l, j)).sum::<f64>());
        worst.orthogonality = larger(worst.orthogonality, left / (rows as f64 * roundoff));
        worst.orthogonality = larger(worst.orthogonality, right / (cols as f64 * roundoff));
        assert!((1..k).all(|l| s(l) <= s(l - 1)) && (0..k).all(|l| s(l) >= 0.0), "S descends to 0 at most");
        for l in 0..k {
            let peak = (0..rows).map(|i| u(i, l)).fold(0.0f64, |m, x| if x.abs() > m.abs() { x } else { m });
            assert!(peak >= 0.0, "column {l} of U has the wrong sign");
        }
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
