//! One body for every device. The bounds are those of CONTRACT 3.4.

use super::{Backward, BackwardArgs, EmbeddingBag, Forward, ForwardArgs, Mode, embedding_bag, reference};
use crate::device::{Device, Run, cpu::Cpu};
use crate::testing::{Random, bits, has_float64, wide};
use crate::{DType, Element, Error, Index, Tensor, each_device};
use half::{bf16, f16};

const PADDING: usize = 2;

fn upload<D: Device>(device: &D, values: &[i64], index: Index) -> D::Buffer {
    let bytes: Vec<u8> = match index {
        Index::I64 => values.iter().flat_map(|t| t.to_ne_bytes()).collect(),
        Index::I32 => values.iter().flat_map(|t| (*t as i32).to_ne_bytes()).collect(),
    };
    let buffer = device.alloc(bytes.len().max(1)).unwrap();
    device.write(&buffer, 0, &bytes).unwrap();
    buffer
}

fn within<T: Element>(what: &str, got: &[T], exact: &[f64], size: &[f64], terms: usize) {
    let dtype = T::DTYPE;
    let gamma = (8.0 + (terms.max(1) as f64).log2()) * dtype.compute().unit_roundoff();
    let rho = if dtype.size() == 2 { dtype.unit_roundoff() } else { 0.0 };
    let tiny = if dtype == DType::F16 { 2f64.powi(-25) } else { 2f64.powi(-126) };
    assert_eq!(got.len(), exact.len(), "{what}");
    for (i, (got, exact)) in got.iter().zip(exact).enumerate() {
        let error = (got.to_f64() - exact).abs();
        let allowed = rho * exact.abs() + gamma * size[i] * (1.0 + rho) + tiny;
        assert!(error <= allowed, "{what}: element {i}: got {got:?}, exact {exact}, allowed {allowed:e}");
    }
}

/// Entries, offsets (with the end) and what the oracle takes.
fn bags_of(random: &mut Random, sizes: &[usize], rows: usize, padding: Option<usize>) -> (Vec<i64>, Vec<i64>) {
    let mut offsets = vec![0];
    sizes.iter().for_each(|size| offsets.push(offsets[offsets.len() - 1] + *size as i64));
    let entries = *offsets.last().unwrap() as usize;
    let mut draw = || (random.uniform() * rows as f64) as i64;
    let indices =
        (0..entries).map(|i| padding.filter(|_| i % 5 == 3).map_or_else(&mut draw, |row| row as i64)).collect();
    (indices, offsets)
}

fn check<T: Element, C: Element, D: Run<Forward> + Run<Backward>>(
    device: &D,
    [rows, cols]: [usize; 2],
    sizes: &[usize],
    mode: Mode,
    weighted: bool,
) {
    let mut random = Random::new((rows * 31 + cols) as u64);
    let padding = (rows > PADDING && cols.is_multiple_of(2)).then_some(PADDING);
    let index = if cols.is_multiple_of(3) { Index::I32 } else { Index::I64 };
    let (indices, offsets) = bags_of(&mut random, sizes, rows, padding);
    let include_last = cols % 5 != 0;
    let given = if include_last { &offsets[..] } else { &offsets[..sizes.len()] };
    let values: Vec<T> = random.normals(rows * cols);
    let samples: Vec<T> = random.normals(indices.len());
    let dy: Vec<T> = random.normals(sizes.len() * cols);
    let problem = EmbeddingBag::new(
        (&[rows, cols], T::DTYPE),
        (&[indices.len()], index),
        &[given.len()],
        mode,
        include_last,
        padding.map_or(-1, |row| row as i64),
    )
    .unwrap();
    let what = format!("{rows}x{cols} {mode:?} {} bags {sizes:?}", T::DTYPE);

    let tensor = |values: &[T], shape: &[usize]| Tensor::from_slice(device, values, shape).unwrap();
    let weight = tensor(&values, &[rows, cols]);
    let (indices_device, offsets_device) = (upload(device, &indices, index), upload(device, given, index));
    let samples_device = weighted.then(|| tensor(&samples, &[indices.len()]));
    let y = Tensor::empty(device, &[sizes.len(), cols], T::DTYPE).unwrap();
    let scale = Tensor::empty(device, &[sizes.len()], C::DTYPE).unwrap();
    let places = device.alloc((sizes.len() * cols * 4).max(1)).unwrap();
    let largest = (mode == Mode::Max).then_some(&places);
    let samples_buffer = samples_device.as_ref().map(Tensor::buffer);
    let args = ForwardArgs {
        weight: weight.buffer(),
        indices: &indices_device,
        offsets: &offsets_device,
        samples: samples_buffer,
        y: y.buffer(),
        scale: scale.buffer(),
        largest,
    };
    device.run(&Forward(problem), args).unwrap();
    let factor = |entry: usize| if weighted { samples[entry].to_f64() } else { 1.0 };
    let kept: Vec<Vec<usize>> = offsets
        .windows(2)
        .map(|ends| (ends[0] as usize..ends[1] as usize).filter(|e| padding != Some(indices[*e] as usize)).collect())
        .collect();
    let bags: Vec<reference::Bag> =
        kept.iter().map(|bag| bag.iter().map(|e| (indices[*e] as usize, factor(*e))).collect()).collect();
    let (exact, size) = reference::forward(&wide(&values), cols, &bags, mode);
    let longest = sizes.iter().copied().max().unwrap_or(0);
    let got = y.to_vec::<T>().unwrap();
    if mode == Mode::Max {
        assert_eq!(wide(&got), exact, "y {what}");
    } else {
        within(&format!("y {what}"), &got, &exact, &size, longest);
    }

    let mut order: Vec<i64> = (0..indices.len() as i64).collect();
    order.sort_by_key(|entry| indices[*entry as usize]);
    let keys: Vec<i64> = order.iter().map(|entry| indices[*entry as usize]).collect();
    let dw = Tensor::empty(device, &[rows, cols], T::DTYPE).unwrap();
    let d_samples = Tensor::empty(device, &[indices.len()], T::DTYPE).unwrap();
    let dy_device = tensor(&dy, &[sizes.len(), cols]);
    let (keys_device, order_device) = (upload(device, &keys, index), upload(device, &order, Index::I64));
    let args = |sorted| BackwardArgs {
        dy: dy_device.buffer(),
        indices: &indices_device,
        offsets: &offsets_device,
        samples: samples_buffer,
        scale: scale.buffer(),
        largest,
        sorted,
        dw: Some(dw.buffer()),
        d_samples: weighted.then_some((weight.buffer(), d_samples.buffer())),
    };
    device.run(&Backward(problem), args(Some((&keys_device, &order_device)))).unwrap();
    let (exact, size, factors) = reference::backward(&wide(&values), cols, &bags, mode, &wide(&dy));
    let doubled: Vec<f64> = size.iter().map(|size| 2.0 * size).collect();
    within(&format!("dw {what}"), &dw.to_vec::<T>().unwrap(), &exact, &doubled, indices.len());
    if mode == Mode::Max && device.caps().kind != "cpu" {
        device.run(&Backward(problem), args(None)).unwrap();
        within(&format!("dw without sorting {what}"), &dw.to_vec::<T>().unwrap(), &exact, &doubled, indices.len());
    } else {
        let error = device.run(&Backward(problem), args(None)).err().map(|error| error.to_string());
        let needed = device.caps().kind == "cpu" || rows * cols != 0;
        assert_eq!(error.is_some_and(|text| text.contains("keys: got none")), needed);
    }
    if weighted {
        let got = d_samples.to_vec::<T>().unwrap();
        let mut exact = vec![0.0; indices.len()];
        kept.iter().flatten().zip(factors.iter().flatten()).for_each(|(entry, value)| exact[*entry] = *value);
        within(&format!("d samples {what}"), &got, &exact, &vec![8.0 * cols as f64; got.len()], cols);
    }
    assert_eq!(bits(&weight.to_vec::<T>().unwrap()), bits(&values), "the weight was changed");
}

fn every_width_type_and_mode<D: Run<Forward> + Run<Backward>>(device: &D) {
    let sizes = [3, 0, 1, 17, 300, 0];
    for (i, cols) in [1, 2, 3, 4, 8, 10, 33, 64, 123, 256, 260, 515, 1030].into_iter().enumerate() {
        for (mode, weighted) in [(Mode::Sum, false), (Mode::Sum, true), (Mode::Mean, false), (Mode::Max, false)] {
            let shape = [50, cols];
            match i % 3 {
                0 => check::<f32, f32, D>(device, shape, &sizes, mode, weighted),
                1 => check::<bf16, f32, D>(device, shape, &sizes, mode, weighted),
                _ => check::<f16, f32, D>(device, shape, &sizes, mode, weighted),
            }
            if has_float64(device) {
                check::<f64, f64, D>(device, shape, &sizes, mode, weighted);
            }
        }
    }
    check::<f32, f32, D>(device, [1, 4], &[2000], Mode::Sum, true);
    check::<f32, f32, D>(device, [700, 8], &[1; 300], Mode::Mean, false);
}

fn sizes_of_zero<D: Run<Forward> + Run<Backward>>(device: &D) {
    for mode in [Mode::Sum, Mode::Mean, Mode::Max] {
        check::<f32, f32, D>(device, [5, 7], &[], mode, false);
        check::<f32, f32, D>(device, [5, 7], &[0, 0], mode, false);
        check::<f32, f32, D>(device, [0, 7], &[0], mode, false);
        check::<f32, f32, D>(device, [5, 0], &[3, 2], mode, false);
    }
}

fn rows_that_are_not_a_number_stay_so_and_touch_no_other<D: Run<Forward>>(device: &D) {
    let cols = 6;
    let mut weight: Vec<f32> = Random::new(4).normals(5 * cols);
    weight[cols..2 * cols].fill(f32::NAN);
    weight[2 * cols..3 * cols].fill(f32::NEG_INFINITY);
    let weight = Tensor::from_slice(device, &weight, &[5, cols]).unwrap();
    let (indices, offsets) =
        (upload(device, &[0, 3, 4, 1, 0, 2, 2], Index::I64), upload(device, &[0, 2, 5, 7], Index::I64));
    for mode in [Mode::Sum, Mode::Mean, Mode::Max] {
        let y = embedding_bag(weight.view(), (&indices, 7), (&offsets, 3), Index::I64, mode).unwrap();
        let y = y.to_vec::<f32>().unwrap();
        assert!(y[..cols].iter().all(|v| v.is_finite()), "{mode:?}");
        assert!(y[cols..2 * cols].iter().all(|v| v.is_nan()), "{mode:?}");
        assert!(y[2 * cols..].iter().all(|v| *v == f32::NEG_INFINITY), "{mode:?}");
    }
}

fn an_index_outside_the_weight_is_an_error_on_the_host_and_nan_elsewhere<D: Run<Forward>>(device: &D) {
    let weight = Tensor::from_slice(device, &[1f32; 15], &[5, 3]).unwrap();
    let offsets = upload(device, &[0, 2, 4], Index::I32);
    for outside in [5, -1, i32::MIN as i64, i32::MAX as i64] {
        let indices = upload(device, &[0, outside, 3, 4], Index::I32);
        for mode in [Mode::Sum, Mode::Mean, Mode::Max] {
            let y = embedding_bag(weight.view(), (&indices, 4), (&offsets, 2), Index::I32, mode);
            if device.caps().kind == "cpu" {
                assert!(matches!(y.err().unwrap(), Error::Index { got, .. } if got == outside));
                continue;
            }
            let y = y.unwrap().to_vec::<f32>().unwrap();
            assert!(y[..3].iter().all(|v| v.is_nan()) && y[3..].iter().all(|v| *v >= 1.0), "{outside} {mode:?}: {y:?}");
        }
    }
}

each_device!(
    every_width_type_and_mode,
    sizes_of_zero,
    rows_that_are_not_a_number_stay_so_and_touch_no_other,
    an_index_outside_the_weight_is_an_error_on_the_host_and_nan_elsewhere,
);

#[test]
fn wrong_input_is_named() {
    let new = |weight: &[usize], indices: &[usize], offsets: &[usize], padding| {
        let (weight, indices) = ((weight, DType::F32), (indices, Index::I64));
        EmbeddingBag::new(weight, indices, offsets, Mode::Sum, true, padding).err().unwrap().to_string()
    };
    assert_eq!(new(&[3], &[2], &[2], -1), "embedding_bag: weight: got shape [3], expected (V, D)");
    assert_eq!(new(&[3, 4], &[2, 1], &[2], -1), "embedding_bag: indices: got shape [2, 1], expected (L,)");
    assert_eq!(new(&[3, 4], &[2], &[0], -1), "embedding_bag: offsets: got shape [0], expected B + 1 entries");
    assert_eq!(new(&[3, 4], &[2], &[2], 3), "embedding_bag: padding_idx: got 3, expected a row of 3");
    let cpu = Cpu::new();
    let weight = Tensor::from_slice(&cpu, &[1f32; 6], &[2, 3]).unwrap();
    let indices = upload(&cpu, &[0, 1, 1], Index::I64);
    for (offsets, text) in
        [([1, 3], "got 1, expected 0 at"), ([0, 4], "got 4, expected at most 3"), ([0, -2], "got -2")]
    {
        let offsets = upload(&cpu, &offsets, Index::I64);
        let error = embedding_bag(weight.view(), (&indices, 3), (&offsets, 1), Index::I64, Mode::Sum).err().unwrap();
        assert!(error.to_string().starts_with(&format!("embedding_bag: offsets: {text}")), "{error}");
    }
}
