//! Timed shapes of softmax, forward and backward.

use crate::{Bench, values};
use half::bf16;
use metalcore::device::Run;
use metalcore::ops::softmax::{Backward, Forward, softmax, softmax_backward};
use metalcore::{Element, Tensor};

/// Times them on one device.
pub fn bench<D: Run<Forward> + Run<Backward>>(bench: &mut Bench, device: &D) {
    shapes::<f32, D>(bench, device);
    shapes::<bf16, D>(bench, device);
}

fn shapes<T: Element, D: Run<Forward> + Run<Backward>>(bench: &mut Bench, device: &D) {
    for [rows, cols] in [[64, 4096], [1024, 4096], [32, 32000]] {
        let tensor =
            || Tensor::from_slice(device, &values::<T>(rows * cols), &[rows, cols]).expect("the device has room");
        let (x, dy) = (tensor(), tensor());
        let y = softmax(x.view()).expect("a valid call");
        let bytes = rows * cols * T::DTYPE.size();
        let name = |pass| format!("softmax {pass}/{rows}x{cols} {}", T::DTYPE);
        bench.time(device, &name("forward"), 2 * bytes, || softmax(x.view()).map(drop));
        bench.time(device, &name("backward"), 3 * bytes, || softmax_backward(y.view(), dy.view()).map(drop));
    }
}
