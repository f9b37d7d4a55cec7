//! The oracle of the activations in float64. Phi: near 0 the power series of its distance from 1/2,
//! whose terms are positive; else the continued fraction of Mills' ratio.

use super::Function;
use std::f64::consts::{PI, TAU};

/// f(x) and f'(x).
pub fn curve(function: Function, x: f64) -> (f64, f64) {
    let (p, slope) = match function {
        Function::Silu => (sigmoid(x), sigmoid(x) * sigmoid(-x)),
        Function::Gelu => (normal(x), (-x * x / 2.0).exp() / TAU.sqrt()),
        Function::GeluTanh => {
            let factor = 2.0 * (2.0 / PI).sqrt();
            let z = factor * (x + 0.044715 * x * x * x);
            (sigmoid(z), sigmoid(z) * sigmoid(-z) * factor * (1.0 + 3.0 * 0.044715 * x * x))
        }
    };
    (x * p, p + x * slope)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Phi(x).
fn normal(x: f64) -> f64 {
    let a = x.abs();
    let density = (-a * a / 2.0).exp() / TAU.sqrt();
    let tail = if a > 3.0 {
        density / (1..=200).rev().fold(a, |fraction, k| a + f64::from(k) / fraction)
    } else {
        let (mut term, mut sum) = (a, a);
        for k in 1..=60 {
            term *= a * a / f64::from(2 * k + 1);
            sum += term;
        }
        0.5 - density * sum
    };
    if x < 0.0 { tail } else { 1.0 - tail }
}
