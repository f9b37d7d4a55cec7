//! The oracle of rope: float64, plain loops.

use super::Direction;

/// A rotated head, and what its error bound is relative to: the sum of the magnitudes of both terms.
pub fn head(x: &[f64], cos: &[f64], sin: &[f64], direction: Direction) -> (Vec<f64>, Vec<f64>) {
    let half = x.len() / 2;
    let second = cos.len() - half;
    let (mut y, mut scale) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    for i in 0..half {
        let (x1, x2) = (x[i], x[half + i]);
        let (c1, c2, s1, s2) = (cos[i], cos[second + i], sin[i], sin[second + i]);
        let terms = match direction {
            Direction::Forward => [(x1 * c1, -x2 * s1), (x2 * c2, x1 * s2)],
            Direction::Backward => [(x1 * c1, x2 * s2), (x2 * c2, -x1 * s1)],
        };
        for (at, (a, b)) in [i, half + i].into_iter().zip(terms) {
            y[at] = a + b;
            scale[at] = a.abs() + b.abs();
        }
    }
    (y, scale)
}
