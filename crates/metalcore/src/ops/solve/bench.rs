//! Timed shapes of solve: batches of small systems with 8 right sides, and one larger.

use crate::{Bench, values};
use metalcore::Tensor;
use metalcore::device::Run;
use metalcore::ops::solve::{Solve, solve};

/// Times them on one device.
pub fn bench<D: Run<Solve>>(bench: &mut Bench, device: &D) {
    for [batch, n] in [[500, 16], [100, 32], [200, 48], [100, 64], [1, 256]] {
        let a = values::<f32>(batch * n * n);
        let a = Tensor::from_slice(device, &a, &[batch, n, n]).expect("the device has room");
        let b = Tensor::from_slice(device, &values::<f32>(batch * n * 8), &[batch, n, 8]).expect("the device has room");
        let name = format!("solve/{batch}x{n}x{n} float32");
        bench.time(device, &name, 4 * batch * n * (n + 16), || solve(a.view(), Some(b.view())).map(drop));
    }
}
