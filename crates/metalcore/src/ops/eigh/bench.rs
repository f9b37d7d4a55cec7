//! Timed shapes of eigh: batches of small matrices, and one larger.

use crate::{Bench, values};
use metalcore::Tensor;
use metalcore::device::Run;
use metalcore::ops::eigh::{Eigh, Form, Strategy, Triangle, eigh};

/// Times them on one device.
pub fn bench<D: Run<Eigh>>(bench: &mut Bench, device: &D) {
    for [batch, n] in [[500, 16], [100, 32], [200, 64], [10, 128]] {
        let numel = batch * n * n;
        let a = Tensor::from_slice(device, &values::<f32>(numel), &[batch, n, n]).expect("the device has room");
        let name = format!("eigh/{batch}x{n}x{n} float32");
        let run = || eigh(a.view(), Triangle::Lower, Form::Vectors, Strategy::Auto).map(drop);
        bench.time(device, &name, 8 * numel, run);
    }
}
