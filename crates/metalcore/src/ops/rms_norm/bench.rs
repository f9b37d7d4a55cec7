//! Timed shapes of rms_norm, forward and backward.

use crate::{Bench, values};
use half::bf16;
use metalcore::device::Run;
use metalcore::ops::rms_norm::{Backward, Forward, rms_norm, rms_norm_backward};
use metalcore::{Element, Tensor};

const EPS: f64 = 1e-6;

/// Times them on one device.
pub fn bench<D: Run<Forward> + Run<Backward>>(bench: &mut Bench, device: &D) {
    shapes::<f32, D>(bench, device);
    shapes::<bf16, D>(bench, device);
}

fn shapes<T: Element, D: Run<Forward> + Run<Backward>>(bench: &mut Bench, device: &D) {
    let tensor = |shape: &[usize]| {
        Tensor::from_slice(device, &values::<T>(shape.iter().product()), shape).expect("the device has room")
    };
    for [rows, cols] in [[32, 4096], [1024, 4096]] {
        let (x, dy, weight) = (tensor(&[rows, cols]), tensor(&[rows, cols]), tensor(&[cols]));
        let (_, rstd) = rms_norm(x.view(), Some(weight.view()), EPS).expect("a valid call");
        let bytes = rows * cols * T::DTYPE.size();
        let name = |pass| format!("rms_norm {pass}/{rows}x{cols} {}", T::DTYPE);
        bench.time(device, &name("forward"), 2 * bytes, || rms_norm(x.view(), Some(weight.view()), EPS).map(drop));
        bench.time(device, &name("backward"), 3 * bytes, || {
            rms_norm_backward(dy.view(), x.view(), Some(weight.view()), rstd.view()).map(drop)
        });
    }
}
