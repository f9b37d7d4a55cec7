//! Timed shapes of the activations, forward and backward.

use crate::{Bench, values};
use half::bf16;
use metalcore::device::Run;
use metalcore::ops::activations::{
    Activation, Backward, Forward, Function, activation, activation_backward, gated_activation,
};
use metalcore::{Element, Tensor};

/// Times them on one device.
pub fn bench<D: Run<Forward> + Run<Backward>>(bench: &mut Bench, device: &D) {
    shapes::<f32, D>(bench, device);
    shapes::<bf16, D>(bench, device);
}

fn shapes<T: Element, D: Run<Forward> + Run<Backward>>(bench: &mut Bench, device: &D) {
    let shape = [1024, 4096];
    let tensor =
        || Tensor::from_slice(device, &values::<T>(shape.iter().product()), &shape).expect("the device has room");
    let (x, up, dy) = (tensor(), tensor(), tensor());
    let bytes = shape.iter().product::<usize>() * T::DTYPE.size();
    for function in Function::ALL {
        let name = |form| format!("activations {function:?} {form}/1024x4096 {}", T::DTYPE);
        bench.time(device, &name("forward"), 2 * bytes, || activation(function, x.view()).map(drop));
        bench.time(device, &name("gated"), 3 * bytes, || gated_activation(function, x.view(), up.view()).map(drop));
        let plain = Activation::plain(function, &shape, T::DTYPE);
        bench.time(device, &name("backward"), 3 * bytes, || {
            activation_backward(plain, dy.view(), x.view(), None).map(drop)
        });
    }
}
