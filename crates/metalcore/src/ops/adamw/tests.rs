//! One body for every device. The bounds are those of CONTRACT 3.4.

use super::{AdamW, Args, Goal, Options, Slot, reference};
use crate::device::Run;
use crate::testing::{Random, has_float64};
use crate::{DType, Element, Error, Tensor, each_device};
use half::{bf16, f16};

const OPTIONS: Options =
    Options { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 1e-2, goal: Goal::Minimize };

/// One tensor on the host, as the device is to have it.
struct Item<P, C> {
    param: Vec<P>,
    exp_avg: Vec<C>,
    exp_avg_sq: Vec<C>,
    largest: Vec<C>,
}

/// The scalars that may come as tensors: lr, grad_scale, found_inf.
type Scalars = [Option<f32>; 3];

struct Case {
    options: Options,
    sizes: Vec<usize>,
    amsgrad: bool,
    scalars: Scalars,
    steps_done: f32,
}

fn gradients<G: Element>(random: &mut Random, sizes: &[usize]) -> Vec<Vec<G>> {
    sizes.iter().map(|n| random.normals(*n)).collect()
}

/// One step on a device: new items, and the counts.
fn step<P: Element, G: Element, C: Element, D: Run<AdamW>>(
    device: &D,
    case: &Case,
    items: &[Item<P, C>],
    grads: &[Vec<G>],
) -> (Vec<Item<P, C>>, Vec<f32>) {
    fn put<T: Element, D: crate::device::Device>(device: &D, values: &[T]) -> Tensor<D> {
        Tensor::from_slice(device, values, &[values.len()]).unwrap()
    }
    let tensors: Vec<[Tensor<D>; 5]> = items
        .iter()
        .zip(grads)
        .map(|(item, grad)| {
            [
                put(device, &item.param),
                put(device, grad),
                put(device, &item.exp_avg),
                put(device, &item.exp_avg_sq),
                put(device, &item.largest),
            ]
        })
        .collect();
    let slots: Vec<_> = tensors
        .iter()
        .map(|[param, grad, m, v, largest]| Slot {
            numel: param.numel(),
            param: param.buffer(),
            grad: grad.buffer(),
            exp_avg: m.buffer(),
            exp_avg_sq: v.buffer(),
            max_exp_avg_sq: case.amsgrad.then(|| largest.buffer()),
        })
        .collect();
    let steps = put(device, &vec![case.steps_done; items.len()]);
    let scalars = case.scalars.map(|value| value.map(|value| put(device, &[value])));
    let [lr, grad_scale, found_inf] = scalars.each_ref().map(|t| t.as_ref().map(Tensor::buffer));
    let problem = AdamW::new(case.options, P::DTYPE, G::DTYPE).unwrap();
    device.run(&problem, Args { slots: &slots, steps: steps.buffer(), lr, grad_scale, found_inf }).unwrap();
    let read = |[param, _, m, v, largest]: &[Tensor<D>; 5]| Item {
        param: param.to_vec().unwrap(),
        exp_avg: m.to_vec().unwrap(),
        exp_avg_sq: v.to_vec().unwrap(),
        largest: largest.to_vec().unwrap(),
    };
    (tensors.iter().map(read).collect(), steps.to_vec().unwrap())
}

fn start<P: Element, C: Element>(random: &mut Random, sizes: &[usize]) -> Vec<Item<P, C>> {
    sizes
        .iter()
        .map(|n| Item {
            param: random.normals(*n),
            exp_avg: random.normals(*n),
            exp_avg_sq: (0..*n).map(|_| C::from_f64(random.uniform())).collect(),
            largest: (0..*n).map(|_| C::from_f64(random.uniform())).collect(),
        })
        .collect()
}

fn check<P: Element, G: Element, C: Element, D: Run<AdamW>>(device: &D, case: &Case, what: &str) {
    let mut random = Random::new(11);
    let items = start::<P, C>(&mut random, &case.sizes);
    let grads = gradients::<G>(&mut random, &case.sizes);
    let (after, steps) = step(device, case, &items, &grads);
    let t = case.steps_done + 1.0;
    assert!(steps.iter().all(|s| *s == t), "{what}: counts {steps:?}");
    let w = P::DTYPE.compute().unit_roundoff();
    let rho = if P::DTYPE.size() == 2 { P::DTYPE.unit_roundoff() } else { 0.0 };
    let tiny = if P::DTYPE == DType::F16 { 2f64.powi(-25) } else { 0.0 };
    let options = Options { lr: case.scalars[0].map_or(case.options.lr, f64::from), ..case.options };
    let scale = f64::from(case.scalars[1].unwrap_or(1.0));
    for ((before, after), grad) in items.iter().zip(&after).zip(&grads) {
        for i in 0..before.param.len() {
            let element = reference::Element {
                param: before.param[i].to_f64(),
                exp_avg: before.exp_avg[i].to_f64(),
                exp_avg_sq: before.exp_avg_sq[i].to_f64(),
                max_exp_avg_sq: case.amsgrad.then(|| before.largest[i].to_f64()),
            };
            let exact = reference::step(element, grad[i].to_f64(), &options, f64::from(t), scale);
            let near = |name: &str, got: f64, want: f64, bound: f64| {
                let error = (got - want).abs();
                assert!(error <= bound, "{what}: {name}[{i}]: got {got}, exact {want}, error {error:e} > {bound:e}");
            };
            let e = &exact.element;
            let p_bound = rho * e.param.abs() + 8.0 * w * exact.param_scale * (1.0 + rho) + tiny;
            near("p", after.param[i].to_f64(), e.param, p_bound);
            near("m", after.exp_avg[i].to_f64(), e.exp_avg, 4.0 * w * exact.exp_avg_scale);
            near("v", after.exp_avg_sq[i].to_f64(), e.exp_avg_sq, 4.0 * w * e.exp_avg_sq);
            let largest = e.max_exp_avg_sq.unwrap_or(before.largest[i].to_f64());
            near("largest v", after.largest[i].to_f64(), largest, 4.0 * w * largest);
        }
    }
}

fn plain(sizes: &[usize]) -> Case {
    Case { options: OPTIONS, sizes: sizes.to_vec(), amsgrad: false, scalars: [None; 3], steps_done: 0.0 }
}

fn every_type_and_size<D: Run<AdamW>>(device: &D) {
    // Around a chunk of 4096, around the five tensors that Metal binds, and more than one table.
    let sizes = [1, 3, 4, 5, 0, 4095, 4096, 4097, 9000, 17, 64];
    check::<f32, f32, f32, D>(device, &plain(&sizes), "f32");
    check::<bf16, bf16, f32, D>(device, &plain(&sizes), "bf16");
    check::<f16, f16, f32, D>(device, &plain(&sizes), "f16");
    check::<f32, bf16, f32, D>(device, &plain(&sizes), "f32 with bf16 gradients");
    check::<bf16, f32, f32, D>(device, &plain(&sizes), "bf16 with f32 gradients");
    check::<f32, f32, f32, D>(device, &plain(&[3; 600]), "600 tensors");
    if has_float64(device) {
        check::<f64, f64, f64, D>(device, &plain(&sizes), "f64");
    }
}

fn every_option<D: Run<AdamW>>(device: &D) {
    let sizes = [7, 5000];
    let with = |options| Case { options, ..plain(&sizes) };
    check::<f32, f32, f32, D>(device, &with(Options { goal: Goal::Maximize, ..OPTIONS }), "maximize");
    check::<f32, f32, f32, D>(device, &with(Options { weight_decay: 0.0, ..OPTIONS }), "no decay");
    check::<f32, f32, f32, D>(device, &with(Options { beta1: 0.0, beta2: 0.5, ..OPTIONS }), "short memory");
    for steps_done in [1.0, 9.0, 400.0, 100_000.0] {
        check::<f32, f32, f32, D>(device, &Case { steps_done, ..plain(&sizes) }, "later steps");
    }
    check::<f32, f32, f32, D>(device, &Case { amsgrad: true, ..plain(&[7, 5000, 1, 2, 3, 4]) }, "amsgrad");
    let scalars = [Some(0.02), Some(1024.0), Some(0.0)];
    check::<f32, f32, f32, D>(device, &Case { scalars, ..plain(&sizes) }, "scalars on the device");
}

fn an_overflow_changes_nothing<D: Run<AdamW>>(device: &D) {
    let case = Case { scalars: [None, Some(2.0), Some(1.0)], steps_done: 3.0, ..plain(&[5, 4100]) };
    let mut random = Random::new(12);
    let items = start::<f32, f32>(&mut random, &case.sizes);
    let mut grads = gradients::<f32>(&mut random, &case.sizes);
    grads[1][7] = f32::INFINITY;
    let (after, steps) = step(device, &case, &items, &grads);
    assert_eq!(steps, [3.0, 3.0]);
    for (before, after) in items.iter().zip(&after) {
        assert_eq!(before.param, after.param);
        assert_eq!(before.exp_avg, after.exp_avg);
        assert_eq!(before.exp_avg_sq, after.exp_avg_sq);
    }
}

each_device!(every_type_and_size, every_option, an_overflow_changes_nothing);

#[test]
fn hyperparameters_out_of_range_are_named() {
    for (options, text) in [
        (Options { lr: -1.0, ..OPTIONS }, "adamw: lr: got -1, expected a number >= 0"),
        (Options { beta1: 1.0, ..OPTIONS }, "adamw: beta1: got 1, expected a number in [0, 1)"),
        (Options { eps: f64::NAN, ..OPTIONS }, "adamw: eps: got NaN, expected a number >= 0"),
    ] {
        let error = AdamW::new(options, DType::F32, DType::F32).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        assert_eq!(error.to_string(), text);
    }
}
