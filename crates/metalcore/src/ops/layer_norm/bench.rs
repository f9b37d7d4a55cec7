//! Timed shapes of layer_norm, forward and backward.

use crate::{Bench, values};
use half::bf16;
use metalcore::device::Run;
use metalcore::ops::layer_norm::{Backward, Forward, layer_norm, layer_norm_backward};
use metalcore::{Element, Tensor};

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
        let (x, dy, w, b) = (tensor(&[rows, cols]), tensor(&[rows, cols]), tensor(&[cols]), tensor(&[cols]));
        let (w, b) = (Some(w.view()), Some(b.view()));
        let (_, mean, rstd) = layer_norm(x.view(), w, b, 1e-5).expect("a valid call");
        let bytes = rows * cols * T::DTYPE.size();
        let name = |pass| format!("layer_norm {pass}/{rows}x{cols} {}", T::DTYPE);
        bench.time(device, &name("forward"), 2 * bytes, || layer_norm(x.view(), w, b, 1e-5).map(drop));
        bench.time(device, &name("backward"), 3 * bytes, || {
            layer_norm_backward(dy.view(), x.view(), w, b, mean.view(), rstd.view()).map(drop)
        });
    }
}
