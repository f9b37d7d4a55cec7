//! One body for every device. The bounds are those of CONTRACT 3.4.

use super::{Backward, BackwardArgs, Forward, ForwardArgs, Norm, reference, rms_norm, rms_norm_backward};
use crate::device::{Device, Run};
use crate::testing::{Random, bits, gamma, has_float64, wide, within};
use crate::{DType, Element, Error, Tensor, each_device};
use half::{bf16, f16};

/// Around every threshold of the plans: rows per group, threads per row, vectors, streaming.
const COLS: [usize; 15] = [1, 2, 3, 5, 33, 64, 127, 512, 1000, 1023, 1024, 4096, 4097, 8200, 16400];
const EPS: f64 = 1e-5;

fn norm<T: Element, W: Element>(rows: usize, cols: usize, weight: bool) -> Norm {
    Norm { rows, cols, eps: EPS, dtype: T::DTYPE, weight: weight.then_some(W::DTYPE) }
}

/// Forward and backward of one size against the oracle.
fn check<T: Element, W: Element, C: Element, D: Run<Forward> + Run<Backward>>(
    device: &D,
    rows: usize,
    cols: usize,
    weighted: bool,
) {
    let mut random = Random::new((rows * 31 + cols) as u64);
    let (x, dy): (Vec<T>, Vec<T>) = (random.normals(rows * cols), random.normals(rows * cols));
    let w: Vec<W> = random.normals(cols);
    let tensor = |values: &[T]| Tensor::from_slice(device, values, &[rows, cols]).unwrap();
    let (x_device, dy_device) = (tensor(&x), tensor(&dy));
    let w_device = weighted.then(|| Tensor::from_slice(device, &w, &[cols]).unwrap());
    let what = format!("{rows}x{cols} {:?} weight {:?}", T::DTYPE, weighted.then_some(W::DTYPE));

    let weight_view = w_device.as_ref().map(Tensor::view);
    let (y, rstd) = rms_norm(x_device.view(), weight_view, EPS).unwrap();
    let weight = weighted.then(|| wide(&w));
    let (y_exact, rstd_exact) = reference::forward(&wide(&x), weight.as_deref(), cols, EPS);
    let g = gamma(cols, T::DTYPE);
    within(&format!("y {what}"), &y.to_vec::<T>().unwrap(), &y_exact, 0.0, |i| g * y_exact[i].abs());
    within(&format!("rstd {what}"), &rstd.to_vec::<C>().unwrap(), &rstd_exact, 0.0, |i| g * rstd_exact[i]);

    let (dx, dw) = rms_norm_backward(dy_device.view(), x_device.view(), weight_view, rstd.view()).unwrap();
    let exact = reference::backward(&wide(&dy), &wide(&x), weight.as_deref(), &rstd_exact, cols);
    within(&format!("dx {what}"), &dx.to_vec::<T>().unwrap(), &exact.dx, 0.0, |i| 2.0 * g * exact.dx_scale[i]);
    if let Some(dw) = dw {
        let g = gamma(rows.max(cols), T::DTYPE);
        within(&format!("dw {what}"), &dw.to_vec::<W>().unwrap(), &exact.dw, 0.0, |i| 2.0 * g * exact.dw_scale[i]);
    }
    assert_eq!(bits(&x_device.to_vec::<T>().unwrap()), bits(&x), "x was changed");
}

fn every_length_and_type<D: Run<Forward> + Run<Backward>>(device: &D) {
    for cols in COLS {
        check::<f32, f32, f32, D>(device, 5, cols, true);
        check::<bf16, bf16, f32, D>(device, 3, cols, true);
        check::<f16, f32, f32, D>(device, 3, cols, true);
        if has_float64(device) {
            check::<f64, f64, f64, D>(device, 3, cols, true);
        }
    }
    check::<f32, f32, f32, D>(device, 700, 40, true);
    check::<bf16, f32, f32, D>(device, 9, 200, false);
    check::<f32, f32, f32, D>(device, 9, 200, false);
}

fn the_residual_form_is_the_norm_of_the_rounded_sum<D: Run<Forward> + Run<Backward>>(device: &D) {
    let mut random = Random::new(7);
    for (rows, cols) in [(3, 7), (4, 512), (2, 9000)] {
        let a: Vec<bf16> = random.normals(rows * cols);
        let b: Vec<bf16> = random.normals(rows * cols);
        let dy: Vec<bf16> = random.normals(rows * cols);
        let w: Vec<bf16> = random.normals(cols);
        let tensor = |v: &[bf16], shape: &[usize]| Tensor::from_slice(device, v, shape).unwrap();
        let shape = [rows, cols];
        let (a_device, b_device, w_device) = (tensor(&a, &shape), tensor(&b, &shape), tensor(&w, &[cols]));
        let empty = |dtype| Tensor::empty(device, &shape, dtype).unwrap();
        let (y, sum) = (empty(DType::BF16), empty(DType::BF16));
        let rstd = Tensor::empty(device, &[rows], DType::F32).unwrap();
        let problem = norm::<bf16, bf16>(rows, cols, true);
        let args = ForwardArgs {
            x: a_device.buffer(),
            residual: Some((b_device.buffer(), sum.buffer())),
            weight: Some(w_device.buffer()),
            y: y.buffer(),
            rstd: rstd.buffer(),
        };
        device.run(&Forward(problem), args).unwrap();
        let rounded: Vec<bf16> = a.iter().zip(&b).map(|(a, b)| bf16::from_f32(a.to_f32() + b.to_f32())).collect();
        assert_eq!(sum.to_vec::<bf16>().unwrap(), rounded);
        let (alone, _) = rms_norm(sum.view(), Some(w_device.view()), EPS).unwrap();
        assert_eq!(y.to_vec::<bf16>().unwrap(), alone.to_vec::<bf16>().unwrap());

        let (dy_device, dx) = (tensor(&dy, &shape), empty(DType::BF16));
        let dw = Tensor::empty(device, &[cols], DType::BF16).unwrap();
        let args = BackwardArgs {
            dy: dy_device.buffer(),
            h: sum.buffer(),
            weight: Some(w_device.buffer()),
            rstd: rstd.buffer(),
            d_sum: Some(a_device.buffer()),
            dx: dx.buffer(),
            dw: Some(dw.buffer()),
        };
        device.run(&Backward(problem), args).unwrap();
        let (_, rstd_exact) = reference::forward(&wide(&rounded), Some(&wide(&w)), cols, EPS);
        let exact = reference::backward(&wide(&dy), &wide(&rounded), Some(&wide(&w)), &rstd_exact, cols);
        let total: Vec<f64> = exact.dx.iter().zip(&a).map(|(dx, d)| dx + d.to_f64()).collect();
        let g = gamma(cols, DType::BF16);
        within("dx with d_sum", &dx.to_vec::<bf16>().unwrap(), &total, 0.0, |i| {
            2.0 * g * (exact.dx_scale[i] + a[i].to_f64().abs())
        });
    }
}

fn a_row_with_nan_stays_alone<D: Run<Forward> + Run<Backward>>(device: &D) {
    let (rows, cols) = (6, 300);
    let mut x: Vec<f32> = Random::new(8).normals(rows * cols);
    let run = |x: &[f32]| {
        let x = Tensor::from_slice(device, x, &[rows, cols]).unwrap();
        rms_norm(x.view(), None, EPS).unwrap().0.to_vec::<f32>().unwrap()
    };
    let clean = run(&x);
    x[2 * cols + 5] = f32::NAN;
    let y = run(&x);
    for row in 0..rows {
        let part = |v: &[f32]| v[row * cols..][..cols].to_vec();
        match row {
            2 => assert!(part(&y).iter().all(|v| v.is_nan())),
            _ => assert_eq!(part(&y), part(&clean)),
        }
    }
}

fn no_rows_give_no_gradient<D: Run<Forward> + Run<Backward>>(device: &D) {
    let x = Tensor::from_slice::<f32>(device, &[], &[0, 40]).unwrap();
    let w = Tensor::from_slice(device, &[1f32; 40], &[40]).unwrap();
    let (y, rstd) = rms_norm(x.view(), Some(w.view()), EPS).unwrap();
    assert_eq!((y.numel(), rstd.numel()), (0, 0));
    let (dx, dw) = rms_norm_backward(x.view(), x.view(), Some(w.view()), rstd.view()).unwrap();
    assert_eq!(dx.numel(), 0);
    assert_eq!(dw.unwrap().to_vec::<f32>().unwrap(), [0f32; 40]);
}

fn the_same_input_gives_the_same_bits<D: Run<Forward> + Run<Backward>>(device: &D) {
    let mut random = Random::new(9);
    let (x, dy): (Vec<f32>, Vec<f32>) = (random.normals(900 * 96), random.normals(900 * 96));
    let w: Vec<f32> = random.normals(96);
    let run = || {
        let [x, dy] = [&x, &dy].map(|v| Tensor::from_slice(device, v, &[900, 96]).unwrap());
        let w = Tensor::from_slice(device, &w, &[96]).unwrap();
        let (_, rstd) = rms_norm(x.view(), Some(w.view()), EPS).unwrap();
        let (dx, dw) = rms_norm_backward(dy.view(), x.view(), Some(w.view()), rstd.view()).unwrap();
        (dx.to_vec::<f32>().unwrap(), dw.unwrap().to_vec::<f32>().unwrap())
    };
    assert_eq!(run(), run());
}

each_device!(
    every_length_and_type,
    the_residual_form_is_the_norm_of_the_rounded_sum,
    a_row_with_nan_stays_alone,
    no_rows_give_no_gradient,
    the_same_input_gives_the_same_bits,
);

#[test]
fn wrong_input_is_named() {
    let cpu = crate::device::cpu::Cpu::new();
    assert_eq!(cpu.caps().kind, "cpu");
    let x = Tensor::from_slice(&cpu, &[1f32; 6], &[2, 3]).unwrap();
    let w = Tensor::from_slice(&cpu, &[1f32; 2], &[2]).unwrap();
    let error = rms_norm(x.view(), Some(w.view()), EPS).err().unwrap();
    assert_eq!(error.to_string(), "rms_norm: weight: got shape [2], expected shape [3]");
    let wide = Tensor::from_slice(&cpu, &[1f64; 3], &[3]).unwrap();
    assert!(matches!(rms_norm(x.view(), Some(wide.view()), EPS), Err(Error::DType { argument: "weight", .. })));
    let (_, rstd) = rms_norm(x.view(), None, EPS).unwrap();
    let error = rms_norm_backward(w.view(), x.view(), None, rstd.view()).err().unwrap();
    assert_eq!(error.to_string(), "rms_norm: dy: got shape [2], expected shape [2, 3]");
}
