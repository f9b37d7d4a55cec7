//! The oracle of embedding_bag: the sums in float64, entry by entry. Indices are within the weight.

use super::Mode;

/// One bag: for each entry its row and factor, those of the padding left out.
pub type Bag = Vec<(usize, f64)>;

/// y and the sum of magnitudes that its error bound is relative to; for a maximum the place of the entry in the bag.
pub fn forward(weight: &[f64], cols: usize, bags: &[Bag], mode: Mode) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut size) = (Vec::new(), Vec::new());
    for bag in bags {
        let count = if mode == Mode::Mean { bag.len().max(1) as f64 } else { 1.0 };
        for col in 0..cols {
            let values = bag.iter().map(|(row, factor)| weight[row * cols + col] * factor);
            if mode == Mode::Max {
                let best = values.enumerate().fold((-1.0, 0.0), |best, (at, value)| {
                    if best.0 < 0.0 || value > best.1 { (at as f64, value) } else { best }
                });
                y.push(best.1);
                size.push(best.0);
            } else {
                y.push(values.clone().sum::<f64>() / count);
                size.push(values.map(f64::abs).sum::<f64>() / count);
            }
        }
    }
    (y, size)
}

/// The gradient of the weight, the sum of magnitudes of its terms, and the gradient of the factors, bag by bag.
pub fn backward(
    weight: &[f64],
    cols: usize,
    bags: &[Bag],
    mode: Mode,
    dy: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
    let (mut dw, mut size) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
    let (_, largest) = forward(weight, cols, bags, mode);
    let mut factors = Vec::new();
    for (b, bag) in bags.iter().enumerate() {
        let scale = if mode == Mode::Mean { 1.0 / bag.len() as f64 } else { 1.0 };
        for (at, (row, factor)) in bag.iter().enumerate() {
            for col in 0..cols {
                if mode != Mode::Max || largest[b * cols + col] == at as f64 {
                    let term = dy[b * cols + col] * scale * factor;
                    dw[row * cols + col] += term;
                    size[row * cols + col] += term.abs();
                }
            }
        }
        let dot = |row: usize| (0..cols).map(|col| dy[b * cols + col] * weight[row * cols + col]).sum();
        factors.push(bag.iter().map(|(row, _)| dot(*row)).collect());
    }
    (dw, size, factors)
}
