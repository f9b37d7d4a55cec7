//! One body for every device. The bounds are those of CONTRACT 3.4.

use super::{Backward, Forward, layer_norm, layer_norm_backward, reference};
use crate::device::{Device, Run};
use crate::testing::{Random, bits, gamma, has_float64, wide, within};
use crate::{Element, Error, Tensor, each_device};
use half::{bf16, f16};

/// Around every threshold of the plans: rows per group, threads per row, vectors, streaming.
const COLS: [usize; 14] = [1, 2, 3, 5, 33, 64, 127, 512, 1000, 1023, 4096, 4097, 8200, 16400];
const EPS: f64 = 1e-5;

/// Which of weight and bias there are.
#[derive(Clone, Copy, Debug)]
struct Affine(bool, bool);

/// Forward and backward of one size against the oracle, around a mean of `offset`.
fn check<T: Element, W: Element, C: Element, D: Run<Forward> + Run<Backward>>(
    device: &D,
    rows: usize,
    cols: usize,
    affine: Affine,
    offset: f64,
) {
    let mut random = Random::new((rows * 31 + cols) as u64);
    let dy: Vec<T> = random.normals(rows * cols);
    let x: Vec<T> = random.normals::<f64>(rows * cols).iter().map(|x| T::from_f64(x + offset)).collect();
    let (w, b): (Vec<W>, Vec<W>) = (random.normals(cols), random.normals(cols));
    let tensor = |values: &[T]| Tensor::from_slice(device, values, &[rows, cols]).unwrap();
    let vector = |values: &[W], there: bool| there.then(|| Tensor::from_slice(device, values, &[cols]).unwrap());
    let (x_device, dy_device) = (tensor(&x), tensor(&dy));
    let (w_device, b_device) = (vector(&w, affine.0), vector(&b, affine.1));
    let (w_view, b_view) = (w_device.as_ref().map(Tensor::view), b_device.as_ref().map(Tensor::view));
    let what = format!("{rows}x{cols} {:?} {affine:?} of {:?}", T::DTYPE, W::DTYPE);

    let (y, mean, rstd) = layer_norm(x_device.view(), w_view, b_view, EPS).unwrap();
    let weight = if affine.0 { wide(&w) } else { vec![1.0; cols] };
    let bias = if affine.1 { wide(&b) } else { vec![0.0; cols] };
    let exact = reference::forward(&wide(&x), &weight, &bias, EPS);
    let g = gamma(cols, T::DTYPE);
    within(&format!("y {what}"), &y.to_vec::<T>().unwrap(), &exact.y, 0.0, |i| g * exact.scale[i]);

    // Mean and rstd as they were saved: what they are not exact by is in the forward bound.
    let (mean_saved, rstd_saved) = (wide(&mean.to_vec::<C>().unwrap()), wide(&rstd.to_vec::<C>().unwrap()));
    let found =
        layer_norm_backward(dy_device.view(), x_device.view(), w_view, b_view, mean.view(), rstd.view()).unwrap();
    let exact = reference::backward(&wide(&dy), &wide(&x), &weight, (&mean_saved, &rstd_saved));
    within(&format!("dx {what}"), &found.dx.to_vec::<T>().unwrap(), &exact.dx.0, 0.0, |i| 2.0 * g * exact.dx.1[i]);
    assert_eq!((found.dw.is_some(), found.db.is_some()), (affine.0, affine.1));
    let g = gamma(rows.max(cols), T::DTYPE);
    for (name, got, (exact, scale)) in [("dw", found.dw, &exact.dw), ("db", found.db, &exact.db)] {
        if let Some(got) = got {
            within(&format!("{name} {what}"), &got.to_vec::<W>().unwrap(), exact, 0.0, |i| 2.0 * g * scale[i]);
        }
    }
    assert_eq!(bits(&x_device.to_vec::<T>().unwrap()), bits(&x), "x was changed");
}

fn every_length_and_type<D: Run<Forward> + Run<Backward>>(device: &D) {
    let both = Affine(true, true);
    for cols in COLS {
        check::<f32, f32, f32, D>(device, 5, cols, both, 0.0);
        check::<bf16, bf16, f32, D>(device, 3, cols, both, 0.0);
        check::<f16, f32, f32, D>(device, 3, cols, both, 0.0);
        if has_float64(device) {
            check::<f64, f64, f64, D>(device, 3, cols, both, 0.0);
        }
    }
    check::<f32, f32, f32, D>(device, 700, 40, both, 0.0);
    for affine in [Affine(true, false), Affine(false, true), Affine(false, false)] {
        check::<bf16, f32, f32, D>(device, 9, 200, affine, 0.0);
        check::<f32, f32, f32, D>(device, 9, 201, affine, 0.0);
    }
}

fn a_large_mean_costs_no_digits<D: Run<Forward> + Run<Backward>>(device: &D) {
    for cols in [40, 1000, 17000] {
        check::<f32, f32, f32, D>(device, 3, cols, Affine(true, true), 1000.0);
    }
}

fn a_row_with_nan_stays_alone<D: Run<Forward> + Run<Backward>>(device: &D) {
    let (rows, cols) = (6, 300);
    let mut x: Vec<f32> = Random::new(8).normals(rows * cols);
    let run = |x: &[f32]| {
        let x = Tensor::from_slice(device, x, &[rows, cols]).unwrap();
        layer_norm(x.view(), None, None, EPS).unwrap().0.to_vec::<f32>().unwrap()
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
    let (w, (_, mean, rstd)) = (Some(w.view()), layer_norm(x.view(), Some(w.view()), None, EPS).unwrap());
    let found = layer_norm_backward(x.view(), x.view(), w, w, mean.view(), rstd.view()).unwrap();
    assert_eq!(found.dx.numel(), 0);
    for sum in [found.dw, found.db] {
        assert_eq!(sum.unwrap().to_vec::<f32>().unwrap(), [0f32; 40]);
    }
}

each_device!(every_length_and_type, a_large_mean_costs_no_digits, a_row_with_nan_stays_alone, no_rows_give_no_gradient);

#[test]
fn wrong_input_is_named() {
    let cpu = crate::device::cpu::Cpu::new();
    assert_eq!(cpu.caps().kind, "cpu");
    let x = Tensor::from_slice(&cpu, &[1f32; 6], &[2, 3]).unwrap();
    let w = Tensor::from_slice(&cpu, &[1f32; 2], &[2]).unwrap();
    let error = layer_norm(x.view(), None, Some(w.view()), EPS).err().unwrap();
    assert_eq!(error.to_string(), "layer_norm: bias: got shape [2], expected shape [3]");
    let wide = Tensor::from_slice(&cpu, &[1f64; 3], &[3]).unwrap();
    let error = layer_norm(x.view(), Some(wide.view()), None, EPS).err().unwrap();
    assert!(matches!(error, Error::DType { argument: "weight", .. }));
}
