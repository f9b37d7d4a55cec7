//! Timed shapes of svd: batches of small matrices, and one larger.

use crate::{Bench, values};
use metalcore::Tensor;
use metalcore::device::Run;
use metalcore::ops::qr::Qr;
use metalcore::ops::svd::{Svd, svd};

/// Times them on one device.
pub fn bench<D: Run<Svd> + Run<Qr>>(bench: &mut Bench, device: &D) {
    for [batch, rows, cols] in [[500, 16, 16], [100, 32, 32], [50, 64, 64], [1, 128, 128]] {
        let numel = batch * rows * cols;
        let a = Tensor::from_slice(device, &values::<f32>(numel), &[batch, rows, cols]).expect("the device has room");
        let name = format!("svd/{batch}x{rows}x{cols} float32");
        bench.time(device, &name, 12 * numel, || svd(a.view(), true).map(drop));
    }
}
