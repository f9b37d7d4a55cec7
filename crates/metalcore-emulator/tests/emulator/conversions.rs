//! The storage types: every 16-bit value widens as the crate `half` says, and narrowing rounds once, to nearest even.

use crate::support::{self, Memory, run};
use half::{bf16, f16};
use metalcore_emulator::{Library, Options};

const BODY: &str = include_str!("kernels/vocabulary.metal");

fn library(float64: bool) -> Library {
    let defines: &[_] = if float64 { &[("GK_F64", 1)] } else { &[] };
    support::library(defines, "vocabulary.metal", BODY).unwrap()
}

/// Denormals count here.
fn options() -> Options {
    Options { flush_denormals: false, ..Options::default() }
}

/// What the kernel `narrow` makes of float32 values: half, bfloat, float.
fn narrow_f32(x: &[f32]) -> [Memory; 3] {
    let n = x.len();
    let mut out = [Memory::new::<u16>(n), Memory::new::<u16>(n), Memory::new::<f32>(n)];
    let [h, b, f] = &mut out;
    run(
        &library(false),
        "narrow",
        n.div_ceil(32) as u32,
        &mut [&mut Memory::of(x), h, b, f],
        &[n as u32, 0],
        &options(),
    )
    .unwrap();
    out
}

fn narrow_f64(x: &[f64]) -> [Memory; 3] {
    let n = x.len();
    let mut out = [Memory::new::<u16>(n), Memory::new::<u16>(n), Memory::new::<f32>(n)];
    let [h, b, f] = &mut out;
    run(
        &library(true),
        "narrow",
        n.div_ceil(32) as u32,
        &mut [&mut Memory::of(x), h, b, f],
        &[n as u32, 0],
        &options(),
    )
    .unwrap();
    out
}

fn assert_half(x: f64, got: u16, expected: f16) {
    let got = f16::from_bits(got);
    assert!(
        got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(),
        "half of {x:e}: {got:?}, not {expected:?}"
    );
}
fn assert_bfloat(x: f64, got: u16, expected: bf16) {
    let got = bf16::from_bits(got);
    assert!(
        got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(),
        "bfloat of {x:e}: {got:?}, not {expected:?}"
    );
}

/// Every value of both 16-bit types, widened by `half`.
fn all_values() -> Vec<f32> {
    (0..=u16::MAX).flat_map(|bits| [f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32()]).collect()
}

#[test]
fn every_16_bit_value_widens_exactly() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let n = all.len();
    let mut from_half = Memory::new::<f32>(n);
    let mut from_bfloat = Memory::new::<f32>(n);
    let memory = &mut [&mut Memory::of(&all), &mut Memory::of(&all), &mut from_half, &mut from_bfloat];
    run(&library(false), "widen", n as u32 / 32, memory, &[n as u32, 0], &options()).unwrap();
    for (bits, (h, b)) in all.iter().zip(from_half.to::<f32>().into_iter().zip(from_bfloat.to::<f32>())) {
        let (expected_h, expected_b) = (f16::from_bits(*bits).to_f32(), bf16::from_bits(*bits).to_f32());
        assert!(h.to_bits() == expected_h.to_bits() || h.is_nan() && expected_h.is_nan(), "half {bits:#x}");
        assert!(b.to_bits() == expected_b.to_bits() || b.is_nan() && expected_b.is_nan(), "bfloat {bits:#x}");
    }
}

#[test]
fn every_16_bit_value_comes_back() {
    let values = all_values();
    let [h, b, f] = narrow_f32(&values);
    let (h, b, f) = (h.to::<u16>(), b.to::<u16>(), f.to::<f32>());
    for bits in 0..=u16::MAX {
        let at = 2 * usize::from(bits);
        assert_half(values[at].into(), h[at], f16::from_bits(bits));
        assert_bfloat(values[at + 1].into(), b[at + 1], bf16::from_bits(bits));
        assert!(f[at].to_bits() == values[at].to_bits() || values[at].is_nan());
    }
}

/// Around each 16-bit value and each midpoint between two: the float32 values that decide the rounding.
#[test]
fn float32_rounds_to_nearest_even() {
    let mut values = Vec::new();
    for bits in 0..=u16::MAX {
        let next = bits.wrapping_add(1);
        for (low, high) in [
            (f16::from_bits(bits).to_f32(), f16::from_bits(next).to_f32()),
            (bf16::from_bits(bits).to_f32(), bf16::from_bits(next).to_f32()),
        ] {
            let middle = ((f64::from(low) + f64::from(high)) / 2.0) as f32;
            values.extend([middle, middle.next_up(), middle.next_down(), low.next_up(), low.next_down()]);
        }
    }
    let [h, b, _] = narrow_f32(&values);
    for ((x, h), b) in values.iter().zip(h.to::<u16>()).zip(b.to::<u16>()) {
        assert_half((*x).into(), h, f16::from_f32(*x));
        assert_bfloat((*x).into(), b, bf16::from_f32(*x));
    }
}

/// A double just beside a midpoint: rounding by way of float32 would lose on which side it lies.
#[test]
fn float64_rounds_once() {
    let mut values =
        vec![0.0, -0.0, f64::NAN, f64::INFINITY, 1e300, -1e300, 1e-300, 65519.999999, 65520.0, 3.4e38, 3.39e38];
    for bits in (0..=u16::MAX).step_by(7) {
        let next = bits.wrapping_add(1);
        for (low, high) in [
            (f16::from_bits(bits).to_f64(), f16::from_bits(next).to_f64()),
            (bf16::from_bits(bits).to_f64(), bf16::from_bits(next).to_f64()),
        ] {
            let middle = (low + high) / 2.0;
            values.extend([middle, middle.next_up(), middle.next_down()]);
        }
    }
    let [h, b, f] = narrow_f64(&values);
    let (h, b, f) = (h.to::<u16>(), b.to::<u16>(), f.to::<f32>());
    for (i, x) in values.iter().enumerate() {
        assert_half(
            *x,
            h[i],
            nearest(*x, f16::from_f32(*x as f32), 2f64.powi(16), f16::to_f64, f16::to_bits, f16::from_bits),
        );
        assert_bfloat(
            *x,
            b[i],
            nearest(*x, bf16::from_f32(*x as f32), 2f64.powi(128), bf16::to_f64, bf16::to_bits, bf16::from_bits),
        );
        assert!(f[i].to_bits() == (*x as f32).to_bits() || x.is_nan());
    }
}

/// The 16-bit number nearest to x, ties to even, from a guess that is at most one step off. `infinity` is where
/// the next finite number would be.
fn nearest<H: Copy>(x: f64, guess: H, infinity: f64, value: fn(H) -> f64, bits: fn(H) -> u16, from: fn(u16) -> H) -> H {
    if x.is_nan() {
        return guess;
    }
    let place = |h: &H| value(*h).clamp(-infinity, infinity);
    let near = [0, 1, u16::MAX].map(|step| from(bits(guess).wrapping_add(step)));
    near.into_iter()
        .filter(|h| !value(*h).is_nan() && value(*h).is_sign_negative() == x.is_sign_negative())
        .min_by(|a, b| {
            let distance = |h| (place(h) - x).abs();
            distance(a).total_cmp(&distance(b)).then((bits(*a) & 1).cmp(&(bits(*b) & 1)))
        })
        .unwrap_or(guess)
}
