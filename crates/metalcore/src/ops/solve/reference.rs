//! The oracle of solve: how far A X = B and P A = L U hold, in float64.

use crate::dtype::Element;

/// The larger one; a NaN is larger than everything.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Largest column sum of magnitudes.
fn norm(rows: usize, cols: usize, entry: impl Fn(usize, usize) -> f64) -> f64 {
    (0..cols).map(|j| (0..rows).map(|i| entry(i, j).abs()).sum()).fold(0.0, larger)
}

fn quotient(error: f64, unit: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / unit }
}

/// |b - A x| / (|A| |x| u) of the worst column of one system: row-major A (n, n), B and X (n, k).
pub fn residual<T: Element>(a: &[T], b: &[T], x: &[T], n: usize, k: usize) -> f64 {
    let at = |m: &[T], i: usize, j: usize, width: usize| m[i * width + j].to_f64();
    let size = norm(n, n, |i, j| at(a, i, j, n));
    (0..k)
        .map(|c| {
            let error = |i, _| at(b, i, c, k) - (0..n).map(|j| at(a, i, j, n) * at(x, j, c, k)).sum::<f64>();
            let unit = size * norm(n, 1, |i, _| at(x, i, c, k)) * T::DTYPE.unit_roundoff();
            quotient(norm(n, 1, error), unit)
        })
        .fold(0.0, larger)
}

/// |P A - L U| / (n ||L| |U|| u) of one matrix, with 1-based pivots.
pub fn factors<T: Element>(a: &[T], lu: &[T], pivots: &[i32], rows: usize, cols: usize) -> f64 {
    let mut order: Vec<usize> = (0..rows).collect();
    for (k, pivot) in pivots.iter().enumerate() {
        order.swap(k, *pivot as usize - 1);
    }
    let steps = rows.min(cols);
    let lower = |i: usize, l: usize| if i == l { 1.0 } else { lu[i * cols + l].to_f64() };
    let upper = |l: usize, j: usize| lu[l * cols + j].to_f64();
    let terms = |i: usize, j: usize| (0..steps.min(i + 1).min(j + 1)).map(move |l| lower(i, l) * upper(l, j));
    let error = norm(rows, cols, |i, j| a[order[i] * cols + j].to_f64() - terms(i, j).sum::<f64>());
    let size = norm(rows, cols, |i, j| terms(i, j).map(f64::abs).sum());
    quotient(error, steps as f64 * size * T::DTYPE.unit_roundoff())
}
