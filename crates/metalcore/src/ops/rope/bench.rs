//! Timed shapes of rope: q and k in one call.

use crate::{Bench, values};
use half::bf16;
use metalcore::device::Run;
use metalcore::ops::rope::{Direction, Layout, Rope, rope};
use metalcore::{Element, Tensor};

/// Times them on one device.
pub fn bench<D: Run<Rope>>(bench: &mut Bench, device: &D) {
    shapes::<f32, D>(bench, device);
    shapes::<bf16, D>(bench, device);
}

fn shapes<T: Element, D: Run<Rope>>(bench: &mut Bench, device: &D) {
    let (batch, q_heads, k_heads, seq, width) = (1, 32, 8, 512, 128);
    let tensor = |shape: &[usize]| {
        Tensor::from_slice(device, &values::<T>(shape.iter().product()), shape).expect("the device has room")
    };
    let (q, k) = (tensor(&[batch, q_heads, seq, width]), tensor(&[batch, k_heads, seq, width]));
    let (cos, sin) = (tensor(&[seq, width / 2]), tensor(&[seq, width / 2]));
    let bytes = 2 * (q.numel() + k.numel()) * T::DTYPE.size();
    let name = format!("rope/{batch}x{q_heads}x{seq}x{width}, {k_heads} heads of k {}", T::DTYPE);
    bench.time(device, &name, bytes, || {
        let (layout, direction) = (Layout::HeadsFirst, Direction::Forward);
        rope(q.view(), Some(k.view()), cos.view(), sin.view(), layout, direction).map(drop)
    });
}
