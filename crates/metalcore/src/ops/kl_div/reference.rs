//! The oracle of kl_div: the formulas in float64, row by row.

use crate::ops::rms_norm::reference::sum;

fn terms(log_p: f64, log_q: f64) -> (f64, f64) {
    let p = log_p.exp();
    if p == 0.0 { (0.0, 0.0) } else { (p, p * (log_p - log_q)) }
}

/// The loss of each row, and the sum of its terms' magnitudes.
pub fn forward(log_p: &[f64], log_q: &[f64], cols: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = log_p.chunks_exact(cols.max(1)).zip(log_q.chunks_exact(cols.max(1)));
    let of = |(x, y): (&[f64], &[f64])| {
        let terms: Vec<f64> = x.iter().zip(y).map(|(x, y)| terms(*x, *y).1).collect();
        (sum(terms.iter().copied()), terms.iter().map(|term| term.abs()).sum::<f64>())
    };
    rows.map(of).unzip()
}

/// d log p and d log q where the gradient of each row is `grad`, and what the error bound of the first is relative to.
pub fn backward(grad: &[f64], log_p: &[f64], log_q: &[f64], cols: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut dp, mut dq, mut scale) = (Vec::new(), Vec::new(), Vec::new());
    for (i, (x, y)) in log_p.iter().zip(log_q).enumerate() {
        let (p, term) = terms(*x, *y);
        let g = grad[i / cols];
        let none = p == 0.0;
        dp.push(if none { 0.0 } else { g * (p + term) });
        dq.push(if none { 0.0 } else { -g * p });
        scale.push(if none { 0.0 } else { (g * p).abs() * (1.0 + x.abs() + (x - y).abs()) });
    }
    (dp, dq, scale)
}
