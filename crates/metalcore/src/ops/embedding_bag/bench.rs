//! Timed shapes of embedding_bag, forward.

use crate::{Bench, values};
use metalcore::device::Run;
use metalcore::ops::embedding_bag::{Forward, Mode, embedding_bag};
use metalcore::{Index, Tensor};

/// Times them on one device.
pub fn bench<D: Run<Forward>>(bench: &mut Bench, device: &D) {
    let (bags, size) = (64, 128);
    for [rows, cols] in [[10000, 64], [32000, 1024]] {
        let weight = Tensor::from_slice(device, &values::<f32>(rows * cols), &[rows, cols]).expect("there is room");
        let upload = |values: Vec<i64>| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
            let buffer = device.alloc(bytes.len()).expect("there is room");
            device.write(&buffer, 0, &bytes).expect("the sizes fit");
            buffer
        };
        let indices = upload((0..bags * size).map(|i| (i * 7919 % rows) as i64).collect());
        let offsets = upload((0..=bags).map(|b| (b * size) as i64).collect());
        for (name, mode) in [("sum", Mode::Sum), ("max", Mode::Max)] {
            let name = format!("embedding_bag {name}/{bags}x{size} of {rows}x{cols} f32");
            bench.time(device, &name, (bags * size + bags) * cols * 4, || {
                let (indices, offsets) = ((&indices, bags * size), (&offsets, bags));
                embedding_bag(weight.view(), indices, offsets, Index::I64, mode).map(drop)
            });
        }
    }
}
