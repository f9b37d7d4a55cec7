//! Timed shapes of trsm: batches of small systems, and one larger.

use crate::{Bench, values};
use metalcore::Tensor;
use metalcore::device::Run;
use metalcore::ops::trsm::{Diagonal, Form, Matrix, Triangle, Trsm, trsm};

/// Times them on one device.
pub fn bench<D: Run<Trsm>>(bench: &mut Bench, device: &D) {
    let form = Form { triangle: Triangle::Lower, matrix: Matrix::Plain, diagonal: Diagonal::Unit };
    for [batch, n, cols] in [[500, 16, 8], [100, 32, 8], [100, 64, 8], [1, 1024, 8]] {
        let small: Vec<f32> = values::<f32>(batch * n * n).into_iter().map(|v| v / n as f32).collect();
        let a = Tensor::from_slice(device, &small, &[batch, n, n]).expect("the device has room");
        let b = Tensor::from_slice(device, &values::<f32>(batch * n * cols), &[batch, n, cols]).expect("it has room");
        let name = format!("trsm/{batch}x{n}x{n} {cols} float32");
        bench.time(device, &name, 4 * batch * n * (n + 2 * cols), || trsm(a.view(), b.view(), form).map(drop));
    }
}
