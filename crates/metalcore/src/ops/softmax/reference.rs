//! The oracle of softmax: the formulas in float64, row by row.

use crate::ops::rms_norm::reference::sum;

/// y of each row.
pub fn forward(x: &[f64], cols: usize) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(cols.max(1)) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let terms: Vec<f64> = row.iter().map(|x| (x - largest).exp()).collect();
        let sum = sum(terms.iter().copied());
        y.extend(terms.iter().map(|term| term / sum));
    }
    y
}

/// dx = y (dy - sum(y dy)), and |y dy| + |y| sum |y dy|, which its error bound is relative to.
pub fn backward(y: &[f64], dy: &[f64], cols: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut dx, mut scale) = (Vec::with_capacity(y.len()), Vec::with_capacity(y.len()));
    for (y, dy) in y.chunks_exact(cols.max(1)).zip(dy.chunks_exact(cols.max(1))) {
        let dot = sum(y.iter().zip(dy).map(|(y, dy)| y * dy));
        let dot_scale: f64 = y.iter().zip(dy).map(|(y, dy)| (y * dy).abs()).sum();
        dx.extend(y.iter().zip(dy).map(|(y, dy)| y * (dy - dot)));
        scale.extend(y.iter().zip(dy).map(|(y, dy)| (y * dy).abs() + y.abs() * dot_scale));
    }
    (dx, scale)
}
