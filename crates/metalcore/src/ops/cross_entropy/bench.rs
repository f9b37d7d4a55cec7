//! Timed shapes of cross_entropy, forward.

use crate::{Bench, values};
use metalcore::device::Run;
use metalcore::ops::cross_entropy::{Forward, Reduction, cross_entropy};
use metalcore::{Index, Tensor};

/// Times them on one device.
pub fn bench<D: Run<Forward>>(bench: &mut Bench, device: &D) {
    for [rows, cols] in [[32, 32000], [256, 32000]] {
        let logits = Tensor::from_slice(device, &values::<f32>(rows * cols), &[rows, cols]).expect("there is room");
        let targets: Vec<u8> = (0..rows).flat_map(|row| (row as i64 * 7).to_ne_bytes()).collect();
        let buffer = device.alloc(targets.len()).expect("there is room");
        device.write(&buffer, 0, &targets).expect("the sizes fit");
        bench.time(device, &format!("cross_entropy/{rows}x{cols} f32"), rows * cols * 4, || {
            cross_entropy(logits.view(), (&buffer, Index::I64), -100, 0.0, Reduction::Mean).map(drop)
        });
    }
}
