//! The oracle of layer norm: the formulas in float64, row by row, with sums that hardly round.

use crate::ops::rms_norm::reference::sum;

/// y, and what its error bound is relative to; mean and 1 / sqrt(variance + eps) of each row.
pub struct Normed {
    /// (x - mean) r w + b
    pub y: Vec<f64>,
    /// (|x| + |mean|) r |w| + |b|
    pub scale: Vec<f64>,
    /// Of each row.
    pub mean: Vec<f64>,
    /// Of each row.
    pub rstd: Vec<f64>,
}

/// The forward pass.
pub fn forward(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Normed {
    let cols = weight.len();
    let mut normed = Normed { y: Vec::new(), scale: Vec::new(), mean: Vec::new(), rstd: Vec::new() };
    for row in x.chunks_exact(cols.max(1)) {
        let mean = sum(row.iter().copied()) / cols as f64;
        let r = 1.0 / (sum(row.iter().map(|x| (x - mean).powi(2))) / cols as f64 + eps).sqrt();
        for (j, x) in row.iter().enumerate() {
            normed.y.push((x - mean) * r * weight[j] + bias[j]);
            normed.scale.push((x.abs() + mean.abs()) * r * weight[j].abs() + bias[j].abs());
        }
        normed.mean.push(mean);
        normed.rstd.push(r);
    }
    normed
}

/// Gradients, each with what its error bound is relative to.
pub struct Gradients {
    /// r (g - mean(g) - n mean(g n)), n = (x - mean) r, g = dy w; magnitudes with |x| + |mean| for x - mean.
    pub dx: (Vec<f64>, Vec<f64>),
    /// Sum over rows of dy n.
    pub dw: (Vec<f64>, Vec<f64>),
    /// Sum over rows of dy.
    pub db: (Vec<f64>, Vec<f64>),
}

/// The backward pass.
pub fn backward(dy: &[f64], x: &[f64], weight: &[f64], (mean, rstd): (&[f64], &[f64])) -> Gradients {
    let cols = weight.len();
    let zeros = || (vec![0.0; cols], vec![0.0; cols]);
    let (mut dx, mut dw, mut db) = ((Vec::new(), Vec::new()), zeros(), zeros());
    let rows = dy.chunks_exact(cols.max(1)).zip(x.chunks_exact(cols.max(1)));
    for ((dy, x), (m, r)) in rows.zip(mean.iter().zip(rstd)) {
        let g: Vec<f64> = dy.iter().zip(weight).map(|(dy, w)| dy * w).collect();
        let n: Vec<f64> = x.iter().map(|x| (x - m) * r).collect();
        let size: Vec<f64> = x.iter().map(|x| (x.abs() + m.abs()) * r).collect();
        let count = cols as f64;
        let (mean_g, mean_gn) = (sum(g.iter().copied()) / count, sum(g.iter().zip(&n).map(|(g, n)| g * n)) / count);
        let size_g = g.iter().map(|g| g.abs()).sum::<f64>() / count;
        let size_gn = g.iter().zip(&size).map(|(g, n)| g.abs() * n).sum::<f64>() / count;
        for j in 0..cols {
            dx.0.push(r * (g[j] - mean_g - n[j] * mean_gn));
            dx.1.push(r * (g[j].abs() + size_g + size[j] * size_gn));
            dw.0[j] += dy[j] * n[j];
            dw.1[j] += dy[j].abs() * size[j];
            db.0[j] += dy[j];
            db.1[j] += dy[j].abs();
        }
    }
    Gradients { dx, dw, db }
}
