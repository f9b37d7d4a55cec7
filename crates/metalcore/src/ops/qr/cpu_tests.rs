//! Laws and ratios of the host's QR, for both forms and both types.

use super::*;
use crate::device::cpu::simd::narrow::for_each_width;
use crate::dtype::DType;
use crate::ops::qr::reference::ratios;
use crate::testing::{Random, bits};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    Gaussian,
    Uniform,
    Condition1e6,
    HalfRank,
    Orthogonal,
    Graded,
    Huge,
    Tiny,
    Zero,
    Identity,
}
use Family::*;
const FAMILIES: [Family; 10] =
    [Gaussian, Uniform, Condition1e6, HalfRank, Orthogonal, Graded, Huge, Tiny, Zero, Identity];

/// A row-major matrix, in float64.
fn matrix(family: Family, rows: usize, cols: usize, random: &mut Random) -> Vec<f64> {
    let mut gaussian = |rows: usize, cols: usize| (0..rows * cols).map(|_| random.normal()).collect::<Vec<_>>();
    let inner = rows.min(cols);
    let scale_columns = |mut a: Vec<f64>, decades: f64| {
        for (index, entry) in a.iter_mut().enumerate() {
            *entry *= 10f64.powf(-decades * (index % cols) as f64 / (cols.max(2) - 1) as f64);
        }
        a
    };
    match family {
        Gaussian => gaussian(rows, cols),
        Uniform => (0..rows * cols).map(|_| random.uniform()).collect(),
        Condition1e6 => {
            let left = orthonormal(gaussian(rows, inner), rows, inner);
            let right = gaussian(inner, cols);
            let left = left
                .iter()
                .enumerate()
                .map(|(index, entry)| entry * 10f64.powf(-6.0 * (index % inner) as f64 / (inner.max(2) - 1) as f64));
            product(&left.collect::<Vec<_>>(), &right, rows, inner, cols)
        }
        HalfRank => product(&gaussian(rows, inner / 2), &gaussian(inner / 2, cols), rows, inner / 2, cols),
        Orthogonal if rows >= cols => orthonormal(gaussian(rows, cols), rows, cols),
        Orthogonal => {
            let transposed = orthonormal(gaussian(cols, rows), cols, rows);
            (0..rows * cols).map(|index| transposed[index % cols * rows + index / cols]).collect()
        }
        Graded => scale_columns(gaussian(rows, cols), 8.0),
        Huge => gaussian(rows, cols).iter().map(|entry| entry * 1e18).collect(),
        Tiny => gaussian(rows, cols).iter().map(|entry| entry * 1e-18).collect(),
        Zero => vec![0.0; rows * cols],
        Identity => (0..rows * cols).map(|index| if index / cols == index % cols { 1.0 } else { 0.0 }).collect(),
    }
}

fn product(a: &[f64], b: &[f64], rows: usize, inner: usize, cols: usize) -> Vec<f64> {
    let mut c = vec![0.0; rows * cols];
    for i in 0..rows {
        for l in 0..inner {
            for j in 0..cols {
                c[i * cols + j] += a[i * inner + l] * b[l * cols + j];
            }
        }
    }
    c
}

/// Gram-Schmidt, twice.
fn orthonormal(mut a: Vec<f64>, rows: usize, cols: usize) -> Vec<f64> {
    for _ in 0..2 {
        for j in 0..cols {
            for l in 0..j {
                let dot: f64 = (0..rows).map(|i| a[i * cols + j] * a[i * cols + l]).sum();
                (0..rows).for_each(|i| a[i * cols + j] -= dot * a[i * cols + l]);
            }
            let norm = (0..rows).map(|i| a[i * cols + j].powi(2)).sum::<f64>().sqrt();
            (0..rows).for_each(|i| a[i * cols + j] /= norm);
        }
    }
    a
}

fn convert<T: Real>(a: &[f64]) -> Vec<T> {
    a.iter().map(|entry| T::from_f64(*entry)).collect()
}

/// Q and R in memory that was full of NaN.
fn factored<T: Real>(threads: usize, a: &[T], shape: Shape, q_cols: usize, r_rows: usize) -> (Vec<T>, Vec<T>) {
    let mut q = vec![T::from_f64(f64::NAN); shape.batch * shape.rows * q_cols];
    let mut r = vec![T::from_f64(f64::NAN); shape.batch * r_rows * shape.cols];
    factor(&Threads::new(threads), a, shape, &mut q, q_cols, &mut r, r_rows);
    (q, r)
}

/// Bars of reconstruction and orthogonality, by the smaller side.
fn bars(smaller: usize) -> (f64, f64) {
    match smaller {
        0..16 => (15.0, 15.0),
        16..64 => (5.0, 7.0),
        64..1024 => (2.5, 3.0),
        _ => (1.0, 1.5),
    }
}

/// Checks both halves against the bars and, from 16, against the second gate. Returns the worst ratios.
fn check<T: Real>(family: Family, shape: Shape, a: &[T], q: &[T], r: &[T], inner: usize, worst: &mut [f64; 2]) {
    let Shape { rows, cols, .. } = shape;
    let found = ratios(a, q, r, rows, cols, inner);
    let smaller = rows.min(cols);
    let (reconstruction, orthogonality) = bars(smaller);
    let gates = if smaller >= 16 {
        (20.0 / (rows.max(cols) as f64).sqrt(), 60.0 / (rows as f64).sqrt())
    } else {
        (f64::INFINITY, f64::INFINITY)
    };
    assert!(
        found.reconstruction <= reconstruction.min(gates.0) && found.orthogonality <= orthogonality.min(gates.1),
        "{} {family:?} {shape:?}: {found:?}",
        T::DTYPE
    );
    let size = if smaller < 16 { 0 } else { 1 };
    worst[size] = worst[size].max(found.reconstruction).max(found.orthogonality);
    for (index, entry) in r.iter().enumerate() {
        let (i, j) = (index / cols % inner, index % cols);
        assert!(i <= j || (*entry == T::default() && !entry.is_sign_negative()), "R[{i}, {j}] below the diagonal");
    }
}

/// Sizes on both sides of every threshold.
const SIZES: [usize; 22] = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 100, 128, 129];

fn check_sizes<T: Real>(sizes: impl Iterator<Item = (usize, usize)>, batches: &[usize]) {
    check_sizes_on::<T>(2, sizes, batches);
}

fn check_sizes_on<T: Real>(threads: usize, sizes: impl Iterator<Item = (usize, usize)>, batches: &[usize]) {
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    let mut worst = [0.0; 2];
    for (rows, cols) in sizes {
        for &batch in batches {
            for family in FAMILIES {
                let shape = Shape { batch, rows, cols };
                let items = (0..batch).flat_map(|_| matrix(family, rows, cols, &mut random));
                let a: Vec<T> = convert(&items.collect::<Vec<_>>());
                let inner = rows.min(cols);
                let (q, r) = factored(threads, &a, shape, inner, inner);
                check(family, shape, &a, &q, &r, inner, &mut worst);
                let (empty, r_alone) = factored(threads, &a, shape, 0, inner);
                assert!(empty.is_empty() && bits(&r) == bits(&r_alone), "R depends on whether Q is formed");
                if rows > cols {
                    let (q_full, r_full) = factored(threads, &a, shape, rows, rows);
                    check(family, shape, &a, &q_full, &r_full, rows, &mut worst);
                    // Unless so many columns of Q call for the other form.
                    let mut items = r_full.chunks(rows * cols).zip(r.chunks(cols * cols));
                    let same = items.all(|(full, r)| bits(&full[..r.len()]) == bits(r));
                    assert!(same || rows > 64, "{shape:?}: complete and reduced differ");
                }
            }
        }
    }
    println!("{}: worst ratio {:.2} below 16, {:.2} from 16 (aim 3 and 1)", T::DTYPE, worst[0], worst[1]);
}

#[test]
fn square_matrices_meet_the_bars_in_float32() {
    check_sizes::<f32>(SIZES.iter().map(|n| (*n, *n)), &[1, 19]);
}

#[test]
fn square_matrices_meet_the_bars_in_float64() {
    check_sizes::<f64>(SIZES.iter().map(|n| (*n, *n)), &[1, 11]);
}

#[test]
fn tall_and_wide_matrices_meet_the_bars() {
    let tall =
        [(2, 1), (3, 2), (9, 4), (17, 3), (33, 16), (64, 32), (65, 64), (66, 65), (130, 16), (140, 129), (150, 7)];
    let wide = tall.iter().map(|(m, n)| (*n, *m));
    let sizes: Vec<_> = tall.iter().copied().chain(wide).collect();
    check_sizes::<f32>(sizes.iter().copied(), &[2, 18]);
    check_sizes::<f64>(sizes.iter().copied(), &[3]);
}

#[test]
fn lesser_processors_meet_the_bars() {
    let sizes = [(1, 1), (5, 5), (8, 8), (17, 16), (16, 17), (33, 33), (64, 64), (65, 65), (70, 30), (30, 70)];
    for_each_width(|| {
        check_sizes_on::<f32>(1, sizes.into_iter(), &[1, 9]);
        check_sizes_on::<f64>(1, sizes.into_iter(), &[1, 5]);
    });
}

#[test]
fn large_matrices_meet_the_bars() {
    let mut random = Random::new(7);
    for (rows, cols) in [(257, 200), (200, 257), (520, 64), (1100, 33)] {
        for family in [Gaussian, Uniform, Graded, HalfRank] {
            let shape = Shape { batch: 1, rows, cols };
            let a: Vec<f32> = convert(&matrix(family, rows, cols, &mut random));
            let inner = rows.min(cols);
            let (q, r) = factored(3, &a, shape, inner, inner);
            check(family, shape, &a, &q, &r, inner, &mut [0.0; 2]);
        }
    }
}

#[test]
fn empty_sizes_are_valid() {
    for (batch, rows, cols) in [(0, 3, 3), (2, 0, 3), (2, 3, 0), (0, 0, 0), (4, 0, 0)] {
        let shape = Shape { batch, rows, cols };
        let (q, r) = factored::<f32>(2, &[], shape, rows, rows);
        let identity = |index: &usize| if index / rows % rows == index % rows { 1.0 } else { 0.0 };
        assert_eq!(q, (0..batch * rows * rows).map(|index| identity(&index)).collect::<Vec<f32>>());
        assert_eq!(r.len(), batch * rows * cols);
    }
}

fn check_laws<T: Real>(batch: usize, rows: usize, cols: usize) {
    let mut random = Random::new(0x5851_f42d_4c95_7f2d);
    let shape = Shape { batch, rows, cols };
    let size = rows * cols;
    let inner = rows.min(cols);
    let items: Vec<f64> =
        (0..batch).flat_map(|item| matrix(FAMILIES[item % FAMILIES.len()], rows, cols, &mut random)).collect();
    let a: Vec<T> = convert(&items);
    let (q, r) = factored(1, &a, shape, inner, inner);

    for threads in [2, 3, 5] {
        let again = factored(threads, &a, shape, inner, inner);
        assert_eq!((bits(&q), bits(&r)), (bits(&again.0), bits(&again.1)), "{shape:?} on {threads} threads");
    }

    let reversed: Vec<T> = a.chunks(size).rev().flatten().copied().collect();
    let (q_reversed, r_reversed) = factored(2, &reversed, shape, inner, inner);
    let unreverse = |values: &[T], size: usize| bits(&values.chunks(size).rev().flatten().copied().collect::<Vec<_>>());
    assert_eq!(bits(&q), unreverse(&q_reversed, rows * inner), "{shape:?} permuted");
    assert_eq!(bits(&r), unreverse(&r_reversed, inner * cols), "{shape:?} permuted");

    // Within the range of the type, and past the thresholds of rescaling.
    let exponents = if T::DTYPE == DType::F32 { [-40, -1, 30] } else { [-700, -1, 800] };
    let first = [Gaussian, Uniform, Condition1e6];
    let plain: Vec<T> = (0..batch).flat_map(|i| convert(&matrix(first[i % 3], rows, cols, &mut random))).collect();
    let (q, r) = factored(2, &plain, shape, inner, inner);
    for exponent in exponents {
        let scale = T::power_of_two(exponent);
        let scaled: Vec<T> = plain.iter().map(|entry| *entry * scale).collect();
        let (q_scaled, r_scaled) = factored(2, &scaled, shape, inner, inner);
        assert_eq!(bits(&q), bits(&q_scaled), "{shape:?} times 2^{exponent}");
        assert_eq!(bits(&r.iter().map(|entry| *entry * scale).collect::<Vec<_>>()), bits(&r_scaled));
    }
}

#[test]
fn bits_depend_on_neither_threads_nor_neighbours_nor_powers_of_two() {
    for (batch, rows, cols) in
        [(37, 3, 3), (21, 8, 8), (20, 17, 9), (19, 9, 17), (18, 33, 32), (2, 64, 64), (3, 70, 40)]
    {
        check_laws::<f32>(batch, rows, cols);
        check_laws::<f64>(batch, rows, cols);
    }
    check_laws::<f32>(5, 100, 130);
    check_laws::<f64>(2, 130, 100);
}

#[test]
fn a_matrix_with_nan_or_infinity_spoils_only_itself() {
    for (batch, n) in [(20, 6), (20, 16), (4, 40), (3, 70)] {
        let mut random = Random::new(3);
        let a: Vec<f32> = (0..batch).flat_map(|_| convert::<f32>(&matrix(Gaussian, n, n, &mut random))).collect();
        let shape = Shape { batch, rows: n, cols: n };
        let (q, r) = factored(2, &a, shape, n, n);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut spoilt = a.clone();
            spoilt[n * n + n + 1] = bad;
            let (q_spoilt, r_spoilt) = factored(2, &spoilt, shape, n, n);
            assert!(q_spoilt[n * n..2 * n * n].iter().any(|entry| entry.is_nan()));
            assert!(r_spoilt[n * n..2 * n * n].iter().any(|entry| entry.is_nan()));
            for item in (0..batch).filter(|item| *item != 1) {
                let range = item * n * n..(item + 1) * n * n;
                assert_eq!(bits(&q[range.clone()]), bits(&q_spoilt[range.clone()]));
                assert_eq!(bits(&r[range.clone()]), bits(&r_spoilt[range]));
            }
        }
    }
}

/// Entries near overflow, near underflow, and columns of both kinds in one matrix.
#[test]
fn extreme_entries_neither_overflow_nor_vanish() {
    for n in [5, 16, 40, 70] {
        for batch in [1, 18] {
            let mut random = Random::new(11);
            let shape = Shape { batch, rows: n, cols: n };
            for scale in [3e37, 1e-37] {
                let items = (0..batch).flat_map(|_| matrix(Uniform, n, n, &mut random));
                let a: Vec<f32> = items.map(|entry| (entry * scale) as f32).collect();
                let (q, r) = factored(2, &a, shape, n, n);
                check(Uniform, shape, &a, &q, &r, n, &mut [0.0; 2]);
            }
            // The last column alone is tiny: its reflectors are still accurate.
            let items = (0..batch).flat_map(|_| matrix(Gaussian, n, n, &mut random)).enumerate();
            let a: Vec<f32> =
                items.map(|(index, entry)| (if index % n < n / 2 { entry } else { entry * 1e-25 }) as f32).collect();
            let (q, r) = factored(2, &a, shape, n, n);
            check(Graded, shape, &a, &q, &r, n, &mut [0.0; 2]);
            let larger: Vec<f32> = a
                .iter()
                .enumerate()
                .map(|(index, entry)| if index % n < n / 2 { *entry } else { *entry * 2f32.powi(60) })
                .collect();
            let (q_larger, _) = factored(2, &larger, shape, n, n);
            let distance = q.iter().zip(&q_larger).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(distance < 1e-4 * n as f32, "n = {n}: tiny columns lost accuracy, {distance}");
        }
    }
}

#[test]
fn signs_are_those_of_lapack() {
    for batch in [1, 17] {
        // Zero tails: left alone, whatever the sign. Nonzero ones: the diagonal's sign flips.
        let one = [-2.0f32, 1.0, 0.0, 0.0, 3.0, 5.0, 0.0, -4.0, -7.0];
        let shape = Shape { batch, rows: 3, cols: 3 };
        let a: Vec<f32> = one.repeat(batch);
        let (q, r) = factored(2, &a, shape, 3, 3);
        for (q, r) in q.chunks(9).zip(r.chunks(9)) {
            assert_eq!((r[0], q[0]), (-2.0, 1.0));
            assert!((r[4] + 5.0).abs() < 1e-5 && r[4] < 0.0);
            // The last column has length 1: whatever sign it comes out with is kept.
            assert_eq!(q[0..3], [1.0, 0.0, 0.0]);
        }
        let row = Shape { batch, rows: 1, cols: 4 };
        let a: Vec<f32> = [-3.0f32, 2.0, 0.0, 1.0].repeat(batch);
        let (q, r) = factored(2, &a, row, 1, 1);
        assert!(q.iter().all(|entry| *entry == 1.0));
        assert_eq!(r, a);
        let column = Shape { batch, rows: 4, cols: 1 };
        let (_, r) = factored(2, &a, column, 1, 1);
        assert!(r.iter().all(|entry| (entry - 14f32.sqrt()).abs() < 1e-5));
    }
}
