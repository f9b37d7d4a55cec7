//! AdamW on the host: all tensors of a call cut into pieces, each read and written once.

use super::{Goal, Options, one_minus_power};
use crate::device::cpu::Threads;
use crate::device::cpu::simd::{Real, Simd, Storage, WithSimd, dispatch};

/// One tensor with its gradient and state, all of one length.
pub struct Slot<'a, P: Storage, G> {
    /// Parameter, updated.
    pub param: &'a mut [P],
    /// Gradient.
    pub grad: &'a [G],
    /// m, updated.
    pub exp_avg: &'a mut [P::Compute],
    /// v, updated.
    pub exp_avg_sq: &'a mut [P::Compute],
    /// Largest v, updated.
    pub max_exp_avg_sq: Option<&'a mut [P::Compute]>,
    /// Number of this step, from 1.
    pub step: f64,
}

/// Elements that a thread takes at a time: from 16 Ki, more work than the taking, to 256 Ki where there are plenty. The
/// hardware finds its streams anew in each piece.
fn chunk_of(elements: usize, threads: usize) -> usize {
    (elements / (8 * threads)).clamp(16 * 1024, 256 * 1024).next_multiple_of(1024)
}

/// One step for each tensor. `grad_scale` is a factor that the gradients carry.
pub fn step<P: Storage, G: Storage>(
    threads: &Threads,
    slots: Vec<Slot<'_, P, G>>,
    options: &Options,
    grad_scale: Option<f32>,
) {
    let count = slots.len();
    let elements: usize = slots.iter().map(|slot| slot.param.len()).sum();
    let chunk = chunk_of(elements, threads.count());
    let mut pieces = Vec::with_capacity(count + elements / chunk);
    for slot in slots {
        let Slot { param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, step } = slot;
        assert!(grad.len() == param.len() && exp_avg.len() == param.len() && exp_avg_sq.len() == param.len());
        assert!(max_exp_avg_sq.as_ref().is_none_or(|largest| largest.len() == param.len()));
        let factors = Factors::new(options, step, grad_scale);
        let mut largest = max_exp_avg_sq.into_iter().flat_map(|largest| largest.chunks_mut(chunk));
        let state = exp_avg.chunks_mut(chunk).zip(exp_avg_sq.chunks_mut(chunk));
        for ((param, grad), (m, v)) in param.chunks_mut(chunk).zip(grad.chunks(chunk)).zip(state) {
            pieces.push(Piece { param, grad, m, v, largest: largest.next(), factors });
        }
    }
    // Small tensors are taken together.
    let together = (chunk * pieces.len()).checked_div(elements).unwrap_or(1);
    threads.for_each_mut(&mut pieces, together, |piece| dispatch(piece));
}

/// Scalars of a step, formed in float64 and rounded once.
#[derive(Clone, Copy)]
struct Factors<C> {
    /// 1 - lr weight_decay
    decay: C,
    beta1: C,
    beta2: C,
    /// 1 - beta1
    fresh1: C,
    /// 1 - beta2
    fresh2: C,
    /// lr / (1 - beta1^t)
    rate: C,
    /// 1 / sqrt(1 - beta2^t)
    correction: C,
    eps: C,
    /// What gradients are divided by, sign of the goal included.
    divisor: C,
}

impl<C: Real> Factors<C> {
    fn new(options: &Options, step: f64, grad_scale: Option<f32>) -> Factors<C> {
        let Options { lr, beta1, beta2, eps, weight_decay, goal } = *options;
        let scale = f64::from(grad_scale.unwrap_or(1.0));
        let divisor = if goal == Goal::Maximize { -scale } else { scale };
        Factors {
            decay: C::from_f64(1.0 - lr * weight_decay),
            beta1: C::from_f64(beta1),
            beta2: C::from_f64(beta2),
            fresh1: C::from_f64(1.0 - beta1),
            fresh2: C::from_f64(1.0 - beta2),
            rate: C::from_f64(lr / one_minus_power(beta1, step)),
            correction: C::from_f64(1.0 / one_minus_power(beta2, step).sqrt()),
            eps: C::from_f64(eps),
            divisor: C::from_f64(divisor),
        }
    }
}

struct Piece<'a, P: Storage, G> {
    param: &'a mut [P],
    grad: &'a [G],
    m: &'a mut [P::Compute],
    v: &'a mut [P::Compute],
    largest: Option<&'a mut [P::Compute]>,
    factors: Factors<P::Compute>,
}

impl<P: Storage, G: Storage> WithSimd for &mut Piece<'_, P, G> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Piece { param, grad, m, v, largest, factors } = self;
        let factors = Splats::new(simd, factors);
        let lanes = P::Compute::lanes::<S>();
        let whole = param.len() / lanes * lanes;
        for first in (0..whole).step_by(lanes) {
            let at = first..first + lanes;
            let (p, g) = (P::Compute::load(simd, &param[at.clone()]), P::Compute::load(simd, &grad[at.clone()]));
            let (m_old, v_old) = (P::Compute::load(simd, &m[at.clone()]), P::Compute::load(simd, &v[at.clone()]));
            let (m_new, v_new) = moments(simd, &factors, g, m_old, v_old);
            let mut v_used = v_new;
            if let Some(largest) = largest {
                v_used = P::Compute::vmax(simd, P::Compute::load(simd, &largest[at.clone()]), v_new);
                P::Compute::store(simd, v_used, &mut largest[at.clone()]);
            }
            P::Compute::store(simd, m_new, &mut m[at.clone()]);
            P::Compute::store(simd, v_new, &mut v[at.clone()]);
            P::Compute::store(simd, moved(simd, &factors, p, m_new, v_used), &mut param[at]);
        }
        if whole < param.len() {
            let (p, g) = (P::Compute::load_part(simd, &param[whole..]), P::Compute::load_part(simd, &grad[whole..]));
            let (m_old, v_old) = (P::Compute::load_part(simd, &m[whole..]), P::Compute::load_part(simd, &v[whole..]));
            let (m_new, v_new) = moments(simd, &factors, g, m_old, v_old);
            let mut v_used = v_new;
            if let Some(largest) = largest {
                v_used = P::Compute::vmax(simd, P::Compute::load_part(simd, &largest[whole..]), v_new);
                P::Compute::store_part(simd, v_used, &mut largest[whole..]);
            }
            P::Compute::store_part(simd, m_new, &mut m[whole..]);
            P::Compute::store_part(simd, v_new, &mut v[whole..]);
            P::Compute::store_part(simd, moved(simd, &factors, p, m_new, v_used), &mut param[whole..]);
        }
    }
}

/// [`Factors`] in registers.
struct Splats<C: Real, S: Simd> {
    decay: C::Vector<S>,
    beta1: C::Vector<S>,
    beta2: C::Vector<S>,
    fresh1: C::Vector<S>,
    fresh2: C::Vector<S>,
    rate: C::Vector<S>,
    correction: C::Vector<S>,
    eps: C::Vector<S>,
    /// None for 1.
    divisor: Option<C::Vector<S>>,
}

impl<C: Real, S: Simd> Splats<C, S> {
    #[inline(always)]
    fn new(simd: S, factors: &Factors<C>) -> Splats<C, S> {
        Splats {
            decay: C::splat(simd, factors.decay),
            beta1: C::splat(simd, factors.beta1),
            beta2: C::splat(simd, factors.beta2),
            fresh1: C::splat(simd, factors.fresh1),
            fresh2: C::splat(simd, factors.fresh2),
            rate: C::splat(simd, factors.rate),
            correction: C::splat(simd, factors.correction),
            eps: C::splat(simd, factors.eps),
            divisor: if factors.divisor == C::ONE { None } else { Some(C::splat(simd, factors.divisor)) },
        }
    }
}

/// m := b1 m + (1 - b1) g, v := b2 v + (1 - b2) g^2
#[inline(always)]
fn moments<C: Real, S: Simd>(
    simd: S,
    factors: &Splats<C, S>,
    g: C::Vector<S>,
    m: C::Vector<S>,
    v: C::Vector<S>,
) -> (C::Vector<S>, C::Vector<S>) {
    let g = match factors.divisor {
        Some(divisor) => C::vdiv(simd, g, divisor),
        None => g,
    };
    let m = C::mul_add(simd, factors.beta1, m, C::vmul(simd, factors.fresh1, g));
    let v = C::mul_add(simd, factors.beta2, v, C::vmul(simd, C::vmul(simd, factors.fresh2, g), g));
    (m, v)
}

/// p (1 - lr wd) - rate m / (correction sqrt(v) + eps)
#[inline(always)]
fn moved<C: Real, S: Simd>(
    simd: S,
    factors: &Splats<C, S>,
    p: C::Vector<S>,
    m: C::Vector<S>,
    v: C::Vector<S>,
) -> C::Vector<S> {
    let denominator = C::mul_add(simd, C::vsqrt(simd, v), factors.correction, factors.eps);
    let step = C::vdiv(simd, C::vmul(simd, factors.rate, m), denominator);
    C::vsub(simd, C::vmul(simd, p, factors.decay), step)
}

#[cfg(test)]
#[path = "cpu_tests.rs"]
mod tests;
