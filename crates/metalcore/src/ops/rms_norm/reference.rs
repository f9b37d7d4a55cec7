//! The oracle of RMS norm: the formulas in float64, row by row, with sums that hardly round.

/// y and r = 1 / sqrt(mean(x^2) + eps) of each row.
pub fn forward(x: &[f64], weight: Option<&[f64]>, cols: usize, eps: f64) -> (Vec<f64>, Vec<f64>) {
    let mut y = Vec::with_capacity(x.len());
    let mut rstd = Vec::with_capacity(x.len() / cols.max(1));
    for row in x.chunks_exact(cols.max(1)) {
        let mean = sum(row.iter().map(|x| x * x)) / cols as f64;
        let r = 1.0 / (mean + eps).sqrt();
        y.extend(row.iter().enumerate().map(|(j, x)| x * r * weight.map_or(1.0, |w| w[j])));
        rstd.push(r);
    }
    (y, rstd)
}

/// Gradients, and what their error bounds are relative to.
pub struct Gradients {
    /// d x, before a gradient of the rounded sum is added.
    pub dx: Vec<f64>,
    /// r |h| + |x| (r^3 / cols) sum |h x|
    pub dx_scale: Vec<f64>,
    /// Sum over rows of dy x r.
    pub dw: Vec<f64>,
    /// Sum over rows of |dy x r|.
    pub dw_scale: Vec<f64>,
}

/// With h = dy w: dx = r h - x (r^3 / cols) sum(h x), dw = sum over rows of dy x r.
pub fn backward(dy: &[f64], x: &[f64], weight: Option<&[f64]>, rstd: &[f64], cols: usize) -> Gradients {
    let (mut dw, mut dw_scale) = (vec![0.0; cols], vec![0.0; cols]);
    let (mut dx, mut dx_scale) = (Vec::with_capacity(x.len()), Vec::with_capacity(x.len()));
    let rows = dy.chunks_exact(cols.max(1)).zip(x.chunks_exact(cols.max(1)));
    for ((dy, x), r) in rows.zip(rstd) {
        let h: Vec<f64> = dy.iter().enumerate().map(|(j, dy)| dy * weight.map_or(1.0, |w| w[j])).collect();
        let factor = r.powi(3) / cols as f64;
        let dot = sum(h.iter().zip(x).map(|(h, x)| h * x));
        let dot_scale: f64 = h.iter().zip(x).map(|(h, x)| (h * x).abs()).sum();
        for j in 0..cols {
            dx.push(r * h[j] - x[j] * factor * dot);
            dx_scale.push(r * h[j].abs() + x[j].abs() * factor * dot_scale);
            dw[j] += dy[j] * x[j] * r;
            dw_scale[j] += (dy[j] * x[j] * r).abs();
        }
    }
    Gradients { dx, dx_scale, dw, dw_scale }
}

/// A sum whose rounding errors are summed too (Neumaier): float64 results are checked against it.
pub fn sum(terms: impl Iterator<Item = f64>) -> f64 {
    let (total, lost) = terms.fold((0.0f64, 0.0f64), |(total, lost), term| {
        let next = total + term;
        let rounded = if total.abs() >= term.abs() { (total - next) + term } else { (term - next) + total };
        (next, lost + rounded)
    });
    total + lost
}
