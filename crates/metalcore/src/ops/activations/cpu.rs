//! Activations on the host: every tensor is read or written once; values are widened and rounded in registers.
//!
//! The gradient of a bias is summed over fixed groups of rows, then over the groups, both in order: its bits do not
//! depend on the number of threads.

use super::Function;
use crate::device::cpu::Threads;
use crate::device::cpu::simd::{Real, Simd, Storage, WithSimd, dispatch, polynomial, stream};

/// Elements that a thread takes at a time: more work than the taking.
const CHUNK: usize = 16 * 1024;
/// Rows whose bias gradients are summed one after the other.
const SUMMED_ROWS: usize = 32;
/// Largest number of partial bias gradients.
const PARTIALS: usize = 64;

/// What stands beside x. A bias comes in the type that is computed in.
#[derive(Clone, Copy)]
pub enum Beside<'a, T: Storage> {
    /// Nothing.
    Nothing,
    /// (cols).
    Bias(&'a [T::Compute]),
    /// (rows, cols).
    Up(&'a [T]),
}

impl<T: Storage> Beside<'_, T> {
    /// That of the elements `from..from + len`.
    fn part(&self, from: usize, len: usize) -> Self {
        match self {
            Beside::Up(up) => Beside::Up(&up[from..from + len]),
            _ => *self,
        }
    }

    /// Elements from one repetition to the next; a chunk where it does not repeat.
    fn row(&self) -> usize {
        if let Beside::Bias(bias) = self { bias.len() } else { CHUNK }
    }
}

/// y = f(x), f(x + bias) or f(x) up.
pub fn forward<T: Storage<Compute: Tail>>(
    threads: &Threads,
    function: Function,
    x: &[T],
    beside: Beside<'_, T>,
    y: &mut [T],
) {
    assert_eq!(x.len(), y.len());
    let row = beside.row();
    if row == 0 {
        return;
    }
    let size = (CHUNK / row).max(1) * row;
    let streamed = stream::wanted(y, row);
    let mut chunks: Vec<_> = x
        .chunks(size)
        .zip(y.chunks_mut(size))
        .enumerate()
        .map(|(i, (x, y))| Values { function, row, x, beside: beside.part(i * size, x.len()), y, streamed })
        .collect();
    threads.for_each_mut(&mut chunks, 1, |chunk| dispatch(chunk));
}

/// dx and the gradient of what stands beside x: `d_up`, or the sums of a bias, which are returned.
pub fn backward<T: Storage<Compute: Tail>>(
    threads: &Threads,
    function: Function,
    dy: &[T],
    x: &[T],
    beside: Beside<'_, T>,
    dx: &mut [T],
    d_up: &mut [T],
) -> Vec<T::Compute> {
    assert!(dy.len() == x.len() && dx.len() == x.len());
    let row = beside.row();
    let bias = if let Beside::Bias(bias) = beside { bias.len() } else { 0 };
    if row == 0 || x.is_empty() {
        return vec![T::Compute::default(); bias];
    }
    let size = if bias > 0 { (x.len() / row).div_ceil(PARTIALS).max(SUMMED_ROWS) * row } else { CHUNK };
    let streamed = stream::wanted(dx, row);
    let mut sums = vec![T::Compute::default(); if bias > 0 { x.len().div_ceil(size) * row } else { 0 }];
    let (mut sum_rows, mut d_ups) = (sums.chunks_mut(row), d_up.chunks_mut(size));
    let mut chunks: Vec<_> = dx
        .chunks_mut(size)
        .enumerate()
        .map(|(i, dx)| {
            let at = i * size..i * size + dx.len();
            let beside = beside.part(at.start, dx.len());
            let (d_up, sums) = (d_ups.next().unwrap_or_default(), sum_rows.next().unwrap_or_default());
            Slopes { function, row, dy: &dy[at.clone()], x: &x[at], beside, dx, d_up, sums, streamed }
        })
        .collect();
    threads.for_each_mut(&mut chunks, 1, |chunk| dispatch(chunk));
    drop(chunks);
    if bias > 0 {
        let (total, rest) = sums.split_at_mut(row);
        for partial in rest.chunks_exact(row) {
            total.iter_mut().zip(partial).for_each(|(total, partial)| *total += *partial);
        }
        sums.truncate(row);
    }
    sums
}

/// Some rows of the forward pass.
struct Values<'a, T: Storage> {
    function: Function,
    row: usize,
    x: &'a [T],
    beside: Beside<'a, T>,
    y: &'a mut [T],
    streamed: bool,
}

impl<T: Storage<Compute: Tail>> WithSimd for &mut Values<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.function {
            Function::Silu => self.all::<S, Silu>(simd),
            Function::Gelu => self.all::<S, Gelu>(simd),
            Function::GeluTanh => self.all::<S, GeluTanh>(simd),
        }
        stream::finish();
    }
}

impl<T: Storage<Compute: Tail>> Values<'_, T> {
    #[inline(always)]
    fn all<S: Simd, F: Curve>(&mut self, simd: S) {
        let (x, y, streamed) = (self.x, &mut *self.y, self.streamed);
        match self.beside {
            Beside::Nothing => values::<T, T, S, F, ALONE>(simd, x, x, y, streamed),
            Beside::Up(up) => values::<T, T, S, F, UP>(simd, x, up, y, streamed),
            Beside::Bias(bias) => {
                for (x, y) in x.chunks(self.row).zip(y.chunks_mut(self.row)) {
                    values::<T, T::Compute, S, F, BIAS>(simd, x, bias, y, streamed);
                }
            }
        }
    }
}

/// The forms.
const ALONE: u8 = 0;
const BIAS: u8 = 1;
const UP: u8 = 2;

/// y of one row; `second` is not looked at where x is alone.
#[inline(always)]
fn values<T: Storage<Compute: Tail>, B: Storage, S: Simd, F: Curve, const FORM: u8>(
    simd: S,
    x: &[T],
    second: &[B],
    y: &mut [T],
    streamed: bool,
) {
    let lanes = T::Compute::lanes::<S>();
    let (mut x, mut second, mut y) =
        (x.chunks_exact(lanes), second[..x.len()].chunks_exact(lanes), y.chunks_exact_mut(lanes));
    for ((x, second), y) in (&mut x).zip(&mut second).zip(&mut y) {
        let (x, second) = (T::Compute::load(simd, x), T::Compute::load(simd, second));
        let value = formed::<T::Compute, S, F, FORM>(simd, x, second);
        if streamed {
            stream::store::<T::Compute, S, T>(simd, value, y);
        } else {
            T::Compute::store(simd, value, y);
        }
    }
    let (x, second) = (x.remainder(), second.remainder());
    let (x, second) = (T::Compute::load_part(simd, x), T::Compute::load_part(simd, second));
    let rest = formed::<T::Compute, S, F, FORM>(simd, x, second);
    T::Compute::store_part(simd, rest, y.into_remainder());
}

/// y from registers of the operands.
#[inline(always)]
fn formed<C: Tail, S: Simd, F: Curve, const FORM: u8>(simd: S, x: C::Vector<S>, second: C::Vector<S>) -> C::Vector<S> {
    match FORM {
        ALONE => value::<C, S, F>(simd, x),
        BIAS => value::<C, S, F>(simd, C::vadd(simd, x, second)),
        _ => C::vmul(simd, value::<C, S, F>(simd, x), second),
    }
}

/// Some rows of the backward pass.
struct Slopes<'a, T: Storage> {
    function: Function,
    row: usize,
    dy: &'a [T],
    x: &'a [T],
    beside: Beside<'a, T>,
    dx: &'a mut [T],
    d_up: &'a mut [T],
    sums: &'a mut [T::Compute],
    streamed: bool,
}

impl<T: Storage<Compute: Tail>> WithSimd for &mut Slopes<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.function {
            Function::Silu => self.all::<S, Silu>(simd),
            Function::Gelu => self.all::<S, Gelu>(simd),
            Function::GeluTanh => self.all::<S, GeluTanh>(simd),
        }
        stream::finish();
    }
}

impl<T: Storage<Compute: Tail>> Slopes<'_, T> {
    #[inline(always)]
    fn all<S: Simd, F: Curve>(&mut self, simd: S) {
        let (dy, x, dx, streamed) = (self.dy, self.x, &mut *self.dx, self.streamed);
        match self.beside {
            Beside::Nothing => slopes::<T, S, F>(simd, dy, x, dx, streamed),
            Beside::Up(up) => gated_slopes::<T, S, F>(simd, dy, x, up, dx, self.d_up, streamed),
            Beside::Bias(bias) => {
                let rows = dy.chunks(self.row).zip(x.chunks(self.row)).zip(dx.chunks_mut(self.row));
                for ((dy, x), dx) in rows {
                    bias_slopes::<T, S, F>(simd, dy, x, bias, dx, self.sums, streamed);
                }
            }
        }
    }
}

/// Stores a register.
#[inline(always)]
fn put<T: Storage, S: Simd>(simd: S, v: <T::Compute as Real>::Vector<S>, to: &mut [T], streamed: bool) {
    if streamed {
        stream::store::<T::Compute, S, T>(simd, v, to);
    } else {
        T::Compute::store(simd, v, to);
    }
}

/// dy f'(x)
#[inline(always)]
fn sloped<C: Tail, S: Simd, F: Curve>(simd: S, dy: C::Vector<S>, x: C::Vector<S>) -> C::Vector<S> {
    C::vmul(simd, dy, curve::<C, S, F>(simd, x).1)
}

/// dy up f'(gate) and dy f(gate)
#[inline(always)]
fn both<C: Tail, S: Simd, F: Curve>(
    simd: S,
    dy: C::Vector<S>,
    gate: C::Vector<S>,
    up: C::Vector<S>,
) -> (C::Vector<S>, C::Vector<S>) {
    let (value, slope) = curve::<C, S, F>(simd, gate);
    (C::vmul(simd, C::vmul(simd, dy, up), slope), C::vmul(simd, dy, value))
}

/// dx = dy f'(x)
#[inline(always)]
fn slopes<T: Storage<Compute: Tail>, S: Simd, F: Curve>(simd: S, dy: &[T], x: &[T], dx: &mut [T], streamed: bool) {
    let lanes = T::Compute::lanes::<S>();
    let whole = dx.len() / lanes * lanes;
    for at in (0..whole).step_by(lanes).map(|i| i..i + lanes) {
        let d = sloped::<T::Compute, S, F>(
            simd,
            T::Compute::load(simd, &dy[at.clone()]),
            T::Compute::load(simd, &x[at.clone()]),
        );
        put::<T, S>(simd, d, &mut dx[at], streamed);
    }
    let d = sloped::<T::Compute, S, F>(
        simd,
        T::Compute::load_part(simd, &dy[whole..]),
        T::Compute::load_part(simd, &x[whole..]),
    );
    T::Compute::store_part(simd, d, &mut dx[whole..]);
}

/// dx = dy f'(x + b); sums += dx before it is rounded
#[inline(always)]
fn bias_slopes<T: Storage<Compute: Tail>, S: Simd, F: Curve>(
    simd: S,
    dy: &[T],
    x: &[T],
    bias: &[T::Compute],
    dx: &mut [T],
    sums: &mut [T::Compute],
    streamed: bool,
) {
    let lanes = T::Compute::lanes::<S>();
    let whole = dx.len() / lanes * lanes;
    for at in (0..whole).step_by(lanes).map(|i| i..i + lanes) {
        let (dy, x) = (T::Compute::load(simd, &dy[at.clone()]), T::Compute::load(simd, &x[at.clone()]));
        let x = T::Compute::vadd(simd, x, T::Compute::load(simd, &bias[at.clone()]));
        let d = sloped::<T::Compute, S, F>(simd, dy, x);
        put::<T, S>(simd, d, &mut dx[at.clone()], streamed);
        let sum = T::Compute::vadd(simd, T::Compute::load(simd, &sums[at.clone()]), d);
        T::Compute::store(simd, sum, &mut sums[at]);
    }
    let (dy, x) = (T::Compute::load_part(simd, &dy[whole..]), T::Compute::load_part(simd, &x[whole..]));
    let x = T::Compute::vadd(simd, x, T::Compute::load_part(simd, &bias[whole..]));
    let d = sloped::<T::Compute, S, F>(simd, dy, x);
    T::Compute::store_part(simd, d, &mut dx[whole..]);
    let sum = T::Compute::vadd(simd, T::Compute::load_part(simd, &sums[whole..]), d);
    T::Compute::store_part(simd, sum, &mut sums[whole..]);
}

/// d_gate = dy up f'(gate), d_up = dy f(gate)
#[inline(always)]
fn gated_slopes<T: Storage<Compute: Tail>, S: Simd, F: Curve>(
    simd: S,
    dy: &[T],
    gate: &[T],
    up: &[T],
    d_gate: &mut [T],
    d_up: &mut [T],
    streamed: bool,
) {
    let lanes = T::Compute::lanes::<S>();
    let whole = d_gate.len() / lanes * lanes;
    for at in (0..whole).step_by(lanes).map(|i| i..i + lanes) {
        let (dy, gate) = (T::Compute::load(simd, &dy[at.clone()]), T::Compute::load(simd, &gate[at.clone()]));
        let (by_gate, by_up) = both::<T::Compute, S, F>(simd, dy, gate, T::Compute::load(simd, &up[at.clone()]));
        put::<T, S>(simd, by_gate, &mut d_gate[at.clone()], streamed);
        put::<T, S>(simd, by_up, &mut d_up[at], streamed);
    }
    let (dy, gate) = (T::Compute::load_part(simd, &dy[whole..]), T::Compute::load_part(simd, &gate[whole..]));
    let (by_gate, by_up) = both::<T::Compute, S, F>(simd, dy, gate, T::Compute::load_part(simd, &up[whole..]));
    T::Compute::store_part(simd, by_gate, &mut d_gate[whole..]);
    T::Compute::store_part(simd, by_up, &mut d_up[whole..]);
}

/// f(x) = max(x, 0) - a c
#[inline(always)]
fn value<C: Tail, S: Simd, F: Curve>(simd: S, x: C::Vector<S>) -> C::Vector<S> {
    let a = magnitude::<C, S, F>(simd, x);
    let (c, _) = F::tail::<C, S>(simd, a);
    C::neg_mul_add(simd, a, c, C::vmax(simd, x, C::splat(simd, C::default())))
}

/// f(x) and f'(x)
#[inline(always)]
fn curve<C: Tail, S: Simd, F: Curve>(simd: S, x: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>) {
    let zero = C::splat(simd, C::default());
    let a = magnitude::<C, S, F>(simd, x);
    let (c, p) = F::tail::<C, S>(simd, a);
    let below = C::neg_mul_add(simd, a, p, c);
    let above = C::vsub(simd, C::splat(simd, C::ONE), below);
    let slope = C::select(simd, C::less(simd, x, zero), below, above);
    (C::neg_mul_add(simd, a, c, C::vmax(simd, x, zero)), slope)
}

/// |x|, at most what has a tail of 0: larger magnitudes, infinity too, have the same tail. NaN stays.
#[inline(always)]
fn magnitude<C: Tail, S: Simd, F: Curve>(simd: S, x: C::Vector<S>) -> C::Vector<S> {
    let (a, most) = (C::vabs(simd, x), C::splat(simd, C::from_f64(F::farthest(C::DTYPE.size()))));
    C::select(simd, C::less(simd, most, a), most, a)
}

/// A distribution that is the same above and below 0.
pub trait Curve {
    /// A magnitude whose tail is 0, for values of so many bytes.
    fn farthest(bytes: usize) -> f64;
    /// P(-a) and P'(a) for a >= 0.
    fn tail<C: Tail, S: Simd>(simd: S, a: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>);
}

struct Silu;
struct Gelu;
struct GeluTanh;

impl Curve for Silu {
    fn farthest(bytes: usize) -> f64 {
        if bytes == 8 { 800.0 } else { 128.0 }
    }
    #[inline(always)]
    fn tail<C: Tail, S: Simd>(simd: S, a: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>) {
        let (c, r) = sigmoid_tail::<C, S>(simd, C::vmul(simd, a, C::splat(simd, -C::ONE)));
        (c, C::vmul(simd, c, r))
    }
}

/// sigma(z) and 1 - sigma(z), z <= 0.
#[inline(always)]
fn sigmoid_tail<C: Tail, S: Simd>(simd: S, z: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>) {
    let one = C::splat(simd, C::ONE);
    let e = C::vexp(simd, z);
    let r = C::vdiv(simd, one, C::vadd(simd, one, e));
    (C::vmul(simd, e, r), r)
}

impl Curve for GeluTanh {
    fn farthest(bytes: usize) -> f64 {
        if bytes == 8 { 22.0 } else { 11.5 }
    }
    #[inline(always)]
    fn tail<C: Tail, S: Simd>(simd: S, a: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>) {
        let factor = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
        let constant = |value: f64| C::splat(simd, C::from_f64(value));
        let square = C::vmul(simd, a, a);
        let z = C::mul_add(simd, square, constant(-0.044715 * factor), constant(-factor));
        let (c, r) = sigmoid_tail::<C, S>(simd, C::vmul(simd, a, z));
        let rate = C::mul_add(simd, square, constant(3.0 * 0.044715 * factor), constant(factor));
        (c, C::vmul(simd, C::vmul(simd, c, r), rate))
    }
}

impl Curve for Gelu {
    fn farthest(bytes: usize) -> f64 {
        if bytes == 8 { 39.0 } else { 14.5 }
    }
    #[inline(always)]
    fn tail<C: Tail, S: Simd>(simd: S, a: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>) {
        let constant = |value: f64| C::splat(simd, C::from_f64(value));
        let e = C::vexp(simd, C::vmul(simd, C::vmul(simd, a, a), constant(-0.5)));
        let s = C::vdiv(simd, constant(1.0), C::vadd(simd, a, constant(C::CENTRE)));
        let t = C::vmul(simd, C::vsub(simd, a, constant(C::CENTRE)), s);
        let c = C::vmul(simd, e, C::vmul(simd, s, C::mills(simd, t)));
        (c, C::vmul(simd, e, constant((0.5 / std::f64::consts::PI).sqrt())))
    }
}

/// Phi(-a) exp(a^2 / 2) (a + k) as a polynomial in (a - k) / (a + k), for the digits of a type.
pub trait Tail: Real {
    /// k.
    const CENTRE: f64;
    /// The polynomial.
    fn mills<S: Simd>(simd: S, t: Self::Vector<S>) -> Self::Vector<S>;
}

impl Tail for f32 {
    const CENTRE: f64 = 3.0;
    #[inline(always)]
    fn mills<S: Simd>(simd: S, t: S::f32s) -> S::f32s {
        #[allow(clippy::excessive_precision, reason = "nine digits name a float32, seventeen a float64")]
        const COEFFICIENTS: [f32; 9] = [
            7.290_836_573e-1,
            -5.093_319_416e-1,
            2.300_198_227e-1,
            -4.726_215_452e-2,
            -1.048_464_794e-2,
            6.948_343_944e-3,
            1.094_801_934e-3,
            -9.316_650_103e-4,
            -2.910_220_937e-4,
        ];
        polynomial::<f32, S, 9>(simd, t, &COEFFICIENTS)
    }
}

impl Tail for f64 {
    const CENTRE: f64 = 6.0;
    #[inline(always)]
    fn mills<S: Simd>(simd: S, t: S::f64s) -> S::f64s {
        #[allow(clippy::excessive_precision, reason = "nine digits name a float32, seventeen a float64")]
        const COEFFICIENTS: [f64; 23] = [
            0.7773517718933622,
            -0.7010090295908655,
            0.5689688918147829,
            -0.4139035857755929,
            0.2679742458416971,
            -0.15268023206441028,
            0.07517191566812548,
            -0.030985315509016793,
            0.010029820648351936,
            -0.002131605195723298,
            3.2869980622442494e-05,
            0.00018136032488251668,
            -6.475191429322486e-05,
            1.0759772542319458e-06,
            6.796409416958435e-06,
            -1.800686073929392e-06,
            -4.3030600972602457e-07,
            3.1187244991295677e-07,
            9.45572690337117e-09,
            -4.434552970785575e-08,
            -1.34456172912233e-10,
            5.237636606010233e-09,
            8.876840802023829e-10,
        ];
        polynomial::<f64, S, 23>(simd, t, &COEFFICIENTS)
    }
}
