//! One body for every device. The bars are those of CONTRACT 3.3.

use super::reference::{factors, residual};
use super::{Factor, Factors, Keep, Solve, SolveArgs, Substitute, System, lu_factor, lu_solve, solve};
use crate::device::{Device, Run};
use crate::testing::{Random, bits, families, has_float64};
use crate::{Element, Error, Tensor, each_device};

trait All: Run<Factor> + Run<Solve> + Run<Substitute> {}
impl<D: Run<Factor> + Run<Solve> + Run<Substitute>> All for D {}

fn integers<D: Device>(device: &D, buffer: &D::Buffer, count: usize) -> Vec<i32> {
    let mut bytes = vec![0u8; 4 * count];
    device.read(buffer, 0, &mut bytes).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|word| i32::from_ne_bytes(*word)).collect()
}

fn matrix<T: Element>(value: &[f64]) -> Vec<T> {
    value.iter().map(|v| T::from_f64(*v)).collect()
}

/// Families of square matrices that are not singular, and of right sides.
fn regular<T: Element>(n: usize, k: usize, random: &mut Random) -> (Vec<&'static str>, Vec<T>, Vec<T>) {
    let singular = ["rank K/2", "zero", "repeated columns", "first column zero"];
    let all = families(n, n, random).into_iter().filter(|(name, _)| !singular.contains(name));
    let (names, items): (Vec<_>, Vec<_>) = all.unzip();
    let a = items.iter().flat_map(|item| matrix::<T>(item)).collect();
    let b = random.normals(names.len() * n * k);
    (names, a, b)
}

fn check_solution<T: Element>(names: &[&str], a: &[T], b: &[T], x: &[T], n: usize, k: usize, what: &str) {
    for (item, name) in names.iter().enumerate() {
        let of = |values: &[T], size: usize| values[item * size..][..size].to_vec();
        let ratio = residual(&of(a, n * n), &of(b, n * k), &of(x, n * k), n, k);
        assert!(ratio <= 10.0, "{what}: {name} {n}x{n}, {k} right sides, {:?}: {ratio}", T::DTYPE);
    }
}

fn each_size<T: Element, D: All>(device: &D) {
    let mut random = Random::new(1);
    let cases =
        [(1, 1), (2, 3), (5, 9), (16, 8), (17, 17), (31, 1), (32, 32), (33, 2), (64, 9), (65, 1), (128, 16), (150, 3)];
    for (n, k) in cases {
        let (names, a, b) = regular::<T>(n, k, &mut random);
        let count = names.len();
        let a_tensor = Tensor::from_slice(device, &a, &[count, n, n]).unwrap();
        let b_tensor = Tensor::from_slice(device, &b, &[count, n, k]).unwrap();
        let (x, info) = solve(a_tensor.view(), Some(b_tensor.view())).unwrap();
        assert_eq!(integers(device, &info, count), vec![0; count], "{n}");
        check_solution(&names, &a, &b, &x.to_vec::<T>().unwrap(), n, k, "solve");
        let of = lu_factor(a_tensor.view()).unwrap();
        let x = lu_solve(&of, b_tensor.view(), System::Plain).unwrap().to_vec::<T>().unwrap();
        check_solution(&names, &a, &b, &x, n, k, "lu_solve");
        let x = lu_solve(&of, b_tensor.view(), System::Transposed).unwrap().to_vec::<T>().unwrap();
        let turned: Vec<T> = (0..a.len()).map(|e| a[e / (n * n) * n * n + e % n * n + e % (n * n) / n]).collect();
        check_solution(&names, &turned, &b, &x, n, k, "transposed");
        assert_eq!(a_tensor.to_vec::<T>().unwrap(), a, "A was changed");
    }
}

fn solves_every_family_at_every_size<D: All>(device: &D) {
    each_size::<f32, D>(device);
    if has_float64(device) {
        each_size::<f64, D>(device);
    }
}

fn check_factors<T: Element, D: All>(device: &D, of: &Factors<D>, a: &[T], rows: usize, cols: usize) {
    let (steps, count) = (rows.min(cols), a.len() / (rows * cols));
    let (lu, pivots) = (of.lu.to_vec::<T>().unwrap(), integers(device, &of.pivots, count * steps));
    for item in 0..count {
        let of = |values: &[T]| values[item * rows * cols..][..rows * cols].to_vec();
        let pivots = &pivots[item * steps..][..steps];
        assert!(pivots.iter().enumerate().all(|(k, p)| (k + 1..=rows).contains(&(*p as usize))), "{pivots:?}");
        let ratio = factors(&of(a), &of(&lu), pivots, rows, cols);
        assert!(ratio <= if steps < 16 { 3.0 } else { 1.0 }, "{rows}x{cols}, item {item}: {ratio}");
        for (e, l) in of(&lu).iter().enumerate() {
            assert!(e / cols <= e % cols || l.to_f64().abs() <= 1.0, "{rows}x{cols}: a multiplier of {l:?}");
        }
    }
}

fn factors_every_family_of_every_shape<D: All>(device: &D) {
    let mut random = Random::new(2);
    let shapes = [
        (1, 1),
        (3, 7),
        (7, 3),
        (16, 16),
        (20, 32),
        (33, 20),
        (64, 64),
        (40, 129),
        (129, 40),
        (70, 200),
        (300, 20),
        (161, 161),
    ];
    for (rows, cols) in shapes {
        let items = families(rows, cols, &mut random);
        let a: Vec<f32> = items.iter().flat_map(|(_, item)| matrix::<f32>(item)).collect();
        let a_tensor = Tensor::from_slice(device, &a, &[items.len(), rows, cols]).unwrap();
        check_factors(device, &lu_factor(a_tensor.view()).unwrap(), &a, rows, cols);
    }
}

fn info_is_the_first_zero_pivot<D: All>(device: &D) {
    for n in [3, 20, 40, 100, 140] {
        let mut values = vec![0f32; 5 * n * n];
        for item in 0..5 {
            for i in 0..n {
                values[(item * n + i) * n + i] = 1.0 + i as f32;
            }
        }
        values[n * n + 2 * n + 2] = 0.0;
        values[2 * n * n] = 0.0;
        values[2 * n * n + (n - 1) * (n + 1)] = 0.0;
        values[3 * n * n + n + 1] = f32::NAN;
        let a = Tensor::from_slice(device, &values, &[5, n, n]).unwrap();
        let of = lu_factor(a.view()).unwrap();
        assert_eq!(integers(device, &of.info, 5), [0, 3, 1, 0, 0], "{n}");
        let b = Tensor::from_slice(device, &vec![1f32; 5 * n], &[5, n, 1]).unwrap();
        let (x, info) = solve(a.view(), Some(b.view())).unwrap();
        assert_eq!(integers(device, &info, 5), [0, 3, 1, 0, 0], "{n}");
        let x = x.to_vec::<f32>().unwrap();
        for (item, finite) in [true, false, false, false, true].into_iter().enumerate() {
            assert_eq!(x[item * n..][..n].iter().all(|v| v.is_finite()), finite, "{n}, item {item}");
        }
    }
}

fn of_equal_candidates_the_first_is_the_pivot<D: All>(device: &D) {
    for n in [4usize, 20, 50, 150] {
        let a: Vec<f32> =
            (0..n * n).map(|e| if (e / n * (e % n)).count_ones() % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let a = [a.clone(), vec![1.0; n * n]].concat();
        let tensor = Tensor::from_slice(device, &a, &[2, n, n]).unwrap();
        let of = lu_factor(tensor.view()).unwrap();
        let pivots = integers(device, &of.pivots, 2 * n);
        assert_eq!(pivots[0], 1);
        assert_eq!(pivots[n..], (1..=n as i32).collect::<Vec<_>>());
    }
}

fn empty_sizes<D: All>(device: &D) {
    for (batch, n, k) in [(0, 3, 2), (2, 0, 3), (2, 3, 0), (2, 0, 0), (1, 40, 0), (1, 140, 0)] {
        let a = vec![1f32; batch * n * n];
        let a = Tensor::from_slice(device, &a, &[batch, n, n]).unwrap();
        let b = Tensor::from_slice(device, &vec![1f32; batch * n * k], &[batch, n, k]).unwrap();
        let (x, info) = solve(a.view(), Some(b.view())).unwrap();
        assert_eq!((x.shape(), integers(device, &info, batch).len()), (&[batch, n, k][..], batch));
        assert!(n > 0 || integers(device, &info, batch).iter().all(|i| *i == 0));
        let of = lu_factor(a.view()).unwrap();
        assert_eq!(lu_solve(&of, b.view(), System::Plain).unwrap().shape(), [batch, n, k]);
    }
}

fn inverses_and_kept_factors<D: All>(device: &D) {
    let mut random = Random::new(3);
    for n in [1, 7, 16, 32, 40, 64, 100, 130] {
        let a: Vec<f32> = random.normals(3 * n * n);
        let tensor = Tensor::from_slice(device, &a, &[3, n, n]).unwrap();
        let (x, _) = solve(tensor.view(), None).unwrap();
        let x = x.to_vec::<f32>().unwrap();
        let identity: Vec<f32> = (0..n * n).map(|e| if e % (n + 1) == 0 { 1.0 } else { 0.0 }).collect();
        for item in 0..3 {
            let of = |values: &[f32]| values[item * n * n..][..n * n].to_vec();
            let ratio = residual(&of(&a), &identity, &of(&x), n, n);
            assert!(ratio <= 10.0, "{n}: {ratio}");
        }
        let b: Vec<f32> = random.normals(3 * n * 2);
        let b = Tensor::from_slice(device, &b, &[3, n, 2]).unwrap();
        let problem = Solve::new("solve", &[3, n, n], Some(&[3, n, 2]), Keep::Factors, crate::DType::F32).unwrap();
        let of = lu_factor(tensor.view()).unwrap();
        let kept = Factors {
            lu: Tensor::empty(device, &[3, n, n], crate::DType::F32).unwrap(),
            pivots: device.alloc(12 * n).unwrap(),
            info: device.alloc(12).unwrap(),
        };
        let x = Tensor::empty(device, &[3, n, 2], crate::DType::F32).unwrap();
        let args = SolveArgs {
            a: tensor.buffer(),
            b: b.buffer(),
            x: x.buffer(),
            lu: kept.lu.buffer(),
            pivots: &kept.pivots,
            info: &kept.info,
        };
        device.run(&problem, args).unwrap();
        assert_eq!(bits(&kept.lu.to_vec::<f32>().unwrap()), bits(&of.lu.to_vec::<f32>().unwrap()), "{n}");
        assert_eq!(integers(device, &kept.pivots, 3 * n), integers(device, &of.pivots, 3 * n));
        let plain = solve(tensor.view(), Some(b.view())).unwrap().0;
        assert_eq!(
            x.to_vec::<f32>().unwrap(),
            plain.to_vec::<f32>().unwrap(),
            "{n}: the same with and without factors"
        );
    }
}

fn a_power_of_two_scales_u_alone<D: All>(device: &D) {
    let mut random = Random::new(4);
    for n in [5, 24, 50, 140] {
        let values: Vec<f32> = random.normals(2 * n * n);
        let run = |scale: f32| {
            let scaled: Vec<f32> = values.iter().map(|v| v * scale).collect();
            let a = Tensor::from_slice(device, &scaled, &[2, n, n]).unwrap();
            let of = lu_factor(a.view()).unwrap();
            (of.lu.to_vec::<f32>().unwrap(), integers(device, &of.pivots, 2 * n))
        };
        let (lu, pivots) = run(1.0);
        for exponent in [-60, 5, 90] {
            let scale = 2f32.powi(exponent);
            let (scaled, same) = run(scale);
            assert_eq!(pivots, same, "2^{exponent}, {n}");
            for (e, (x, y)) in lu.iter().zip(&scaled).enumerate() {
                let expected = if e / n % n <= e % n { x * scale } else { *x };
                assert_eq!(*y, expected, "2^{exponent}, {n}, element {e}");
            }
        }
    }
}

fn items_do_not_touch_each_other<D: All>(device: &D) {
    let mut random = Random::new(5);
    for n in [3, 16, 32, 60, 140] {
        let mut values: Vec<f32> = random.normals(5 * n * n);
        let b: Vec<f32> = random.normals(5 * n * 2);
        let b = Tensor::from_slice(device, &b, &[5, n, 2]).unwrap();
        let run = |values: &[f32]| {
            let a = Tensor::from_slice(device, values, &[5, n, n]).unwrap();
            solve(a.view(), Some(b.view())).unwrap().0.to_vec::<f32>().unwrap()
        };
        let x = run(&values);
        values[2 * n * n + 1] = f32::NAN;
        values[3 * n * n] = f32::INFINITY;
        let bad = run(&values);
        for item in [0, 1, 4] {
            assert_eq!(bits(&x[item * n * 2..][..n * 2]), bits(&bad[item * n * 2..][..n * 2]), "{n}");
        }
        assert!(bad[2 * n * 2..][..n * 2].iter().any(|v| v.is_nan()), "a NaN shows in its own item");
    }
}

each_device!(
    solves_every_family_at_every_size,
    factors_every_family_of_every_shape,
    info_is_the_first_zero_pivot,
    of_equal_candidates_the_first_is_the_pivot,
    empty_sizes,
    inverses_and_kept_factors,
    a_power_of_two_scales_u_alone,
    items_do_not_touch_each_other,
);

#[test]
fn narrow_processors_solve_too() {
    let cpu = crate::device::cpu::Cpu::with_threads(1);
    crate::device::cpu::simd::narrow::for_each_width(|| {
        each_size::<f32, _>(&cpu);
        inverses_and_kept_factors(&cpu);
    });
}

#[test]
fn wrong_input_is_named() {
    let cpu = crate::device::cpu::Cpu::new();
    let vector = Tensor::from_slice(&cpu, &[1f32, 2.0], &[1, 2]).unwrap();
    let error = solve(vector.view(), None).err().unwrap();
    assert_eq!(error.to_string(), "solve: A: got shape [1, 2], expected a square matrix (..., N, N)");
    let half = Tensor::from_slice(&cpu, &[half::f16::ONE; 4], &[2, 2]).unwrap();
    assert!(matches!(lu_factor(half.view()), Err(Error::DType { argument: "A", .. })));
    let square = Tensor::from_slice(&cpu, &[1f32; 4], &[2, 2]).unwrap();
    let error =
        solve(square.view(), Some(Tensor::from_slice(&cpu, &[1f32; 3], &[3, 1]).unwrap().view())).err().unwrap();
    assert_eq!(error.to_string(), "solve: B: got shape [3, 1], expected batch [] of 2 rows");
}
