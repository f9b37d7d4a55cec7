//! Every word of the vocabulary does what it says, in float32 and in float64.

use crate::support::{self, Memory, Number, run};
use metalcore_emulator::{Library, Options, Schedule};

const BODY: &str = include_str!("kernels/vocabulary.metal");

fn library(float64: bool) -> Library {
    let defines: &[_] = if float64 { &[("GK_F64", 1)] } else { &[] };
    support::library(defines, "vocabulary.metal", BODY).unwrap()
}

const SCHEDULES: [Schedule; 4] = [Schedule::Forward, Schedule::Reverse, Schedule::Random(1), Schedule::Random(2)];

/// A real of either width.
trait Real: Number + Into<f64> {
    const UNIT: f64;
    const TINY: f64;
    const HUGE: f64;
    fn from_f64(x: f64) -> Self;
}
impl Real for f32 {
    const UNIT: f64 = f32::EPSILON as f64 / 2.0;
    const TINY: f64 = f32::MIN_POSITIVE as f64;
    const HUGE: f64 = f32::MAX as f64;
    fn from_f64(x: f64) -> f32 {
        x as f32
    }
}
impl Real for f64 {
    const UNIT: f64 = f64::EPSILON / 2.0;
    const TINY: f64 = f64::MIN_POSITIVE;
    const HUGE: f64 = f64::MAX;
    fn from_f64(x: f64) -> f64 {
        x
    }
}

/// The rows of `reals` that kernel `words` writes.
fn expected_reals<R: Real>(s: f64, n: usize, shared_before: f64) -> Vec<[f64; 64]> {
    let x = |t: usize| 0.25 * t as f64 - 3.0;
    let simd = |t: usize| (t / 32 * 32..).take(32);
    let row = |f: &dyn Fn(usize) -> f64| std::array::from_fn(f);
    let vector = |t: usize| [0.0, 1.0, 2.0, 3.0].map(|k| x(t) + k);
    vec![
        row(&|t| simd(t).map(x).sum()),
        row(&|t| x(t | 31)),
        row(&|t| x(t & !31)),
        row(&|t| x((t & 32) + 31 - (t & 31))),
        row(&|t| x(t ^ 5)),
        row(&|_| (0..64).map(x).sum()),
        row(&|_| x(63)),
        row(&|t| x(t).abs().sqrt()),
        row(&|t| 1.0 / (x(t).abs() + 1.0).sqrt()),
        row(&|t| 1.0 / (x(t).abs() + 1.0).sqrt()),
        row(&|t| 1.0 / (x(t).abs() + 1.0)),
        row(&|t| x(t).exp()),
        row(&|t| (x(t).abs() + 1.0).ln()),
        row(&|t| x(t).floor()),
        row(&|t| x(t).abs()),
        row(&|t| x(t).max(1.0)),
        row(&|t| x(t).min(1.0)),
        row(&|t| x(t) * x(t) - x(t)),
        row(&|t| 2f64.copysign(x(t))),
        row(&|t| [1.0, 2.0, 4.0, 8.0][t & 3]),
        row(&|t| x(t) + 3.0 + s),
        row(&|_| (0..n).map(|i| 2.0 * i as f64).sum()),
        row(&|t| vector(t).iter().map(|v| (v + 1.0) * v * (v - 2.0) * 0.5).sum()),
        row(&|t| vector(63 - t).iter().zip([1.0, 10.0, 100.0, 1000.0]).map(|(v, w)| v * w).sum()),
        row(&|t| x(t ^ 1)),
        row(&|t| shared_before + x(63 - t)),
        row(&x),
        row(&|_| f64::INFINITY),
        row(&|_| R::UNIT),
        row(&|_| R::TINY),
        row(&|_| R::HUGE),
    ]
}

/// The rows of `uints`.
fn expected_uints() -> Vec<[u32; 64]> {
    let row = |f: &dyn Fn(u32) -> u32| std::array::from_fn(|t| f(t as u32));
    vec![
        row(&|t| (t / 32 * 32..).take(32).sum()),
        row(&|t| t | 31),
        row(&|t| t & !31),
        row(&|t| (t & 32) + 31 - (t & 31)),
        row(&|t| t ^ 5),
        row(&|t| t / 32),
        row(&|t| 1 - t / 32),
        row(&|_| 1),
        row(&|t| t.min(5)),
        row(&|t| t.max(5)),
        row(&|_| 0),
        row(&|_| 1),
        row(&|_| 0),
        row(&|t| t % 32 + t / 32 * 100),
        row(&|t| 3071 + 100 * t),
        row(&|t| (1 << 31) + t / 2),
    ]
}

fn words_are_right<R: Real>(library: &Library, schedule: Schedule) {
    let n = 5usize;
    let counts: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let halves: Vec<u16> = counts.iter().map(|x| half::f16::from_f32(*x).to_bits()).collect();
    let bfloats: Vec<u16> = counts.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
    let (s, before) = (0.5, 7.0);
    let (reals, uints) = (expected_reals::<R>(s, n, before), expected_uints());

    let mut h = Memory::of(&halves);
    let mut b = Memory::of(&bfloats);
    let mut out_reals = Memory::new::<R>(64 * reals.len());
    let mut out_uints = Memory::new::<u32>(64 * uints.len());
    let mut shared = Memory::of(&[R::from_f64(before); 66]);
    let mut counter = Memory::of(&[0u32, 1]);
    let memory = &mut [&mut h, &mut b, &mut out_reals, &mut out_uints, &mut shared, &mut counter];
    let params = [n as u32, (s as f32).to_bits()];
    let stats = run(library, "words", 1, memory, &params, &Options { schedule, ..Options::default() }).unwrap();

    for (k, (row, got)) in reals.iter().zip(out_reals.to::<R>().chunks(64)).enumerate() {
        for t in 0..64 {
            let (expected, got): (f64, f64) = (row[t], got[t].into());
            // a few operations, each with one rounding; exp is a library's
            let bound = 16.0 * R::UNIT * expected.abs().max(1.0);
            assert!(
                got == expected || (got - expected).abs() <= bound,
                "reals, row {k}, thread {t}: {got}, not {expected}"
            );
        }
    }
    for (k, (row, got)) in uints.iter().zip(out_uints.to::<u32>().chunks(64)).enumerate() {
        assert_eq!(got, row, "uints, row {k}");
    }
    assert_eq!(counter.to::<u32>(), [0, 1 + 63 * 64 / 2]);
    let added: [f64; 2] = [64, 65].map(|i| shared.to::<R>()[i].into());
    assert_eq!(added, [before + 312.0, 2.5]);
    assert_eq!(stats.threadgroup_bytes as usize, 32 + 256 * size_of::<R>());
}

#[test]
fn words_are_right_in_float32() {
    for schedule in SCHEDULES {
        words_are_right::<f32>(&library(false), schedule);
    }
}

#[test]
fn words_are_right_in_float64() {
    for schedule in SCHEDULES {
        words_are_right::<f64>(&library(true), schedule);
    }
}

fn doubled<T: Number + PartialEq + std::fmt::Debug>(library: &Library, kernel: &str, encode: impl Fn(f32) -> T) {
    let n = 16 * 40;
    let mut x = Memory::of(&(0..n).map(|i| encode((i % 128) as f32)).collect::<Vec<_>>());
    let mut y = Memory::new::<T>(n);
    run(library, kernel, 1, &mut [&mut x, &mut y], &[n as u32, 0], &Options::default()).unwrap();
    assert_eq!(y.to::<T>(), (0..n).map(|i| encode(2.0 * (i % 128) as f32)).collect::<Vec<_>>(), "{kernel}");
}

#[test]
fn vector_words_move_every_storage_type() {
    for float64 in [false, true] {
        let library = library(float64);
        doubled(&library, "double_f32", |x| x);
        doubled(&library, "double_f16", |x| half::f16::from_f32(x).to_bits());
        doubled(&library, "double_bf16", |x| half::bf16::from_f32(x).to_bits());
    }
    doubled(&library(true), "double_f64", f64::from);
}

#[test]
fn kernels_are_described() {
    let library = library(false);
    let names: Vec<_> = library.kernels().iter().map(|kernel| kernel.name.as_str()).collect();
    assert_eq!(names, ["words", "double_f32", "double_f16", "double_bf16", "widen", "narrow"]);
    let words = &library.kernels()[0];
    assert_eq!(words.threads, 64);
    let args: Vec<_> =
        words.args.iter().map(|arg| format!("{} {:?} {}", arg.name, arg.kind, arg.element_bytes)).collect();
    assert_eq!(
        args,
        ["h In 2", "b In 2", "reals Out 4", "uints Out 4", "shared InOut 4", "counter InOut 4", "p Params 8"]
    );
}
