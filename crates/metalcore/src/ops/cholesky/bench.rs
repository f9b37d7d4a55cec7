//! Timed shapes of cholesky: batches of small matrices, and one larger.

use crate::{Bench, values};
use metalcore::Tensor;
use metalcore::device::Run;
use metalcore::ops::cholesky::{Cholesky, Triangle, cholesky};

/// Times them on one device.
pub fn bench<D: Run<Cholesky>>(bench: &mut Bench, device: &D) {
    for [batch, n] in [[500, 16], [100, 32], [200, 48], [100, 64], [1, 512]] {
        let numel = batch * n * n;
        let mut entries = values::<f32>(numel);
        // Diagonally dominant.
        entries
            .iter_mut()
            .enumerate()
            .filter(|(e, _)| e % (n * n) % (n + 1) == 0)
            .for_each(|(_, v)| *v = 4.0 * n as f32);
        let a = Tensor::from_slice(device, &entries, &[batch, n, n]).expect("the device has room");
        let name = format!("cholesky/{batch}x{n}x{n} float32");
        bench.time(device, &name, 8 * numel, || cholesky(a.view(), Triangle::Lower).map(drop));
    }
}
