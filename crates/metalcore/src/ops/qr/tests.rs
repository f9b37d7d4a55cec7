//! One body for every device. The bars are those of CONTRACT 3.2.

use super::reference::ratios;
use super::{Mode, qr};
use crate::device::Run;
use crate::testing::{Random, bits, families, has_float64};
use crate::{Element, Error, Tensor, each_device};

/// Sizes around every threshold of the plans.
const SIZES: [(usize, usize); 27] = [
    (1, 1),
    (2, 2),
    (3, 3),
    (1, 7),
    (7, 1),
    (8, 8),
    (9, 9),
    (8, 9),
    (15, 16),
    (16, 16),
    (17, 17),
    (32, 32),
    (33, 31),
    (32, 64),
    (64, 32),
    (48, 48),
    (49, 49),
    (64, 64),
    (65, 64),
    (64, 65),
    (5, 100),
    (100, 5),
    (130, 7),
    (7, 130),
    (129, 90),
    (90, 129),
    (530, 40),
];

/// (reconstruction, orthogonality) for the larger side.
fn bars(n: usize) -> (f64, f64) {
    match n {
        0..16 => (15.0, 15.0),
        16..64 => (5.0, 7.0),
        64..1024 => (2.5, 3.0),
        _ => (1.0, 1.5),
    }
}

fn check<T: Element, D: Run<super::Qr>>(
    device: &D,
    values: &[T],
    batch: usize,
    rows: usize,
    cols: usize,
    mode: Mode,
    what: &str,
) {
    let a = Tensor::from_slice(device, values, &[batch, rows, cols]).expect("sizes fit");
    let factors = qr(a.view(), mode).expect("a valid call");
    let (q, r): (Vec<T>, Vec<T>) = (factors.q.to_vec().unwrap(), factors.r.to_vec().unwrap());
    let inner = if mode == Mode::Complete { rows } else { rows.min(cols) };
    for (e, value) in r.iter().enumerate() {
        let (i, j) = (e / cols % inner.max(1), e % cols);
        assert!(i <= j || value.to_f64().to_bits() == 0, "{what} {rows}x{cols}: R({i}, {j}) = {value:?}");
    }
    assert_eq!(a.to_vec::<T>().unwrap(), values, "{what}: A was changed");
    if mode == Mode::R {
        return;
    }
    let got = ratios(values, &q, &r, rows, cols, inner);
    let (reconstruction, orthogonality) = bars(rows.min(cols));
    assert!(got.reconstruction <= reconstruction, "{what} {rows}x{cols} {:?}: {got:?}", T::DTYPE);
    assert!(got.orthogonality <= orthogonality, "{what} {rows}x{cols} {:?}: {got:?}", T::DTYPE);
    if rows.min(cols) >= 16 {
        assert!(got.reconstruction * (rows.max(cols) as f64).sqrt() <= 20.0, "{what} {rows}x{cols}: {got:?}");
        assert!(got.orthogonality * (rows as f64).sqrt() <= 60.0, "{what} {rows}x{cols}: {got:?}");
    }
}

fn each_size<T: Element, D: Run<super::Qr>>(device: &D) {
    let mut random = Random::new(1);
    for (rows, cols) in SIZES {
        let (names, items): (Vec<_>, Vec<_>) = families(rows, cols, &mut random).into_iter().unzip();
        let values: Vec<T> = items.concat().into_iter().map(T::from_f64).collect();
        check(device, &values, names.len(), rows, cols, Mode::Reduced, "all families");
    }
}

fn factors_every_family_at_every_size<D: Run<super::Qr>>(device: &D) {
    each_size::<f32, D>(device);
    if has_float64(device) {
        each_size::<f64, D>(device);
    }
}

fn complete_and_r_modes<D: Run<super::Qr>>(device: &D) {
    let mut random = Random::new(2);
    for (rows, cols) in [(1, 1), (5, 3), (3, 5), (16, 16), (40, 8), (8, 40), (70, 3)] {
        let values: Vec<f32> = random.normals(3 * rows * cols);
        for mode in [Mode::Complete, Mode::R] {
            check(device, &values, 3, rows, cols, mode, "mode");
        }
        let view = |mode| {
            let a = Tensor::from_slice(device, &values, &[3, rows, cols]).unwrap();
            qr(a.view(), mode).unwrap().r.to_vec::<f32>().unwrap()
        };
        assert_eq!(view(Mode::R), view(Mode::Reduced), "R does not depend on whether Q is formed");
    }
}

fn empty_sizes<D: Run<super::Qr>>(device: &D) {
    for shape in [[0, 3, 3], [2, 0, 3], [2, 3, 0], [2, 0, 0]] {
        let a = Tensor::from_slice::<f32>(device, &[], &shape).unwrap();
        let reduced = qr(a.view(), Mode::Reduced).unwrap();
        let k = shape[1].min(shape[2]);
        assert_eq!(
            (reduced.q.shape(), reduced.r.shape()),
            (&[shape[0], shape[1], k][..], &[shape[0], k, shape[2]][..])
        );
        let complete = qr(a.view(), Mode::Complete).unwrap().q.to_vec::<f32>().unwrap();
        let m = shape[1];
        for (e, value) in complete.iter().enumerate() {
            let identity = if e / m % m == e % m { 1.0 } else { 0.0 };
            assert!(shape[2] != 0 || *value == identity, "complete Q of a matrix without columns is I");
        }
    }
}

fn a_power_of_two_scales_r_alone<D: Run<super::Qr>>(device: &D) {
    let mut random = Random::new(3);
    for n in [4, 16, 40, 80] {
        let values: Vec<f32> = random.normals(2 * n * n);
        let run = |scale: f32| {
            let scaled: Vec<f32> = values.iter().map(|v| v * scale).collect();
            let a = Tensor::from_slice(device, &scaled, &[2, n, n]).unwrap();
            let factors = qr(a.view(), Mode::Reduced).unwrap();
            (factors.q.to_vec::<f32>().unwrap(), factors.r.to_vec::<f32>().unwrap())
        };
        let (q, r) = run(1.0);
        for exponent in [-90, -60, -3, 5, 70, 110] {
            let scale = 2f32.powi(exponent);
            let (q_scaled, r_scaled) = run(scale);
            assert_eq!(q, q_scaled, "Q at 2^{exponent}, n = {n}");
            assert_eq!(r.iter().map(|v| v * scale).collect::<Vec<_>>(), r_scaled, "R at 2^{exponent}, n = {n}");
        }
    }
}

fn items_do_not_touch_each_other<D: Run<super::Qr>>(device: &D) {
    let mut random = Random::new(4);
    for (rows, cols) in [(3, 3), (16, 16), (20, 33), (70, 70)] {
        let size = rows * cols;
        let mut values: Vec<f32> = random.normals(5 * size);
        let run = |values: &[f32]| {
            let a = Tensor::from_slice(device, values, &[5, rows, cols]).unwrap();
            let factors = qr(a.view(), Mode::Reduced).unwrap();
            (factors.q.to_vec::<f32>().unwrap(), factors.r.to_vec::<f32>().unwrap())
        };
        let (q, r) = run(&values);
        values[2 * size + 1] = f32::NAN;
        values[3 * size] = f32::INFINITY;
        let (q_nan, r_nan) = run(&values);
        let k = rows.min(cols);
        for item in [0, 1, 4] {
            let same =
                |a: &[f32], b: &[f32], n: usize| assert_eq!(bits(&a[item * n..][..n]), bits(&b[item * n..][..n]));
            same(&q, &q_nan, rows * k);
            same(&r, &r_nan, k * cols);
        }
        assert!(q_nan[2 * rows * k..][..rows * k].iter().any(|v| v.is_nan()), "a NaN shows in its own item");
        assert!(r_nan[3 * k * cols..][..k * cols].iter().any(|v| !v.is_finite()), "an infinity shows in its own item");
    }
}

each_device!(
    factors_every_family_at_every_size,
    complete_and_r_modes,
    empty_sizes,
    a_power_of_two_scales_r_alone,
    items_do_not_touch_each_other,
);

#[test]
fn wrong_input_is_named() {
    let cpu = crate::device::cpu::Cpu::new();
    let vector = Tensor::from_slice(&cpu, &[1f32, 2.0], &[2]).unwrap();
    let error = qr(vector.view(), Mode::Reduced).err().unwrap();
    assert_eq!(error.to_string(), "qr: A: got shape [2], expected at least 2 dimensions");
    let half = Tensor::from_slice(&cpu, &[half::f16::ONE; 4], &[2, 2]).unwrap();
    assert!(matches!(qr(half.view(), Mode::Reduced), Err(Error::DType { argument: "A", .. })));
    let error = "raw".parse::<Mode>().unwrap_err();
    assert_eq!(error.to_string(), "qr: mode: got 'raw', expected 'reduced', 'complete' or 'r'");
}
