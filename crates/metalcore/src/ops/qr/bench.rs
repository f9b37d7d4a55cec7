//! Timed shapes of qr: batches of small matrices, and one larger.

use crate::{Bench, values};
use metalcore::Tensor;
use metalcore::device::Run;
use metalcore::ops::qr::{Mode, Qr, qr};

/// Times them on one device.
pub fn bench<D: Run<Qr>>(bench: &mut Bench, device: &D) {
    for [batch, rows, cols] in [[500, 8, 8], [500, 16, 16], [100, 48, 48], [1, 256, 256]] {
        let numel = batch * rows * cols;
        let a = Tensor::from_slice(device, &values::<f32>(numel), &[batch, rows, cols]).expect("the device has room");
        let name = format!("qr/{batch}x{rows}x{cols} float32");
        bench.time(device, &name, 12 * numel, || qr(a.view(), Mode::Reduced).map(drop));
    }
}
