//! The oracle: float64, plain loops.

/// Loss and lse of each row, and what the error bound of the loss is relative to; None for a row that is ignored.
pub fn forward(x: &[f64], targets: &[i64], cols: usize, ignore: i64, eps: f64) -> Vec<Option<(f64, f64, f64)>> {
    let rows = x.chunks_exact(cols).zip(targets);
    rows.map(|(x, target)| {
        (*target != ignore).then(|| {
            let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
            let mean = x.iter().sum::<f64>() / cols as f64;
            let size = x.iter().map(|x| x.abs()).sum::<f64>() / cols as f64;
            let at = x[*target as usize];
            let loss = (1.0 - eps) * (lse - at) + eps * (lse - mean);
            (loss, lse, max.abs() + lse.abs() + at.abs() + eps * size)
        })
    })
    .collect()
}

/// Gradient of the logits: (p - (1 - eps) [target] - eps / cols) g.
pub fn backward(x: &[f64], targets: &[i64], cols: usize, ignore: i64, eps: f64, grad: &[f64]) -> Vec<f64> {
    let mut dx = Vec::with_capacity(x.len());
    for (row, loss) in forward(x, targets, cols, ignore, eps).iter().enumerate() {
        for (j, x) in x[row * cols..(row + 1) * cols].iter().enumerate() {
            dx.push(match loss {
                Some((_, lse, _)) => {
                    let hot = if j as i64 == targets[row] { 1.0 - eps } else { 0.0 };
                    ((x - lse).exp() - hot - eps / cols as f64) * grad[row]
                }
                None => 0.0,
            });
        }
    }
    dx
}
