//! One body for every device. The bounds are those of CONTRACT 3.4.

use super::{Backward, Forward, reference, softmax, softmax_backward};
use crate::device::{Device, Run};
use crate::testing::{Random, bits, gamma, has_float64, wide, within};
use crate::{Element, Error, Tensor, each_device};
use half::{bf16, f16};

/// Some GPUs have no subnormal numbers.
const SUBNORMAL: f64 = f32::MIN_POSITIVE as f64;
/// Around every threshold of the plans: threads per row, rows per group, vectors, rows read twice.
const COLS: [usize; 17] = [1, 2, 3, 5, 8, 16, 33, 64, 127, 512, 1000, 1023, 1024, 4096, 4097, 16400, 33000];

/// Forward and backward of one size against the oracle.
fn check<T: Element, D: Run<Forward> + Run<Backward>>(device: &D, rows: usize, cols: usize, scale: f64) {
    let mut random = Random::new((rows * 31 + cols) as u64);
    let scaled: Vec<f64> = random.normals::<f64>(rows * cols).iter().map(|x| x * scale).collect();
    let x: Vec<T> = scaled.iter().map(|x| T::from_f64(*x)).collect();
    let dy: Vec<T> = random.normals(rows * cols);
    let tensor = |values: &[T]| Tensor::from_slice(device, values, &[rows, cols]).unwrap();
    let (x_device, dy_device) = (tensor(&x), tensor(&dy));
    let what = format!("{rows}x{cols} {:?}", T::DTYPE);

    let y = softmax(x_device.view()).unwrap();
    let x_wide = wide(&x);
    let exact = reference::forward(&x_wide, cols);
    let largest: Vec<f64> = x_wide.chunks(cols).map(|row| row.iter().copied().fold(f64::MIN, f64::max)).collect();
    let (g, w) = (gamma(cols, T::DTYPE), T::DTYPE.compute().unit_roundoff());
    let got = y.to_vec::<T>().unwrap();
    within(&format!("y {what}"), &got, &exact, SUBNORMAL, |i| (g + w * (largest[i / cols] - x_wide[i])) * exact[i]);

    let dx = softmax_backward(y.view(), dy_device.view()).unwrap();
    let (exact, scale) = reference::backward(&wide(&got), &wide(&dy), cols);
    within(&format!("dx {what}"), &dx.to_vec::<T>().unwrap(), &exact, SUBNORMAL, |i| 2.0 * g * scale[i]);
    assert_eq!(bits(&x_device.to_vec::<T>().unwrap()), bits(&x), "x was changed");
}

fn every_length_and_type<D: Run<Forward> + Run<Backward>>(device: &D) {
    for cols in COLS {
        check::<f32, D>(device, 5, cols, 3.0);
        check::<bf16, D>(device, 3, cols, 3.0);
        check::<f16, D>(device, 3, cols, 3.0);
        if has_float64(device) {
            check::<f64, D>(device, 3, cols, 3.0);
        }
    }
    check::<f32, D>(device, 700, 12, 1.0);
    check::<bf16, D>(device, 130, 1, 1.0);
    check::<f32, D>(device, 9, 200, 60.0);
}

fn rows_that_are_not_finite_are_as_torchs<D: Run<Forward> + Run<Backward>>(device: &D) {
    let low = f32::NEG_INFINITY;
    for cols in [4, 300, 17000] {
        let mut x: Vec<f32> = Random::new(8).normals(7 * cols);
        let run = |x: &[f32]| {
            softmax(Tensor::from_slice(device, x, &[7, cols]).unwrap().view()).unwrap().to_vec::<f32>().unwrap()
        };
        let clean = run(&x);
        x[cols + 1] = f32::NAN;
        x[2 * cols..3 * cols].fill(low);
        x[3 * cols + 3] = f32::INFINITY;
        // Masked but for the last element.
        x[4 * cols..5 * cols - 1].fill(low);
        x[5 * cols..6 * cols].fill(f32::NAN);
        let y = run(&x);
        for row in 0..7 {
            let part = |v: &[f32]| v[row * cols..][..cols].to_vec();
            match row {
                1 | 2 | 3 | 5 => assert!(part(&y).iter().all(|v| v.is_nan()), "row {row} of {cols}"),
                4 => assert!(part(&y)[..cols - 1].iter().all(|v| *v == 0.0) && part(&y)[cols - 1] == 1.0),
                _ => assert_eq!(part(&y), part(&clean)),
            }
        }
    }
}

fn nothing_gives_nothing<D: Run<Forward> + Run<Backward>>(device: &D) {
    for shape in [[0, 40], [40, 0]] {
        let x = Tensor::from_slice::<f32>(device, &[], &shape).unwrap();
        let y = softmax(x.view()).unwrap();
        assert_eq!(softmax_backward(y.view(), x.view()).unwrap().shape(), shape);
    }
}

fn the_same_input_gives_the_same_bits<D: Run<Forward> + Run<Backward>>(device: &D) {
    let x: Vec<f32> = Random::new(9).normals(40 * 960);
    let run = || softmax(Tensor::from_slice(device, &x, &[40, 960]).unwrap().view()).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(run(), run());
}

each_device!(
    every_length_and_type,
    rows_that_are_not_finite_are_as_torchs,
    nothing_gives_nothing,
    the_same_input_gives_the_same_bits,
);

#[test]
fn wrong_input_is_named() {
    let cpu = crate::device::cpu::Cpu::new();
    assert_eq!(cpu.caps().kind, "cpu");
    let x = Tensor::from_slice(&cpu, &[1f32; 6], &[2, 3]).unwrap();
    let other = Tensor::from_slice(&cpu, &[1f32; 2], &[2]).unwrap();
    let error = softmax_backward(x.view(), other.view()).err().unwrap();
    assert_eq!(error.to_string(), "softmax: dy: got shape [2], expected shape [2, 3]");
    let wide = Tensor::from_slice(&cpu, &[1f64; 6], &[2, 3]).unwrap();
    assert!(matches!(softmax_backward(x.view(), wide.view()), Err(Error::DType { argument: "dy", .. })));
    let single = Tensor::from_slice(&cpu, &[1f32], &[]).unwrap();
    let error = softmax(single.view()).err().unwrap();
    assert_eq!(error.to_string(), "softmax: x: got shape [], expected at least 1 dimension");
}
