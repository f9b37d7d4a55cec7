//! One body for every device.

use super::{
    Activation, Backward, Forward, Function, activation, activation_backward, bias_activation, gated_activation,
    reference,
};
use crate::device::Run;
use crate::device::cpu::Cpu;
use crate::testing::{Random, bits, has_float64, rho, wide};
use crate::{DType, Element, Tensor, each_device};
use half::{bf16, f16};

/// On both sides of a chunk of a thread, of a group, and of a chunk of the host.
const SIZES: [usize; 7] = [0, 1, 7, 8, 2049, 4099, 16_500];
/// (rows, cols): columns that vectors take and those they do not.
const SHAPES: [[usize; 2]; 6] = [[0, 3], [5, 0], [70, 1], [9, 24], [40, 123], [3, 1040]];

fn w(dtype: DType) -> f64 {
    dtype.compute().unit_roundoff()
}

/// |got - want| <= rho |want| + 8 w scale in every element, with room for subnormal results.
fn within<T: Element>(what: &str, got: &[T], want: &[f64], scale: impl Fn(usize) -> f64) {
    let tiny = match T::DTYPE {
        DType::F16 => 2f64.powi(-25),
        DType::F64 => f64::MIN_POSITIVE,
        _ => f64::from(f32::MIN_POSITIVE),
    };
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let (error, bound) = ((got.to_f64() - want).abs(), rho(T::DTYPE) * want.abs() + 8.0 * w(T::DTYPE) * scale(i));
        assert!(error <= bound + tiny, "{what} {i}: got {got:?}, expected {want:e}, bound {bound:e}");
    }
}

/// Normal values, larger ones, and points of both tails.
fn points<T: Element>(random: &mut Random, count: usize) -> Vec<T> {
    (0..count).map(|i| T::from_f64(random.normal() * [0.01, 1.0, 4.0, 30.0][i % 4])).collect()
}

fn check<T: Element, D: Run<Forward> + Run<Backward>>(device: &D) {
    let mut random = Random::new(1);
    for (size, function) in SIZES.into_iter().flat_map(|size| Function::ALL.map(|function| (size, function))) {
        let what = format!("{function:?} of {size} {}", T::DTYPE);
        let [x, up, dy] = [0; 3].map(|_| points::<T>(&mut random, size));
        let [x_device, up_device, dy_device] = [&x, &up, &dy].map(|v| Tensor::from_slice(device, v, &[size]).unwrap());
        let [x, up, dy] = [&x, &up, &dy].map(|v| wide(v));
        let (f, slope): (Vec<f64>, Vec<f64>) = x.iter().map(|x| reference::curve(function, *x)).unzip();
        let y = activation(function, x_device.view()).unwrap().to_vec::<T>().unwrap();
        within(&what, &y, &f, |i| x[i].abs());
        let plain = Activation::plain(function, &[size], T::DTYPE);
        let (dx, none) = activation_backward(plain, dy_device.view(), x_device.view(), None).unwrap();
        assert!(none.is_none());
        let want: Vec<f64> = (0..size).map(|i| dy[i] * slope[i]).collect();
        within(&format!("d {what}"), &dx.to_vec::<T>().unwrap(), &want, |i| dy[i].abs() * (1.0 + x[i].abs()));

        let y = gated_activation(function, x_device.view(), up_device.view()).unwrap().to_vec::<T>().unwrap();
        let want: Vec<f64> = (0..size).map(|i| f[i] * up[i]).collect();
        within(&format!("gated {what}"), &y, &want, |i| (x[i] * up[i]).abs());
        let like = (&[size][..], T::DTYPE);
        let gated = Activation::gated("swiglu", function, like, like).unwrap();
        let (d_gate, d_up) =
            activation_backward(gated, dy_device.view(), x_device.view(), Some(up_device.view())).unwrap();
        let want: Vec<f64> = (0..size).map(|i| dy[i] * up[i] * slope[i]).collect();
        let scale = |i: usize| (dy[i] * up[i]).abs() * (1.0 + x[i].abs());
        within(&format!("d_gate {what}"), &d_gate.to_vec::<T>().unwrap(), &want, scale);
        let want: Vec<f64> = (0..size).map(|i| dy[i] * f[i]).collect();
        within(&format!("d_up {what}"), &d_up.unwrap().to_vec::<T>().unwrap(), &want, |i| (dy[i] * x[i]).abs());
    }
}

fn every_element_is_within_its_bound<D: Run<Forward> + Run<Backward>>(device: &D) {
    check::<f32, D>(device);
    check::<f16, D>(device);
    check::<bf16, D>(device);
    if has_float64(device) {
        check::<f64, D>(device);
    }
}

fn check_bias<T: Element, B: Element, D: Run<Forward> + Run<Backward>>(device: &D) {
    let mut random = Random::new(2);
    for ([rows, cols], function) in SHAPES.into_iter().flat_map(|shape| Function::ALL.map(|f| (shape, f))) {
        let what = format!("{function:?} with a bias of {rows}x{cols} {}", T::DTYPE);
        let size = rows * cols;
        let [x, dy] = [0; 2].map(|_| random.normals::<T>(size));
        let bias: Vec<B> = random.normals(cols);
        let [x_device, dy_device] = [&x, &dy].map(|v| Tensor::from_slice(device, v, &[rows, cols]).unwrap());
        let bias_device = Tensor::from_slice(device, &bias, &[cols]).unwrap();
        let (x, dy, bias) = (wide(&x), wide(&dy), wide(&bias));
        let scale = |i: usize| x[i].abs() + bias[i % cols].abs();
        let at = |i: usize| reference::curve(function, x[i] + bias[i % cols]);
        let y = bias_activation(function, x_device.view(), bias_device.view()).unwrap().to_vec::<T>().unwrap();
        within(&what, &y, &(0..size).map(|i| at(i).0).collect::<Vec<_>>(), scale);
        let problem = Activation::bias("bias_gelu", function, (&[rows, cols], T::DTYPE), (&[cols], B::DTYPE)).unwrap();
        let (dx, db) =
            activation_backward(problem, dy_device.view(), x_device.view(), Some(bias_device.view())).unwrap();
        let want: Vec<f64> = (0..size).map(|i| dy[i] * at(i).1).collect();
        let bound = |i: usize| dy[i].abs() * (1.0 + scale(i));
        within(&format!("d {what}"), &dx.to_vec::<T>().unwrap(), &want, bound);
        let db = db.unwrap().to_vec::<B>().unwrap();
        for (col, got) in db.iter().enumerate() {
            let column = || (0..rows).map(|row| row * cols + col);
            let exact: f64 = column().map(|i| want[i]).sum();
            let size: f64 = column().map(bound).sum();
            let bound =
                B::DTYPE.unit_roundoff() * exact.abs() + (16.0 + (rows.max(1) as f64).log2()) * w(T::DTYPE) * size;
            assert!((got.to_f64() - exact).abs() <= bound, "db {what} {col}: got {got:?}, expected {exact:e}");
        }
    }
}

fn the_bias_is_added_and_has_its_gradient<D: Run<Forward> + Run<Backward>>(device: &D) {
    check_bias::<f32, f32, D>(device);
    check_bias::<f16, f16, D>(device);
    check_bias::<bf16, f32, D>(device);
    if has_float64(device) {
        check_bias::<f64, f64, D>(device);
    }
}

fn no_rows_give_no_bias_gradient<D: Run<Forward> + Run<Backward>>(device: &D) {
    let x = Tensor::from_slice::<f32>(device, &[], &[0, 40]).unwrap();
    let bias = Tensor::from_slice(device, &[1f32; 40], &[40]).unwrap();
    let problem = Activation::bias("bias_silu", Function::Silu, (&[0, 40], DType::F32), (&[40], DType::F32)).unwrap();
    let (dx, db) = activation_backward(problem, x.view(), x.view(), Some(bias.view())).unwrap();
    assert_eq!(dx.numel(), 0);
    assert_eq!(db.unwrap().to_vec::<f32>().unwrap(), [0f32; 40]);
}

/// The relative error grows with the rounding of exp's argument alone, down to where results are subnormal.
fn digits_are_kept_far_below_zero<D: Run<Forward> + Run<Backward>>(device: &D) {
    for (function, last) in [(Function::Silu, 80.0), (Function::Gelu, 12.5), (Function::GeluTanh, 9.5)] {
        let x: Vec<f32> = (1..=400).map(|i| -last * i as f32 / 400.0).collect();
        let x_device = Tensor::from_slice(device, &x, &[400]).unwrap();
        let y = activation(function, x_device.view()).unwrap().to_vec::<f32>().unwrap();
        for (x, y) in x.iter().zip(y) {
            let want = reference::curve(function, f64::from(*x)).0;
            let depth = (want / f64::from(*x)).abs().ln().abs();
            let error = (f64::from(y) / want - 1.0).abs() * 2f64.powi(24);
            assert!(error <= 8.0 + 2.0 * depth, "{function:?}({x}) is {y:e}, not {want:e}: {error} w");
        }
    }
}

fn infinities_give_limits_and_nan_gives_nan<D: Run<Forward> + Run<Backward>>(device: &D) {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let x = Tensor::from_slice(device, &[inf, -inf, nan, f32::MAX, f32::MIN, 0.0, 1e-40, -1e-40], &[8]).unwrap();
    let ones = Tensor::from_slice(device, &[1f32; 8], &[8]).unwrap();
    for function in Function::ALL {
        let y = activation(function, x.view()).unwrap().to_vec::<f32>().unwrap();
        assert!(y[2].is_nan() && [y[0], y[1], y[3], y[4], y[5]] == [inf, 0.0, f32::MAX, 0.0, 0.0], "{y:?}");
        // Metal has no subnormal numbers.
        assert!([y[6], -y[7]].iter().all(|y| *y == 0.0 || (y - 0.5e-40).abs() < 1e-43), "{y:?}");
        let plain = Activation::plain(function, &[8], DType::F32);
        let (dx, _) = activation_backward(plain, ones.view(), x.view(), None).unwrap();
        let dx = dx.to_vec::<f32>().unwrap();
        assert!(dx[2].is_nan() && [dx[0], dx[1], dx[3], dx[4]] == [1.0, 0.0, 1.0, 0.0], "{dx:?}");
    }
}

fn the_same_value_gives_the_same_bits_everywhere<D: Run<Forward> + Run<Backward>>(device: &D) {
    let mut random = Random::new(3);
    let x: Vec<f32> = random.normals(2053);
    for function in Function::ALL {
        let run = |x: &[f32]| {
            let x = Tensor::from_slice(device, x, &[x.len()]).unwrap();
            let plain = Activation::plain(function, x.shape(), DType::F32);
            let (dx, _) = activation_backward(plain, x.view(), x.view(), None).unwrap();
            let y = activation(function, x.view()).unwrap().to_vec::<f32>().unwrap();
            (bits(&y), bits(&dx.to_vec::<f32>().unwrap()))
        };
        let (whole, later) = (run(&x), run(&x[5..]));
        assert!(whole.0[5..] == later.0 && whole.1[5..] == later.1, "{function:?}");
    }
}

each_device!(
    every_element_is_within_its_bound,
    the_bias_is_added_and_has_its_gradient,
    no_rows_give_no_bias_gradient,
    digits_are_kept_far_below_zero,
    infinities_give_limits_and_nan_gives_nan,
    the_same_value_gives_the_same_bits_everywhere,
);

#[test]
fn narrower_vectors_are_as_exact() {
    crate::device::cpu::simd::narrow::for_each_width(|| {
        let cpu = Cpu::with_threads(1);
        check::<f32, Cpu>(&cpu);
        check::<f64, Cpu>(&cpu);
        check_bias::<f32, f32, Cpu>(&cpu);
    });
}

#[test]
fn wrong_input_is_named() {
    let cpu = Cpu::new();
    let x = Tensor::from_slice(&cpu, &[1f32; 6], &[2, 3]).unwrap();
    let short = Tensor::from_slice(&cpu, &[1f32; 2], &[2]).unwrap();
    let error = bias_activation(Function::Silu, x.view(), short.view()).err().unwrap();
    assert_eq!(error.to_string(), "bias_activation: bias: got shape [2], expected shape [3]");
    let error = gated_activation(Function::Silu, x.view(), short.view()).err().unwrap();
    assert_eq!(error.to_string(), "gated_activation: up: got shape [2], expected shape [2, 3]");
    let half = Tensor::from_slice(&cpu, &[f16::ONE; 6], &[2, 3]).unwrap();
    let error = gated_activation(Function::Silu, x.view(), half.view()).err().unwrap();
    assert_eq!(error.to_string(), "gated_activation: up: got dtype float16, expected float32");
}
