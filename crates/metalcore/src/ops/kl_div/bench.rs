//! Timed shapes of kl_div, forward and backward.

use crate::{Bench, values};
use half::bf16;
use metalcore::device::Run;
use metalcore::ops::kl_div::{Backward, Forward, kl_div, kl_div_backward};
use metalcore::{Element, Tensor};

/// Times them on one device.
pub fn bench<D: Run<Forward> + Run<Backward>>(bench: &mut Bench, device: &D) {
    shapes::<f32, D>(bench, device);
    shapes::<bf16, D>(bench, device);
}

fn shapes<T: Element, D: Run<Forward> + Run<Backward>>(bench: &mut Bench, device: &D) {
    for [rows, cols] in [[64, 4096], [256, 32000]] {
        let tensor =
            || Tensor::from_slice(device, &values::<T>(rows * cols), &[rows, cols]).expect("the device has room");
        let (log_p, log_q) = (tensor(), tensor());
        let grad = kl_div(log_p.view(), log_q.view()).expect("a valid call");
        let bytes = rows * cols * T::DTYPE.size();
        let name = |pass| format!("kl_div {pass}/{rows}x{cols} {}", T::DTYPE);
        bench.time(device, &name("forward"), 2 * bytes, || kl_div(log_p.view(), log_q.view()).map(drop));
        bench.time(device, &name("backward"), 3 * bytes, || {
            kl_div_backward(grad.view(), log_p.view(), log_q.view(), (false, true)).map(drop)
        });
    }
}
