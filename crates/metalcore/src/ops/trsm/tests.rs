//! One body for every device. The bar is that of CONTRACT 3.3.

use super::reference::ratio;
use super::{Diagonal, Form, Matrix, Triangle, Trsm, trsm};
use crate::device::Run;
use crate::testing::{Random, bits, has_float64};
use crate::{Element, Error, Tensor, each_device};

/// Rows and right sides around every threshold of the plans.
const SIZES: [(usize, usize); 16] = [
    (1, 1),
    (2, 3),
    (3, 1),
    (5, 8),
    (8, 9),
    (16, 8),
    (17, 2),
    (31, 33),
    (32, 8),
    (33, 1),
    (48, 17),
    (64, 8),
    (65, 7),
    (97, 8),
    (130, 3),
    (161, 40),
];

fn forms() -> impl Iterator<Item = Form> {
    let matrices = [Matrix::Plain, Matrix::Transposed, Matrix::Square];
    let diagonals = [Diagonal::Stored, Diagonal::Unit];
    [Triangle::Lower, Triangle::Upper].into_iter().flat_map(move |triangle| {
        matrices
            .into_iter()
            .flat_map(move |matrix| diagonals.into_iter().map(move |diagonal| Form { triangle, matrix, diagonal }))
    })
}

/// Well conditioned whatever the form, the other triangle and a diagonal of ones NaN.
fn system<T: Element>(batch: usize, n: usize, form: Form, random: &mut Random) -> Vec<T> {
    let entry = |e: usize| {
        let (i, j) = (e / n % n, e % n);
        let outside = if form.triangle == Triangle::Lower { j > i } else { j < i };
        match () {
            () if i == j && form.diagonal == Diagonal::Stored => 1.0 + random.uniform(),
            () if i == j || outside => f64::NAN,
            () => random.normal() / n as f64,
        }
    };
    (0..batch * n * n).map(entry).map(T::from_f64).collect()
}

fn run<T: Element, D: Run<Trsm>>(device: &D, a: &[T], b: &[T], n: usize, cols: usize, form: Form) -> Vec<T> {
    let batch = a.len() / (n * n);
    let a_tensor = Tensor::from_slice(device, a, &[batch, n, n]).expect("sizes fit");
    let b_tensor = Tensor::from_slice(device, b, &[batch, n, cols]).expect("sizes fit");
    let x = trsm(a_tensor.view(), b_tensor.view(), form).expect("a valid call");
    assert_eq!(bits(&a_tensor.to_vec::<T>().unwrap()), bits(a), "A was changed");
    assert_eq!(bits(&b_tensor.to_vec::<T>().unwrap()), bits(b), "B was changed");
    x.to_vec().unwrap()
}

fn check<T: Element, D: Run<Trsm>>(device: &D) {
    let mut random = Random::new(1);
    for (n, cols) in SIZES {
        for form in forms() {
            for batch in [1, 5] {
                let a = system::<T>(batch, n, form, &mut random);
                let b: Vec<T> = random.normals(batch * n * cols);
                let x = run(device, &a, &b, n, cols, form);
                for item in 0..batch {
                    let (b, x) = (&b[item * n * cols..][..n * cols], &x[item * n * cols..][..n * cols]);
                    let ratio = ratio(&a[item * n * n..][..n * n], b, x, n, cols, form);
                    assert!(ratio <= 10.0, "{batch}x{n}x{cols} {form:?} {:?}: {ratio}", T::DTYPE);
                }
            }
        }
    }
}

fn solves_every_form_at_every_size<D: Run<Trsm>>(device: &D) {
    check::<f32, D>(device);
    if has_float64(device) {
        check::<f64, D>(device);
    }
}

fn a_power_of_two_scales_x_exactly<D: Run<Trsm>>(device: &D) {
    let mut random = Random::new(2);
    for n in [3, 20, 40, 70] {
        let form = Form { triangle: Triangle::Lower, matrix: Matrix::Plain, diagonal: Diagonal::Stored };
        let (a, b) = (system::<f32>(2, n, form, &mut random), random.normals::<f32>(2 * n * 3));
        let x = run(device, &a, &b, n, 3, form);
        for (of_a, of_b) in [(100, 10), (-100, -30), (110, 60), (-100, -60), (0, 90)] {
            let scaled = |values: &[f32], by: i32| -> Vec<f32> { values.iter().map(|v| v * 2f32.powi(by)).collect() };
            let got = run(device, &scaled(&a, of_a), &scaled(&b, of_b), n, 3, form);
            assert_eq!(got, scaled(&x, of_b - of_a), "A 2^{of_a}, b 2^{of_b}, n = {n}");
        }
    }
}

fn a_zero_pivot_or_nan_stays_in_its_item<D: Run<Trsm>>(device: &D) {
    let mut random = Random::new(3);
    for (n, cols) in [(1, 1), (5, 3), (16, 8), (40, 9), (70, 2)] {
        for form in forms().filter(|form| form.diagonal == Diagonal::Stored) {
            let (mut a, mut b) = (system::<f32>(5, n, form, &mut random), random.normals::<f32>(5 * n * cols));
            let x = run(device, &a, &b, n, cols, form);
            a[n * n + n / 2 * (n + 1)] = 0.0;
            b[3 * n * cols] = f32::NAN;
            let spoiled = run(device, &a, &b, n, cols, form);
            let item = |values: &[f32], item: usize| bits(&values[item * n * cols..][..n * cols]);
            for good in [0, 2, 4] {
                assert_eq!(item(&x, good), item(&spoiled, good), "{n}x{cols} {form:?}");
            }
            assert!(!spoiled[(n + n / 2) * cols].is_finite() && spoiled[3 * n * cols].is_nan(), "{n}x{cols} {form:?}");
        }
    }
}

fn empty_sizes<D: Run<Trsm>>(device: &D) {
    let form = Form { triangle: Triangle::Lower, matrix: Matrix::Square, diagonal: Diagonal::Stored };
    for [batch, n, cols] in [[0, 3, 2], [2, 0, 2], [2, 3, 0], [0, 0, 0]] {
        let a = Tensor::from_slice(device, &vec![1f32; batch * n * n], &[batch, n, n]).unwrap();
        let b = Tensor::from_slice(device, &vec![1f32; batch * n * cols], &[batch, n, cols]).unwrap();
        assert_eq!(trsm(a.view(), b.view(), form).unwrap().shape(), [batch, n, cols]);
    }
}

each_device!(
    solves_every_form_at_every_size,
    a_power_of_two_scales_x_exactly,
    a_zero_pivot_or_nan_stays_in_its_item,
    empty_sizes,
);

#[test]
fn vectors_of_every_width_solve_alike() {
    use crate::device::cpu::{Cpu, simd::narrow::for_each_width};
    let cpu = Cpu::with_threads(1);
    for_each_width(|| check::<f32, Cpu>(&cpu));
}

#[test]
fn wrong_input_is_named() {
    let cpu = crate::device::cpu::Cpu::new();
    let form = Form { triangle: Triangle::Lower, matrix: Matrix::Plain, diagonal: Diagonal::Stored };
    let text = |a: &[usize], b: &[usize]| {
        let of = |shape: &[usize]| Tensor::from_slice(&cpu, &vec![1f32; shape.iter().product()], shape).unwrap();
        trsm(of(a).view(), of(b).view(), form).err().unwrap().to_string()
    };
    assert_eq!(text(&[2], &[2]), "trsm: A: got shape [2], expected at least 2 dimensions");
    assert_eq!(text(&[2, 3], &[2, 1]), "trsm: A: got shape [2, 3], expected a square matrix (..., N, N)");
    assert_eq!(text(&[4, 2, 2], &[3, 2, 1]), "trsm: b: got shape [3, 2, 1], expected shape [4, 2] and K columns");
    let half = Tensor::from_slice(&cpu, &[half::f16::ONE; 4], &[2, 2]).unwrap();
    assert!(matches!(trsm(half.view(), half.view(), form), Err(Error::DType { argument: "A", .. })));
}
