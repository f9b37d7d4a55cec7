//! One body for every device. The bars are those of CONTRACT 3.2.

use super::reference::ratios;
use super::{Eigh, Form, Strategy, Triangle, eigh};
use crate::device::Run;
use crate::testing::{Random, bits, families, has_float64};
use crate::{Element, Error, Tensor, each_device};

/// Around the thresholds of the plans.
const SIZES: [usize; 14] = [1, 2, 3, 4, 7, 15, 16, 17, 24, 31, 33, 49, 64, 67];

/// (reconstruction, orthogonality) for the size.
fn bars(n: usize) -> (f64, f64) {
    match n {
        0..16 => (15.0, 15.0),
        16..64 => (5.0, 7.0),
        64..1024 => (2.5, 3.0),
        _ => (1.0, 1.5),
    }
}

/// Symmetric matrices that break algorithms: name, entries in float64.
fn symmetric(n: usize, random: &mut Random) -> Vec<(&'static str, Vec<f64>)> {
    let mirrored = |a: &[f64]| -> Vec<f64> { (0..n * n).map(|e| a[e.max(e % n * n + e / n)]).collect() };
    let mut found: Vec<_> = families(n, n, random).iter().map(|(name, a)| (*name, mirrored(a))).collect();
    let at = |f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> { (0..n * n).map(|e| f(e / n, e % n)).collect() };
    let v: Vec<f64> = (0..n).map(|_| random.normal()).collect();
    let norm: f64 = v.iter().map(|x| x * x).sum();
    // Eigenvalues 1 and -1 alone: a reflection.
    found.push(("reflection", at(&|i, j| f64::from(u8::from(i == j)) - 2.0 * v[i] * v[j] / norm)));
    found.push(("rank 1", at(&|i, j| v[i] * v[j])));
    // Eigenvalues of both signs in pairs.
    found.push(("pairs", at(&|i, j| if (i + j) % 2 == 1 { v[i] * v[j] } else { 0.0 })));
    found.push(("exchange", at(&|i, j| f64::from(u8::from(i + j + 1 == n)))));
    found.push((
        "Wilkinson",
        at(&|i, j| match i.abs_diff(j) {
            0 => (2.0 * i as f64 - (n as f64 - 1.0)).abs() / 2.0,
            1 => 1.0,
            _ => 0.0,
        }),
    ));
    found.push((
        "second difference",
        at(&|i, j| match i.abs_diff(j) {
            0 => 2.0,
            1 => -1.0,
            _ => 0.0,
        }),
    ));
    found.push(("near overflow", mirrored(&at(&|i, j| v[i] * v[j] * 1e36 / norm))));
    found.push(("small", mirrored(&at(&|i, j| v[i] * v[j] * 1e-28 / norm))));
    found
}

fn solve<T: Element, D: Run<Eigh>>(
    device: &D,
    values: &[T],
    n: usize,
    triangle: Triangle,
    form: Form,
    strategy: Strategy,
) -> (Vec<T>, Vec<T>, Vec<i32>) {
    let batch = values.len() / (n * n);
    let a = Tensor::from_slice(device, values, &[batch, n, n]).expect("sizes fit");
    let found = eigh(a.view(), triangle, form, strategy).expect("a valid call");
    assert_eq!(bits(&a.to_vec::<T>().unwrap()), bits(values), "A was changed");
    let mut info = vec![0u8; 4 * batch];
    device.read(&found.info, 0, &mut info).expect("readable");
    let info = info.as_chunks::<4>().0.iter().map(|word| i32::from_ne_bytes(*word)).collect();
    (found.l.to_vec().unwrap(), found.q.to_vec().unwrap(), info)
}

fn check<T: Element, D: Run<Eigh>>(device: &D, names: &[&str], values: &[T], n: usize, strategy: Strategy) {
    let (l, q, info) = solve(device, values, n, Triangle::Lower, Form::Vectors, strategy);
    let (values_alone, _, _) = solve(device, values, n, Triangle::Lower, Form::Values, strategy);
    let (reconstruction, orthogonality) = bars(n);
    let mut worst = (0f64, 0f64);
    for (item, name) in names.iter().enumerate() {
        let what = format!("{name}, n = {n}, {:?}, {strategy:?}", T::DTYPE);
        assert_eq!(info[item], 0, "{what}");
        let (a, l, q) = (&values[item * n * n..][..n * n], &l[item * n..][..n], &q[item * n * n..][..n * n]);
        let got = ratios(a, l, q, n, Triangle::Lower);
        worst = (worst.0.max(got.reconstruction), worst.1.max(got.orthogonality));
        assert!(got.reconstruction <= reconstruction, "{what}: {got:?}");
        assert!(got.orthogonality <= orthogonality, "{what}: {got:?}");
        assert!(l.windows(2).all(|pair| pair[0].to_f64() <= pair[1].to_f64()), "{what}: {l:?}");
        for column in 0..n {
            let entries: Vec<f64> = (0..n).map(|i| q[i * n + column].to_f64()).collect();
            let largest = entries.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            assert!(*entries.iter().find(|x| x.abs() == largest).unwrap() >= 0.0, "{what}: sign of column {column}");
        }
        // Both are within the error of the exact values.
        let size = l.iter().fold(0.0, |m: f64, x| m.max(x.to_f64().abs()));
        let bound = 2.0 * if n < 16 { 7.0 } else { 2.0 } * n as f64 * T::DTYPE.unit_roundoff() * size;
        for (x, y) in l.iter().zip(&values_alone[item * n..]) {
            assert!((x.to_f64() - y.to_f64()).abs() <= bound, "{what}: {x:?} and {y:?}");
        }
    }
    eprintln!("n = {n} {:?} {strategy:?}: worst {worst:.3?}", T::DTYPE);
}

fn each_size<T: Element, D: Run<Eigh>>(device: &D, sizes: &[usize], strategy: Strategy) {
    let mut random = Random::new(1);
    for n in sizes {
        let (names, items): (Vec<_>, Vec<_>) = symmetric(*n, &mut random).into_iter().unzip();
        let values: Vec<T> = items.concat().into_iter().map(T::from_f64).collect();
        check(device, &names, &values, *n, strategy);
    }
}

fn solves_every_family_at_every_size<D: Run<Eigh>>(device: &D) {
    // The emulator takes seconds for a batch of the larger sizes.
    let sizes: &[usize] = if device.caps().kind == "emulator" { &[1, 2, 3, 16, 17, 33, 67] } else { &SIZES };
    each_size::<f32, D>(device, sizes, Strategy::Auto);
    if has_float64(device) {
        each_size::<f64, D>(device, &SIZES, Strategy::Auto);
    }
}

fn each_strategy_solves_what_another_would<D: Run<Eigh>>(device: &D) {
    each_size::<f32, D>(device, &[5, 70], Strategy::Jacobi);
    each_size::<f32, D>(device, &[1, 2, 3, 4, 5, 9, 16, 17, 33, 40], Strategy::Tridiagonal);
}

fn reads_the_named_triangle_alone<D: Run<Eigh>>(device: &D) {
    let mut random = Random::new(2);
    for (n, strategy) in [(5, Strategy::Auto), (20, Strategy::Auto), (20, Strategy::Tridiagonal)] {
        let full: Vec<f32> = random.normals(3 * n * n);
        let part = |keep: &dyn Fn(usize, usize) -> bool, turn: bool| -> Vec<f32> {
            let entry = |e: usize| {
                let (item, i, j) = (e / (n * n), e / n % n, e % n);
                let (r, c) = if turn { (j, i) } else { (i, j) };
                if keep(i, j) { full[(item * n + r) * n + c] } else { f32::NAN }
            };
            (0..3 * n * n).map(entry).collect()
        };
        let lower = part(&|i, j| i >= j, false);
        let upper = part(&|i, j| i <= j, true);
        let a = solve(device, &lower, n, Triangle::Lower, Form::Vectors, strategy);
        let b = solve(device, &upper, n, Triangle::Upper, Form::Vectors, strategy);
        assert_eq!(a.2, [0; 3]);
        assert_eq!((bits(&a.0), bits(&a.1)), (bits(&b.0), bits(&b.1)), "n = {n}");
    }
}

fn a_power_of_two_scales_l_alone<D: Run<Eigh>>(device: &D) {
    let mut random = Random::new(3);
    for (n, strategy) in [(4, Strategy::Auto), (20, Strategy::Auto), (20, Strategy::Tridiagonal)] {
        let values: Vec<f32> = random.normals(2 * n * n);
        let run = |scale: f32| {
            let scaled: Vec<f32> = values.iter().map(|v| v * scale).collect();
            solve(device, &scaled, n, Triangle::Lower, Form::Vectors, strategy)
        };
        let (l, q, _) = run(1.0);
        for exponent in [-90, -60, -3, 5, 70, 110] {
            let scale = 2f32.powi(exponent);
            let (l_scaled, q_scaled, _) = run(scale);
            assert_eq!(q, q_scaled, "Q at 2^{exponent}, n = {n}");
            assert_eq!(l.iter().map(|v| v * scale).collect::<Vec<_>>(), l_scaled, "L at 2^{exponent}, n = {n}");
        }
    }
}

fn items_do_not_touch_each_other<D: Run<Eigh>>(device: &D) {
    let mut random = Random::new(4);
    for (n, strategy) in [(3, Strategy::Auto), (16, Strategy::Auto), (33, Strategy::Auto), (33, Strategy::Tridiagonal)]
    {
        let size = n * n;
        let mut values: Vec<f32> = random.normals(5 * size);
        let (l, q, _) = solve(device, &values, n, Triangle::Lower, Form::Vectors, strategy);
        values[2 * size + n] = f32::NAN;
        values[3 * size] = f32::INFINITY;
        let (l_nan, q_nan, info) = solve(device, &values, n, Triangle::Lower, Form::Vectors, strategy);
        assert_eq!(info, [0, 0, -1, -1, 0], "n = {n}");
        for item in 0..5 {
            let (l, l_nan) = (&l[item * n..][..n], &l_nan[item * n..][..n]);
            let (q, q_nan) = (&q[item * size..][..size], &q_nan[item * size..][..size]);
            if info[item] == 0 {
                assert_eq!((bits(l), bits(q)), (bits(l_nan), bits(q_nan)), "item {item}, n = {n}");
            } else {
                assert!(l_nan.iter().chain(q_nan).all(|v| v.is_nan()), "item {item}, n = {n}");
            }
        }
    }
}

fn empty_sizes<D: Run<Eigh>>(device: &D) {
    for shape in [[0, 3, 3], [2, 0, 0], [0, 0, 0]] {
        let a = Tensor::from_slice::<f32>(device, &[], &shape).unwrap();
        let found = eigh(a.view(), Triangle::Lower, Form::Vectors, Strategy::Auto).unwrap();
        assert_eq!((found.l.shape(), found.q.shape()), (&shape[..2], &shape[..]));
    }
}

each_device!(
    solves_every_family_at_every_size,
    each_strategy_solves_what_another_would,
    reads_the_named_triangle_alone,
    a_power_of_two_scales_l_alone,
    items_do_not_touch_each_other,
    empty_sizes,
);

#[test]
fn wrong_input_is_named() {
    let cpu = crate::device::cpu::Cpu::new();
    let rectangle = Tensor::from_slice(&cpu, &[1f32, 2.0], &[1, 2]).unwrap();
    let error = eigh(rectangle.view(), Triangle::Lower, Form::Vectors, Strategy::Auto).err().unwrap();
    assert_eq!(error.to_string(), "eigh: A: got shape [1, 2], expected a square matrix (..., N, N)");
    let half = Tensor::from_slice(&cpu, &[half::f16::ONE; 4], &[2, 2]).unwrap();
    let result = eigh(half.view(), Triangle::Lower, Form::Vectors, Strategy::Auto);
    assert!(matches!(result, Err(Error::DType { argument: "A", .. })));
}
