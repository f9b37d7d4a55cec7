//! One body for every device. The bars are those of CONTRACT 3.2.

use super::reference::ratios;
use super::{NOT_FINITE, svd};
use crate::device::Run;
use crate::ops::qr::Qr;
use crate::testing::{Random, bits, families, has_float64};
use crate::{Element, Error, Tensor, each_device};

/// Sizes around every threshold of the plans.
const SIZES: [(usize, usize); 17] = [
    (1, 1),
    (2, 2),
    (1, 7),
    (7, 1),
    (5, 3),
    (8, 8),
    (9, 8),
    (15, 16),
    (16, 16),
    (17, 17),
    (31, 32),
    (33, 20),
    (20, 33),
    (64, 50),
    (65, 65),
    (66, 20),
    (20, 129),
];

fn check<T: Element, D: Run<super::Svd> + Run<Qr>>(device: &D, values: &[T], rows: usize, cols: usize, what: &[&str]) {
    let k = rows.min(cols);
    let a = Tensor::from_slice(device, values, &[what.len(), rows, cols]).expect("sizes fit");
    let found = svd(a.view(), true).expect("a valid call");
    let [u, s, v]: [Vec<T>; 3] = [&found.u, &found.s, &found.v].map(|tensor| tensor.to_vec().unwrap());
    assert_eq!(a.to_vec::<T>().unwrap(), values, "A was changed");
    assert!(found.info.iter().all(|zeros| *zeros >= 0), "{rows}x{cols}: {:?}", found.info);
    let (reconstruction, orthogonality) = match k {
        0..16 => (15.0, 15.0),
        16..64 => (5.0, 7.0),
        _ => (2.5, 3.0),
    };
    for (item, what) in what.iter().enumerate() {
        let part = |x: &'_ [T], size: usize| x[item * size..][..size].to_vec();
        let got =
            ratios(&part(values, rows * cols), &part(&u, rows * k), &part(&s, k), &part(&v, cols * k), rows, cols);
        assert!(got.reconstruction <= reconstruction, "{what} {rows}x{cols} {:?}: {got:?}", T::DTYPE);
        assert!(got.orthogonality <= orthogonality, "{what} {rows}x{cols} {:?}: {got:?}", T::DTYPE);
    }
    if rows.max(cols) > 64 {
        return;
    }
    // Without vectors: the same values to the bar.
    let alone = svd(a.view(), false).unwrap().s.to_vec::<T>().unwrap();
    for (item, (got, expected)) in alone.chunks(k).zip(s.chunks(k)).enumerate() {
        let unit = rows.max(cols) as f64 * expected[0].to_f64() * T::DTYPE.unit_roundoff();
        for (got, expected) in got.iter().zip(expected) {
            assert!((got.to_f64() - expected.to_f64()).abs() <= 2.0 * unit, "{}: values alone", what[item]);
        }
    }
}

fn each_size<T: Element, D: Run<super::Svd> + Run<Qr>>(device: &D) {
    let mut random = Random::new(1);
    for (rows, cols) in SIZES {
        // Larger ones take the emulator long.
        let few = if rows.max(cols) > 64 { 3 } else { 1 };
        let (names, items): (Vec<_>, Vec<_>) = families(rows, cols, &mut random).into_iter().step_by(few).unzip();
        let values: Vec<T> = items.concat().into_iter().map(T::from_f64).collect();
        check(device, &values, rows, cols, &names);
    }
}

fn decomposes_every_family_at_every_size<D: Run<super::Svd> + Run<Qr>>(device: &D) {
    each_size::<f32, D>(device);
    if has_float64(device) {
        each_size::<f64, D>(device);
    }
}

/// Batches that fill all lanes and more.
fn larger_batches<D: Run<super::Svd> + Run<Qr>>(device: &D) {
    let mut random = Random::new(5);
    for (batch, rows, cols) in [(37, 3, 3), (19, 8, 5), (5, 16, 16), (3, 40, 33)] {
        check(device, &random.normals::<f32>(batch * rows * cols), rows, cols, &vec!["batch"; batch]);
    }
}

fn empty_sizes<D: Run<super::Svd> + Run<Qr>>(device: &D) {
    for shape in [[0, 3, 3], [2, 0, 3], [2, 3, 0], [2, 0, 0]] {
        let a = Tensor::from_slice::<f32>(device, &[], &shape).unwrap();
        let found = svd(a.view(), true).unwrap();
        let k = shape[1].min(shape[2]);
        assert_eq!(found.u.shape(), [shape[0], shape[1], k]);
        assert_eq!(found.s.shape(), [shape[0], k]);
        assert_eq!(found.v.shape(), [shape[0], shape[2], k]);
        assert_eq!(found.info, vec![0; shape[0]]);
    }
}

fn a_power_of_two_scales_s_alone<D: Run<super::Svd> + Run<Qr>>(device: &D) {
    let mut random = Random::new(3);
    for n in [4, 16, 40] {
        let values: Vec<f32> = random.normals(2 * n * n);
        let run = |scale: f32| {
            let scaled: Vec<f32> = values.iter().map(|v| v * scale).collect();
            let a = Tensor::from_slice(device, &scaled, &[2, n, n]).unwrap();
            let found = svd(a.view(), true).unwrap();
            [found.u, found.s, found.v].map(|tensor| tensor.to_vec::<f32>().unwrap())
        };
        let [u, s, v] = run(1.0);
        for exponent in [-90, -3, 110] {
            let scale = 2f32.powi(exponent);
            let [u_scaled, s_scaled, v_scaled] = run(scale);
            assert_eq!(bits(&u), bits(&u_scaled), "U at 2^{exponent}, n = {n}");
            assert_eq!(bits(&v), bits(&v_scaled), "V at 2^{exponent}, n = {n}");
            assert_eq!(s.iter().map(|s| s * scale).collect::<Vec<_>>(), s_scaled, "S at 2^{exponent}, n = {n}");
        }
    }
}

fn items_do_not_touch_each_other<D: Run<super::Svd> + Run<Qr>>(device: &D) {
    let mut random = Random::new(4);
    for (rows, cols) in [(3, 3), (16, 16), (20, 33), (70, 66)] {
        let (size, k) = (rows * cols, rows.min(cols));
        let mut values: Vec<f32> = random.normals(5 * size);
        let run = |values: &[f32]| {
            let a = Tensor::from_slice(device, values, &[5, rows, cols]).unwrap();
            let found = svd(a.view(), true).unwrap();
            (found.info.clone(), [found.u, found.s, found.v].map(|tensor| tensor.to_vec::<f32>().unwrap()))
        };
        let (_, clean) = run(&values);
        values[2 * size + 1] = f32::NAN;
        values[3 * size] = f32::INFINITY;
        let (info, spoilt) = run(&values);
        assert_eq!(info, [0, 0, NOT_FINITE, NOT_FINITE, 0]);
        for ((clean, spoilt), size) in clean.iter().zip(&spoilt).zip([rows * k, k, cols * k]) {
            for item in [0, 1, 4] {
                assert_eq!(bits(&clean[item * size..][..size]), bits(&spoilt[item * size..][..size]));
            }
            assert!(spoilt[2 * size..4 * size].iter().all(|value| value.is_nan()), "results of bad items are NaN");
        }
        // Items that change places take their bits with them.
        let reversed: Vec<f32> = values.chunks(size).rev().flatten().copied().collect();
        let (_, reversed) = run(&reversed);
        for ((spoilt, reversed), size) in spoilt.iter().zip(&reversed).zip([rows * k, k, cols * k]) {
            let back: Vec<f32> = reversed.chunks(size).rev().flatten().copied().collect();
            assert_eq!(bits(spoilt), bits(&back));
        }
    }
}

each_device!(
    decomposes_every_family_at_every_size,
    larger_batches,
    empty_sizes,
    a_power_of_two_scales_s_alone,
    items_do_not_touch_each_other,
);

#[test]
fn wrong_input_is_named() {
    let cpu = crate::device::cpu::Cpu::new();
    let vector = Tensor::from_slice(&cpu, &[1f32, 2.0], &[2]).unwrap();
    let error = svd(vector.view(), true).err().unwrap();
    assert_eq!(error.to_string(), "svd: A: got shape [2], expected at least 2 dimensions");
    let half = Tensor::from_slice(&cpu, &[half::f16::ONE; 4], &[2, 2]).unwrap();
    assert!(matches!(svd(half.view(), true), Err(Error::DType { argument: "A", .. })));
}
