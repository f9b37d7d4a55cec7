//! One body for every device.

use super::{Backward, BackwardArgs, CrossEntropy, Forward, Reduction, cross_entropy, reference};
use crate::device::{Device, Run, cpu::Cpu};
use crate::testing::{Random, bits, has_float64, wide};
use crate::{DType, Element, Error, Index, Tensor, each_device};
use half::{bf16, f16};

/// Around every threshold of the plans: rows per group, threads per row, tiles, vectors.
const COLS: [usize; 12] = [1, 2, 3, 31, 64, 500, 512, 1023, 1025, 4096, 8200, 20001];
const IGNORE: i64 = -100;

fn upload<D: Device>(device: &D, targets: &[i64], index: Index) -> D::Buffer {
    let bytes: Vec<u8> = match index {
        Index::I64 => targets.iter().flat_map(|t| t.to_ne_bytes()).collect(),
        Index::I32 => targets.iter().flat_map(|t| (*t as i32).to_ne_bytes()).collect(),
    };
    let buffer = device.alloc(bytes.len().max(1)).unwrap();
    device.write(&buffer, 0, &bytes).unwrap();
    buffer
}

fn check<T: Element, C: Element, D: Run<Forward> + Run<Backward>>(device: &D, rows: usize, cols: usize, eps: f64) {
    let mut random = Random::new((rows * 31 + cols) as u64);
    let values: Vec<T> = (0..rows * cols).map(|_| T::from_f64(4.0 * random.normal())).collect();
    let targets: Vec<i64> =
        (0..rows).map(|row| if row % 3 == 1 { IGNORE } else { (row * 7919 % cols) as i64 }).collect();
    let index = if cols.is_multiple_of(2) { Index::I32 } else { Index::I64 };
    let logits = Tensor::from_slice(device, &values, &[rows, cols]).unwrap();
    let buffer = upload(device, &targets, index);
    let found = cross_entropy(logits.view(), (&buffer, index), IGNORE, eps, Reduction::None).unwrap();
    let exact = reference::forward(&wide(&values), &targets, cols, IGNORE, eps);
    let w = T::DTYPE.compute().unit_roundoff();
    let gamma = (8.0 + (cols as f64).log2()) * w;
    let what = format!("{rows}x{cols} {} eps {eps}", T::DTYPE);
    for (row, (got, exact)) in found.loss.to_vec::<C>().unwrap().iter().zip(&exact).enumerate() {
        match exact {
            Some((loss, _, size)) => {
                let error = (got.to_f64() - loss).abs();
                assert!(error <= gamma * size, "{what}: row {row}: got {got:?}, exact {loss}");
            }
            None => assert_eq!(got.to_f64(), 0.0),
        }
    }
    let mean = cross_entropy(logits.view(), (&buffer, index), IGNORE, eps, Reduction::Mean).unwrap();
    let counted = exact.iter().flatten().count() as f64;
    let (sum, size) = exact.iter().flatten().fold((0.0, 0.0), |(sum, size), row| (sum + row.0, size + row.2));
    let got = mean.loss.to_vec::<C>().unwrap()[0].to_f64();
    assert!((got - sum / counted).abs() <= 2.0 * gamma * size / counted, "{what}: mean {got}, exact {}", sum / counted);
    assert_eq!(mean.count.as_ref().unwrap().to_vec::<C>().unwrap()[0].to_f64(), counted);

    let grads: Vec<C> = random.normals(rows);
    let grad = Tensor::from_slice(device, &grads, &[rows]).unwrap();
    let dx = Tensor::empty(device, &[rows, cols], T::DTYPE).unwrap();
    let copy = Tensor::from_slice(device, &values, &[rows, cols]).unwrap();
    let reduction = Reduction::None;
    let problem = CrossEntropy { rows, cols, dtype: T::DTYPE, index, ignore: IGNORE, smoothing: eps, reduction };
    for (logits, dx) in [(Some(logits.buffer()), dx.buffer()), (None, copy.buffer())] {
        let (grad, lse, targets) = (grad.buffer(), found.lse.buffer(), &buffer);
        device.run(&Backward(problem), BackwardArgs { grad, logits, targets, lse, count: None, dx }).unwrap();
    }
    let got = dx.to_vec::<T>().unwrap();
    assert_eq!(bits(&got), bits(&copy.to_vec::<T>().unwrap()), "{what}: in place");
    let want = reference::backward(&wide(&values), &targets, cols, IGNORE, eps, &wide(&grads));
    let rho = if T::DTYPE.size() == 2 { T::DTYPE.unit_roundoff() } else { 0.0 };
    let tiny = if T::DTYPE == DType::F16 { 2f64.powi(-25) } else { 1e-37 };
    for (at, (got, want)) in got.iter().zip(&want).enumerate() {
        let (row, col) = (at / cols, at % cols);
        let Some((_, lse, size)) = exact[row] else {
            assert_eq!(got.to_f64(), 0.0);
            continue;
        };
        // p has the error of lse, and of a rounded exponent; the rest are roundings of the sum and the product.
        let x = values[at].to_f64();
        let p = (x - lse).exp();
        let terms =
            p * (1.0 + size + (x - lse).abs()) + eps / cols as f64 + f64::from(u8::from(targets[row] == col as i64));
        let bound = rho * want.abs() + gamma * terms * grads[row].to_f64().abs() + tiny;
        assert!((got.to_f64() - want).abs() <= bound, "{what}: d[{row}, {col}]: got {got:?}, exact {want:e}");
    }
    assert_eq!(bits(&logits.to_vec::<T>().unwrap()), bits(&values), "the logits were changed");
}

fn every_length_and_type<D: Run<Forward> + Run<Backward>>(device: &D) {
    for cols in COLS {
        check::<f32, f32, D>(device, 3, cols, 0.0);
        check::<bf16, f32, D>(device, 3, cols, 0.1);
        check::<f16, f32, D>(device, 4, cols, 0.0);
        if has_float64(device) {
            check::<f64, f64, D>(device, 2, cols, 0.1);
        }
    }
    check::<f32, f32, D>(device, 1100, 5, 0.0);
}

fn infinite_and_missing_values<D: Run<Forward>>(device: &D) {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let rows = [[1.0, -inf, 2.0], [-inf, -inf, -inf], [inf, 0.0, 0.0], [0.0, nan, 0.0], [1.0, -inf, 2.0]];
    let logits = Tensor::from_slice(device, &rows.concat(), &[5, 3]).unwrap();
    let targets = upload(device, &[0, 0, 0, 0, 1], Index::I64);
    let loss = cross_entropy(logits.view(), (&targets, Index::I64), IGNORE, 0.0, Reduction::None).unwrap().loss;
    let loss = loss.to_vec::<f32>().unwrap();
    assert!((f64::from(loss[0]) - (1.0 + 1f64.exp()).ln()).abs() < 1e-6);
    assert!(loss[1].is_nan() && loss[2].is_nan() && loss[3].is_nan());
    assert_eq!(loss[4], inf);
}

fn no_row_that_counts_has_the_mean_nan_and_the_sum_zero<D: Run<Forward>>(device: &D) {
    for rows in [0, 3] {
        let logits = Tensor::from_slice(device, &vec![1f32; rows * 4], &[rows, 4]).unwrap();
        let targets = upload(device, &vec![IGNORE; rows], Index::I64);
        let run = |reduction| {
            let loss = cross_entropy(logits.view(), (&targets, Index::I64), IGNORE, 0.0, reduction).unwrap().loss;
            loss.to_vec::<f32>().unwrap()
        };
        assert!(run(Reduction::Mean)[0].is_nan());
        assert_eq!(run(Reduction::Sum), [0.0]);
        assert_eq!(run(Reduction::None), vec![0.0; rows]);
    }
}

fn the_bits_of_a_loss_do_not_depend_on_the_place_of_its_row<D: Run<Forward>>(device: &D) {
    let (rows, cols) = (5, 1031);
    let row: Vec<bf16> = Random::new(3).normals(cols);
    let logits = Tensor::from_slice(device, &row.repeat(rows), &[rows, cols]).unwrap();
    let targets = upload(device, &[17; 5], Index::I64);
    let loss = cross_entropy(logits.view(), (&targets, Index::I64), IGNORE, 0.0, Reduction::None).unwrap().loss;
    let loss = loss.to_vec::<f32>().unwrap();
    assert!(loss.iter().all(|value| value.to_bits() == loss[0].to_bits()));
}

each_device!(
    every_length_and_type,
    infinite_and_missing_values,
    no_row_that_counts_has_the_mean_nan_and_the_sum_zero,
    the_bits_of_a_loss_do_not_depend_on_the_place_of_its_row,
);

#[test]
fn a_target_outside_the_row_is_an_error_on_the_host() {
    let cpu = Cpu::new();
    let logits = Tensor::from_slice(&cpu, &[0f32; 6], &[2, 3]).unwrap();
    for target in [3, -1, i64::MIN] {
        let targets = upload(&cpu, &[0, target], Index::I64);
        let error = cross_entropy(logits.view(), (&targets, Index::I64), IGNORE, 0.0, Reduction::Mean).err().unwrap();
        assert!(matches!(error, Error::Index { got, .. } if got == target));
    }
}

#[test]
fn wrong_input_is_named() {
    let new = |logits: &[usize], targets: &[usize], eps| {
        CrossEntropy::new("cross_entropy", (logits, DType::F32), (targets, Index::I64), -100, eps, Reduction::Mean)
            .err()
            .unwrap()
            .to_string()
    };
    assert_eq!(new(&[], &[], 0.0), "cross_entropy: logits: got shape [], expected at least 1 dimension");
    assert_eq!(new(&[2, 3], &[3], 0.0), "cross_entropy: targets: got shape [3], expected shape [2]");
    assert_eq!(new(&[2, 3], &[2], 2.0), "cross_entropy: label_smoothing: got 2, expected a number from 0 to 1");
}
