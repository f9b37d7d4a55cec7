//! Test support: one body, every device; matrices that break algorithms.

use crate::device::Device;
use crate::dtype::{DType, Element};

/// Makes a test of a body for each device: `each_device!(name, body)`, `body: fn(&D)`. An absent GPU is reported.
#[macro_export]
#[doc(hidden)]
macro_rules! each_device {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            #[test]
            fn cpu() {
                super::$name(&$crate::device::cpu::Cpu::new());
            }
            #[cfg(feature = "emulator")]
            #[test]
            fn emulator() {
                super::$name(&$crate::device::emulator::Emulator::new());
            }
            #[cfg(feature = "cuda")]
            #[test]
            fn cuda() {
                match $crate::device::cuda::available() {
                    true => super::$name(&$crate::device::cuda::Cuda::new(0).expect("a GPU is there")),
                    false => eprintln!("skipped: no NVIDIA GPU"),
                }
            }
        }
    )* };
}

/// Numbers from a seed (xorshift64*), the same everywhere.
pub struct Random(u64);

impl Random {
    /// A sequence.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// Uniform in (0, 1).
    pub fn uniform(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }
    /// Standard normal (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }
    /// Standard normal values.
    pub fn normals<T: Element>(&mut self, count: usize) -> Vec<T> {
        (0..count).map(|_| T::from_f64(self.normal())).collect()
    }
}

/// Whether a device computes in float64.
pub fn has_float64(device: &impl Device) -> bool {
    device.caps().float64
}

/// In float64.
pub fn wide<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64()).collect()
}

/// (8 + log2 k) w, w the roundoff of the type sums are kept in.
pub fn gamma(k: usize, dtype: DType) -> f64 {
    (8.0 + (k as f64).log2()) * dtype.compute().unit_roundoff()
}

/// Roundoff of a 16-bit result; 0 of others.
pub fn rho(dtype: DType) -> f64 {
    if dtype.size() == 2 { dtype.unit_roundoff() } else { 0.0 }
}

/// Every element is within its bound before it is rounded once. Half the smallest subnormal number of float16, and `least`
/// of other types, is allowed besides.
pub fn within<T: Element>(what: &str, got: &[T], exact: &[f64], least: f64, bound: impl Fn(usize) -> f64) {
    let rho = rho(T::DTYPE);
    let floor = if T::DTYPE == DType::F16 { 2f64.powi(-25) } else { least };
    assert_eq!(got.len(), exact.len(), "{what}");
    for (i, (got, exact)) in got.iter().zip(exact).enumerate() {
        let error = (got.to_f64() - exact).abs();
        let allowed = rho * exact.abs() + bound(i) * (1.0 + rho) + floor;
        assert!(error <= allowed, "{what}: element {i}: got {got:?}, exact {exact}, allowed {allowed:e}");
    }
}

/// Bits of values, for exact comparisons that treat NaN as equal to itself.
pub fn bits<T: Element>(values: &[T]) -> Vec<u64> {
    values.iter().map(|v| v.to_f64().to_bits()).collect()
}

/// The families that break factorisations (DESIGN section 8), rows x cols, row-major, in float64.
pub fn families(rows: usize, cols: usize, random: &mut Random) -> Vec<(&'static str, Vec<f64>)> {
    let dense: Vec<f64> = (0..rows * cols).map(|_| random.normal()).collect();
    let at = |f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        (0..rows * cols).map(|e| f(e / cols.max(1), e % cols.max(1))).collect()
    };
    let with = |f: &dyn Fn(f64, usize, usize) -> f64| at(&|i, j| f(dense[i * cols + j], i, j));
    let rank = rows.min(cols).div_ceil(2).max(1);
    let left: Vec<f64> = (0..rows * rank).map(|_| random.normal()).collect();
    let right: Vec<f64> = (0..rank * cols).map(|_| random.normal()).collect();
    let span = cols.max(2) as f64 - 1.0;
    vec![
        ("gaussian", dense.clone()),
        ("uniform", (0..rows * cols).map(|_| random.uniform()).collect()),
        ("rank K/2", at(&|i, j| (0..rank).map(|l| left[i * rank + l] * right[l * cols + j]).sum())),
        ("condition 1e6", with(&|v, _, j| v * 1e-6f64.powf(j as f64 / span))),
        ("graded 1e8", with(&|v, _, j| v * 1e8f64.powf(j as f64 / span))),
        ("scaled 1e18", with(&|v, _, _| v * 1e18)),
        ("scaled 1e-18", with(&|v, _, _| v * 1e-18)),
        ("identity", at(&|i, j| f64::from(u8::from(i == j)))),
        ("zero", vec![0.0; rows * cols]),
        ("Hilbert", at(&|i, j| 1.0 / (i + j + 1) as f64)),
        ("repeated columns", with(&|_, i, _| dense[i * cols])),
        ("first column zero", with(&|v, _, j| if j == 0 { 0.0 } else { v })),
    ]
}

/// A symmetric positive definite n x n matrix of condition about 10: G G' / n + I.
pub fn definite(n: usize, random: &mut Random) -> Vec<f64> {
    let g: Vec<f64> = (0..n * n).map(|_| random.normal()).collect();
    product_with_transpose(n, &g, 1.0 / n as f64, 1.0)
}

/// s G G' + t I.
fn product_with_transpose(n: usize, g: &[f64], s: f64, t: f64) -> Vec<f64> {
    let entry = |i: usize, j: usize| {
        let product: f64 = (0..n).map(|k| g[i * n + k] * g[j * n + k]).sum();
        s * product + if i == j { t } else { 0.0 }
    };
    (0..n * n).map(|e| entry(e / n, e % n)).collect()
}

/// Positive definite matrices that stay so when they are rounded to float32.
pub fn definite_families(n: usize, random: &mut Random) -> Vec<(&'static str, Vec<f64>)> {
    let dense: Vec<f64> = (0..n * n).map(|_| random.normal()).collect();
    let well = product_with_transpose(n, &dense, 1.0 / n as f64, 1.0);
    let span = n.max(2) as f64 - 1.0;
    let scaled = |f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        well.iter().enumerate().map(|(e, v)| v * f(e / n, e % n)).collect()
    };
    let grade = |i: usize| 1e4f64.powf(i as f64 / span);
    let mut thin = dense.clone();
    thin.iter_mut().enumerate().filter(|(e, _)| e % n >= n.div_ceil(2)).for_each(|(_, v)| *v = 0.0);
    vec![
        ("well conditioned", well.clone()),
        ("rank N/2 and a little", product_with_transpose(n, &thin, 1.0, 1e-3 * n as f64)),
        ("graded 1e8", scaled(&|i, j| grade(i) * grade(j))),
        ("graded 1e-8", scaled(&|i, j| 1.0 / (grade(i) * grade(j)))),
        ("scaled 1e30", scaled(&|_, _| 1e30)),
        ("scaled 1e-30", scaled(&|_, _| 1e-30)),
        ("identity", (0..n * n).map(|e| f64::from(u8::from(e / n == e % n))).collect()),
    ]
}
