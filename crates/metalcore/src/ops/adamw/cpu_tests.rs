//! What only the host's form has: pieces, threads, registers with a rest.

use super::*;
use crate::device::cpu::simd::narrow::for_each_width;
use crate::testing::{Random, bits};
use half::{bf16, f16};

/// Parameter, gradient, m, v and largest v of some tensors.
struct Tensors<P: Storage, G> {
    param: Vec<Vec<P>>,
    grad: Vec<Vec<G>>,
    state: [Vec<Vec<P::Compute>>; 3],
}

impl<P: Storage, G: Storage> Tensors<P, G> {
    fn new(lengths: &[usize]) -> Tensors<P, G> {
        let mut random = Random::new(5);
        let param = lengths.iter().map(|length| random.normals(*length)).collect();
        let grad = lengths.iter().map(|length| random.normals(*length)).collect();
        let state = [0, 1, 1].map(|_| {
            let positive = |value: P::Compute| value.abs();
            lengths.iter().map(|length| random.normals(*length).into_iter().map(positive).collect()).collect()
        });
        Tensors { param, grad, state }
    }

    fn step(mut self, threads: usize, options: &Options, grad_scale: Option<f32>) -> Vec<u64> {
        let [m, v, largest] = &mut self.state;
        let state = m.iter_mut().zip(v).zip(largest);
        let slots = self.param.iter_mut().zip(&self.grad).zip(state).enumerate();
        let slots = slots.map(|(index, ((param, grad), ((exp_avg, exp_avg_sq), largest)))| Slot {
            param,
            grad,
            exp_avg,
            exp_avg_sq,
            max_exp_avg_sq: (index % 2 == 0).then_some(largest),
            step: 1.0 + index as f64,
        });
        step(&Threads::new(threads), slots.collect(), options, grad_scale);
        let state = self.state.iter().flatten().flat_map(|values| bits(values));
        self.param.iter().flat_map(|values| bits(values)).chain(state).collect()
    }
}

const OPTIONS: Options =
    Options { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2, goal: Goal::Maximize };

#[test]
fn bits_depend_neither_on_threads_nor_on_how_tensors_are_cut() {
    fn check<P: Storage, G: Storage>() {
        let lengths: Vec<usize> =
            [0, 1, 7, 15, 16, 17, 33, 16383, 16384, 16385, 3 * 16384 + 5].into_iter().chain(100..160).collect();
        let one = Tensors::<P, G>::new(&lengths).step(1, &OPTIONS, Some(3.0));
        for threads in [2, 5] {
            assert!(one == Tensors::<P, G>::new(&lengths).step(threads, &OPTIONS, Some(3.0)), "{threads} threads");
        }
        // The rest of a register does as a whole one: the first elements of a longer tensor are the same.
        let (short, long) = (Tensors::<P, G>::new(&[77]), Tensors::<P, G>::new(&[77]));
        let lengthen = |mut tensors: Tensors<P, G>| {
            tensors.param[0].extend_from_within(..51);
            tensors.grad[0].extend_from_within(..51);
            tensors.state.iter_mut().for_each(|state| state[0].extend_from_within(..51));
            tensors
        };
        let short = short.step(1, &OPTIONS, None);
        let long = lengthen(long).step(1, &OPTIONS, None);
        for part in 0..4 {
            assert_eq!(short[part * 77..(part + 1) * 77], long[part * 128..part * 128 + 77]);
        }
    }
    check::<f32, f32>();
    check::<f64, f64>();
    check::<bf16, bf16>();
    check::<f16, f32>();
    check::<f32, bf16>();
}

#[test]
fn lesser_processors_compute_the_same() {
    fn check<P: Storage, G: Storage>() {
        let run = || Tensors::<P, G>::new(&[1, 9, 40]).step(1, &OPTIONS, None);
        let widest = run();
        for_each_width(|| {
            for (narrow, wide) in run().into_iter().zip(&widest) {
                let (narrow, wide) = (f64::from_bits(narrow), f64::from_bits(*wide));
                // Products and sums are fused on some and not on others.
                assert!((narrow - wide).abs() <= 8.0 * P::DTYPE.unit_roundoff() * (wide.abs() + 1.0));
            }
        });
    }
    check::<f32, f32>();
    check::<f64, f64>();
    check::<bf16, f16>();
    check::<f16, f32>();
}
