//! One body for every device. The bars are those of CONTRACT 3.2.

use super::reference::ratios;
use super::{Cholesky, Triangle, cholesky};
use crate::device::Run;
use crate::testing::{Random, bits, definite_families, has_float64};
use crate::{Element, Error, Tensor, each_device};

/// Sizes around every threshold of the plans.
const SIZES: [usize; 19] = [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 127, 129, 161];
const BOTH: [Triangle; 2] = [Triangle::Lower, Triangle::Upper];

fn check<T: Element, D: Run<Cholesky>>(device: &D, values: &[T], n: usize, triangle: Triangle, what: &[&str]) {
    let a = Tensor::from_slice(device, values, &[what.len(), n, n]).expect("sizes fit");
    let factor = cholesky(a.view(), triangle).expect("a valid call");
    let (l, info): (Vec<T>, _) = (factor.l.to_vec().unwrap(), factor.info().unwrap());
    assert_eq!(a.to_vec::<T>().unwrap(), values, "A was changed");
    for (e, value) in l.iter().enumerate() {
        let (i, j) = (e / n % n, e % n);
        let outside = if triangle == Triangle::Lower { j > i } else { j < i };
        assert!(!outside || value.to_f64().to_bits() == 0, "n = {n}: L({i}, {j}) = {value:?}");
    }
    let bar = if n < 16 { 3.0 } else { 1.0 };
    for ((ratio, info), what) in ratios(values, &l, n, triangle).into_iter().zip(info).zip(what) {
        assert_eq!(info, 0, "{what}, n = {n}, {:?}", T::DTYPE);
        assert!(
            ratio <= bar && (n < 16 || ratio * (n as f64).sqrt() <= 2.0),
            "{what}, n = {n}, {:?}: {ratio}",
            T::DTYPE
        );
    }
}

fn each_size<T: Element, D: Run<Cholesky>>(device: &D) {
    let mut random = Random::new(1);
    for n in SIZES {
        let (names, items): (Vec<_>, Vec<_>) = definite_families(n, &mut random).into_iter().unzip();
        let values: Vec<T> = items.concat().into_iter().map(T::from_f64).collect();
        BOTH.into_iter().for_each(|triangle| check(device, &values, n, triangle, &names));
        check(device, &values[..n * n], n, Triangle::Lower, &names[..1]);
    }
}

fn factors_every_family_at_every_size<D: Run<Cholesky>>(device: &D) {
    each_size::<f32, D>(device);
    if has_float64(device) {
        each_size::<f64, D>(device);
    }
}

fn factor<D: Run<Cholesky>>(device: &D, values: &[f32], n: usize, triangle: Triangle) -> (Vec<f32>, Vec<i32>) {
    let a = Tensor::from_slice(device, values, &[values.len() / (n * n).max(1), n, n]).unwrap();
    let factor = cholesky(a.view(), triangle).unwrap();
    (factor.l.to_vec().unwrap(), factor.info().unwrap())
}

fn the_first_bad_minor_is_named_and_touches_no_other<D: Run<Cholesky>>(device: &D) {
    let mut random = Random::new(2);
    for n in [1, 3, 8, 16, 20, 40, 64, 70, 140] {
        let items = 5;
        let mut values: Vec<f32> = Vec::new();
        for _ in 0..items {
            values.extend(crate::testing::definite(n, &mut random).into_iter().map(|v| v as f32));
        }
        for triangle in BOTH {
            let (l, info) = factor(device, &values, n, triangle);
            assert_eq!(info, [0; 5]);
            for (k, bad) in [(0, -1.0), (n / 2, 0.0), (n - 1, f32::NAN), (n / 3, f32::NEG_INFINITY)] {
                let mut spoiled = values.clone();
                spoiled[2 * n * n + k * (n + 1)] = bad;
                let (l_spoiled, info) = factor(device, &spoiled, n, triangle);
                assert_eq!(info, [0, 0, k as i32 + 1, 0, 0], "n = {n}, {bad} at {k}");
                for item in [0, 1, 3, 4] {
                    let part = item * n * n..(item + 1) * n * n;
                    assert_eq!(bits(&l[part.clone()]), bits(&l_spoiled[part]));
                }
                for (row, column) in (0..n).flat_map(|row| (0..k).map(move |column| (row, column))) {
                    let place =
                        2 * n * n + if triangle == Triangle::Lower { row * n + column } else { column * n + row };
                    assert_eq!(l[place].to_bits(), l_spoiled[place].to_bits(), "column {column} before {k}, n = {n}");
                }
            }
            // The other triangle is not looked at.
            let mut half = values.clone();
            for (e, value) in half.iter_mut().enumerate() {
                let (i, j) = (e / n % n, e % n);
                if if triangle == Triangle::Lower { j > i } else { j < i } {
                    *value = f32::NAN;
                }
            }
            assert_eq!(bits(&l), bits(&factor(device, &half, n, triangle).0), "n = {n}");
        }
    }
}

fn a_power_of_four_scales_l_by_its_root<D: Run<Cholesky>>(device: &D) {
    let mut random = Random::new(3);
    for n in [4, 16, 40, 80, 140] {
        let values: Vec<f32> = crate::testing::definite(n, &mut random).into_iter().map(|v| v as f32).collect();
        let (l, _) = factor(device, &values, n, Triangle::Lower);
        for exponent in [-42, -20, 3, 50] {
            let scale = 2f32.powi(exponent);
            let scaled: Vec<f32> = values.iter().map(|v| v * scale * scale).collect();
            let (l_scaled, info) = factor(device, &scaled, n, Triangle::Lower);
            assert_eq!(info, [0]);
            assert_eq!(l.iter().map(|v| v * scale).collect::<Vec<_>>(), l_scaled, "4^{exponent}, n = {n}");
        }
    }
}

fn empty_sizes<D: Run<Cholesky>>(device: &D) {
    for shape in [[0, 3, 3], [2, 0, 0], [0, 0, 0]] {
        let a = Tensor::from_slice::<f32>(device, &[], &shape).unwrap();
        let factor = cholesky(a.view(), Triangle::Lower).unwrap();
        assert_eq!((factor.l.shape(), factor.info().unwrap()), (&shape[..], vec![0; shape[0]]));
    }
}

each_device!(
    factors_every_family_at_every_size,
    the_first_bad_minor_is_named_and_touches_no_other,
    a_power_of_four_scales_l_by_its_root,
    empty_sizes,
);

#[test]
fn wrong_input_is_named() {
    let cpu = crate::device::cpu::Cpu::new();
    let text = |shape: &[usize]| {
        let a = Tensor::from_slice(&cpu, &vec![1f32; shape.iter().product()], shape).unwrap();
        cholesky(a.view(), Triangle::Lower).err().unwrap().to_string()
    };
    assert_eq!(text(&[2]), "cholesky: A: got shape [2], expected at least 2 dimensions");
    assert_eq!(text(&[2, 3]), "cholesky: A: got shape [2, 3], expected a square matrix (..., N, N)");
    let half = Tensor::from_slice(&cpu, &[half::f16::ONE; 4], &[2, 2]).unwrap();
    assert!(matches!(cholesky(half.view(), Triangle::Lower), Err(Error::DType { argument: "A", .. })));
}
