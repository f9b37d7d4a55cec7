//! Timed sizes of op_name.

use crate::{Bench, values};
use metalcore::Tensor;
use metalcore::device::Run;
use metalcore::ops::op_name::{OpName, op_name};

/// Times them on one device.
pub fn bench<D: Run<OpName>>(bench: &mut Bench, device: &D) {
    for numel in [1 << 12, 1 << 20] {
        let x = Tensor::from_slice(device, &values::<f32>(numel), &[numel]).expect("the device has room");
        bench.time(device, &format!("op_name/{numel} float32"), 8 * numel, || op_name(x.view()).map(drop));
    }
}
