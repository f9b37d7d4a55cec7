//! The oracle of AdamW: the formulas in float64.

use super::{Goal, Options, one_minus_power};

/// One parameter with its state.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Element {
    /// p
    pub param: f64,
    /// m
    pub exp_avg: f64,
    /// v
    pub exp_avg_sq: f64,
    /// Largest v, with amsgrad.
    pub max_exp_avg_sq: Option<f64>,
}

/// A step's result, and what its error bounds are relative to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The new values.
    pub element: Element,
    /// |p| + |step|
    pub param_scale: f64,
    /// Sum of the magnitudes of the two terms of m.
    pub exp_avg_scale: f64,
}

/// Step number `step`, from 1, with a gradient that carries the factor `grad_scale`.
pub fn step(element: Element, grad: f64, options: &Options, step: f64, grad_scale: f64) -> Step {
    let Options { lr, beta1, beta2, eps, weight_decay, goal } = *options;
    let g = if goal == Goal::Maximize { -grad / grad_scale } else { grad / grad_scale };
    let p = element.param * (1.0 - lr * weight_decay);
    let (kept, fresh) = (beta1 * element.exp_avg, (1.0 - beta1) * g);
    let v = beta2 * element.exp_avg_sq + (1.0 - beta2) * g * g;
    let largest = element.max_exp_avg_sq.map(|largest| largest.max(v));
    let denominator = largest.unwrap_or(v).sqrt() / one_minus_power(beta2, step).sqrt() + eps;
    let change = lr / one_minus_power(beta1, step) * (kept + fresh) / denominator;
    Step {
        element: Element { param: p - change, exp_avg: kept + fresh, exp_avg_sq: v, max_exp_avg_sq: largest },
        param_scale: p.abs() + change.abs(),
        exp_avg_scale: kept.abs() + fresh.abs(),
    }
}
