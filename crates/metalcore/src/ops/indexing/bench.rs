//! Timed shapes of gather and scatter_add.

use crate::{Bench, values};
use half::bf16;
use metalcore::device::Run;
use metalcore::ops::indexing::{Gather, ScatterAdd, gather, scatter_add};
use metalcore::{Element, Index, Tensor};

/// Times them on one device.
pub fn bench<D: Run<Gather> + Run<ScatterAdd>>(bench: &mut Bench, device: &D) {
    shapes::<f32, D>(bench, device);
    shapes::<bf16, D>(bench, device);
}

fn shapes<T: Element, D: Run<Gather> + Run<ScatterAdd>>(bench: &mut Bench, device: &D) {
    for [rows, count] in [[10_000, 1_000], [1_000_000, 100_000]] {
        let src = Tensor::from_slice(device, &values::<T>(rows), &[rows]).expect("the device has room");
        let terms = Tensor::from_slice(device, &values::<T>(count), &[count]).expect("the device has room");
        let bytes: Vec<u8> = (0..count).flat_map(|i| ((i * 7919 % rows) as i64).to_ne_bytes()).collect();
        let index = device.alloc(bytes.len()).expect("the device has room");
        device.write(&index, 0, &bytes).expect("the sizes fit");
        let size = T::DTYPE.size();
        let name = |op| format!("{op}/{count} of {rows} {}", T::DTYPE);
        bench.time(device, &name("gather"), count * (8 + 2 * size), || {
            gather(src.view(), 0, (&index, &[count]), Index::I64).map(drop)
        });
        bench.time(device, &name("scatter_add"), count * (8 + 3 * size) + 2 * rows * size, || {
            scatter_add(src.view(), 0, &index, Index::I64, terms.view()).map(drop)
        });
    }
}
