//! The oracle of trsm: how far op(A) X = B holds, in float64.

use super::{Diagonal, Form, Matrix, Triangle};
use crate::dtype::Element;

/// op(A), n x n, in float64, zeros and ones put in.
pub fn matrix<T: Element>(a: &[T], n: usize, form: Form) -> Vec<f64> {
    let triangle = |i: usize, j: usize| {
        let outside = if form.triangle == Triangle::Lower { j > i } else { j < i };
        match form.diagonal {
            Diagonal::Unit if i == j => 1.0,
            _ if outside => 0.0,
            _ => a[i * n + j].to_f64(),
        }
    };
    let entry = |i: usize, j: usize| match (form.matrix, form.triangle) {
        (Matrix::Plain, _) => triangle(i, j),
        (Matrix::Transposed, _) => triangle(j, i),
        (Matrix::Square, Triangle::Lower) => (0..n).map(|k| triangle(i, k) * triangle(j, k)).sum(),
        (Matrix::Square, Triangle::Upper) => (0..n).map(|k| triangle(k, i) * triangle(k, j)).sum(),
    };
    (0..n * n).map(|e| entry(e / n, e % n)).collect()
}

/// |b - op(A) x| / (|op(A)| |x| u), 1-norms, the worst column; not finite where X is not.
pub fn ratio<T: Element>(a: &[T], b: &[T], x: &[T], n: usize, cols: usize, form: Form) -> f64 {
    let a = matrix(a, n, form);
    let norm = (0..n).map(|j| (0..n).map(|i| a[i * n + j].abs()).sum()).fold(0.0, f64::max);
    let mut worst = 0.0f64;
    for c in 0..cols {
        let of = |v: &[T], i: usize| v[i * cols + c].to_f64();
        let size: f64 = (0..n).map(|i| of(x, i).abs()).sum();
        let error: f64 = (0..n).map(|i| (of(b, i) - (0..n).map(|j| a[i * n + j] * of(x, j)).sum::<f64>()).abs()).sum();
        let ratio = if error == 0.0 { 0.0 } else { error / (norm * size * T::DTYPE.unit_roundoff()) };
        worst = if ratio.is_nan() { f64::NAN } else { worst.max(ratio) };
    }
    worst
}
