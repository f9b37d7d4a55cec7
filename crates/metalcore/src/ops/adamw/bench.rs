//! Timed sizes of adamw: one large tensor, and many small ones.

use crate::{Bench, values};
use metalcore::device::Run;
use metalcore::ops::adamw::{AdamW, Args, Goal, Options, Slot};
use metalcore::{DType, Tensor};

/// Times them on one device.
pub fn bench<D: Run<AdamW>>(bench: &mut Bench, device: &D) {
    let options = Options { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, goal: Goal::Minimize };
    let problem = AdamW::new(options, DType::F32, DType::F32).expect("valid options");
    for (tensors, numel) in [(1, 1 << 20), (300, 1000)] {
        // p, g, m and v of every tensor; v may not be negative.
        let tensor = |positive: bool| {
            let values: Vec<f32> = values(numel);
            let values: Vec<f32> = values.into_iter().map(|v| if positive { v.abs() } else { v }).collect();
            Tensor::from_slice(device, &values, &[numel]).expect("the device has room")
        };
        let sets: Vec<[Tensor<D>; 4]> =
            (0..tensors).map(|_| [tensor(false), tensor(false), tensor(false), tensor(true)]).collect();
        let steps = Tensor::from_slice(device, &vec![0f32; tensors], &[tensors]).expect("the device has room");
        let slots: Vec<Slot<'_, D::Buffer>> = sets
            .iter()
            .map(|[param, grad, exp_avg, exp_avg_sq]| Slot {
                numel,
                param: param.buffer(),
                grad: grad.buffer(),
                exp_avg: exp_avg.buffer(),
                exp_avg_sq: exp_avg_sq.buffer(),
                max_exp_avg_sq: None,
            })
            .collect();
        let name = format!("adamw/{tensors}x{numel} float32");
        bench.time(device, &name, 28 * tensors * numel, || {
            let args = Args { slots: &slots, steps: steps.buffer(), lr: None, grad_scale: None, found_inf: None };
            device.run(&problem, args)
        });
    }
}
