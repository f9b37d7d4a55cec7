//! Activations on the host: every tensor is read or written once; values are widened and rounded in registers.
//!
//! The gradient of a bias is summed over fixed groups of rows, then over the groups, both in order: its bits do not
//! depend on the number of threads.

use super::{Activation, Function};
use crate::device::cpu::Threads;
use crate::device::cpu::simd::{Real, Simd, Storage, WithSimd, dispatch, polynomial, stream};

use std::f64::consts::LOG2_E;

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
    /// Rows of up.
    Up(&'a [T]),
}

/// What a thread takes at a time: rows, or a part of one. Contiguous in results, which are taken in this order.
#[derive(Clone, Copy)]
struct Piece {
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
    /// From a row of x to the next; of up.
    strides: [usize; 2],
}

impl Piece {
    /// All of them, `height` rows or part of one each.
    fn all(problem: &Activation, height: usize, width: usize) -> impl Iterator<Item = Piece> {
        let Activation { rows, cols, strides, .. } = *problem;
        (0..rows).step_by(height.max(1)).flat_map(move |row| {
            (0..cols).step_by(width.max(1)).map(move |col| Piece {
                row,
                rows: height.min(rows - row),
                col,
                cols: width.min(cols - col),
                strides,
            })
        })
    }

    /// Of about [`CHUNK`] elements.
    fn chunks(problem: &Activation) -> impl Iterator<Item = Piece> {
        Piece::all(problem, (CHUNK / problem.cols.max(1)).max(1), problem.cols.min(CHUNK))
    }

    /// Number of elements.
    fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// A row of this piece, of operand 0 (x) or 1 (up).
    #[inline(always)]
    fn of<'a, T>(&self, operand: usize, values: &'a [T], row: usize) -> &'a [T] {
        let first = (self.row + row) * self.strides[operand] + self.col;
        &values[first..first + self.cols]
    }
}

/// The next `len` values, which are taken off.
fn take<'a, T>(values: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (first, rest) = std::mem::take(values).split_at_mut(len);
    *values = rest;
    first
}

/// Whether to stream results; the chunks of a contiguous tensor, which is one row, start on cache lines.
fn streamed<T>(problem: &Activation, y: &[T]) -> bool {
    stream::wanted(y, if problem.rows == 1 { CHUNK } else { problem.cols })
}

/// y = f(x), f(x + bias) or f(x) up.
pub fn forward<T: Storage<Compute: Tail>>(
    threads: &Threads,
    problem: &Activation,
    x: &[T],
    beside: Beside<'_, T>,
    y: &mut [T],
) {
    assert_eq!(y.len(), problem.numel());
    let (function, streamed) = (problem.function, streamed(problem, y));
    let mut rest = y;
    let mut values: Vec<_> = Piece::chunks(problem)
        .map(|piece| Values { function, piece, x, beside, y: take(&mut rest, piece.len()), streamed })
        .collect();
    threads.for_each_mut(&mut values, 1, |values| dispatch(values));
}

/// dx and the gradient of what stands beside x: `d_up`, or the sums of a bias, which are returned.
pub fn backward<T: Storage<Compute: Tail>>(
    threads: &Threads,
    problem: &Activation,
    dy: &[T],
    x: &[T],
    beside: Beside<'_, T>,
    dx: &mut [T],
    d_up: &mut [T],
) -> Vec<T::Compute> {
    assert!(dy.len() == problem.numel() && dx.len() == dy.len());
    let (function, streamed) = (problem.function, streamed(problem, dx));
    let bias = if let Beside::Bias(bias) = beside { bias.len() } else { 0 };
    let height = problem.rows.div_ceil(PARTIALS).max(SUMMED_ROWS);
    let pieces: Vec<_> = match beside {
        Beside::Bias(_) => Piece::all(problem, height, problem.cols).collect(),
        _ => Piece::chunks(problem).collect(),
    };
    let mut sums = vec![T::Compute::default(); bias * pieces.len().max(1)];
    let (mut dx_rest, mut d_up_rest, mut sums_rest, mut dy_rest) = (dx, d_up, &mut sums[..], dy);
    let mut slopes: Vec<_> = pieces
        .into_iter()
        .map(|piece| {
            let (dy, rest) = dy_rest.split_at(piece.len());
            dy_rest = rest;
            Slopes {
                function,
                piece,
                dy,
                x,
                beside,
                dx: take(&mut dx_rest, piece.len()),
                d_up: take(&mut d_up_rest, if let Beside::Up(_) = beside { piece.len() } else { 0 }),
                sums: take(&mut sums_rest, bias),
                streamed,
            }
        })
        .collect();
    threads.for_each_mut(&mut slopes, 1, |slopes| dispatch(slopes));
    drop(slopes);
    if bias > 0 {
        let (total, rest) = sums.split_at_mut(bias);
        for partial in rest.chunks_exact(bias) {
            total.iter_mut().zip(partial).for_each(|(total, partial)| *total += *partial);
        }
        sums.truncate(bias);
    }
    sums
}

/// A piece of the forward pass.
struct Values<'a, T: Storage> {
    function: Function,
    piece: Piece,
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
            Function::Gelu if T::DTYPE.size() == 2 => self.all::<S, HalfGelu>(simd),
            Function::Gelu => self.all::<S, Gelu>(simd),
            Function::GeluTanh => self.all::<S, GeluTanh>(simd),
        }
        if self.streamed {
            stream::finish();
        }
    }
}

impl<T: Storage<Compute: Tail>> Values<'_, T> {
    #[inline(always)]
    fn all<S: Simd, F: Curve>(&mut self, simd: S) {
        let (piece, streamed) = (self.piece, self.streamed);
        for (row, y) in self.y.chunks_exact_mut(piece.cols).enumerate() {
            let x = piece.of(0, self.x, row);
            match self.beside {
                Beside::Nothing => values::<T, T, S, F, ALONE>(simd, x, x, y, streamed),
                Beside::Up(up) => values::<T, T, S, F, UP>(simd, x, piece.of(1, up, row), y, streamed),
                Beside::Bias(bias) => {
                    let bias = &bias[piece.col..piece.col + piece.cols];
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
        (x.chunks_exact(2 * lanes), second[..x.len()].chunks_exact(2 * lanes), y.chunks_exact_mut(2 * lanes));
    // Two registers at a time: one does not keep the processor busy, as each step waits for the one before.
    for ((x, second), y) in (&mut x).zip(&mut second).zip(&mut y) {
        let first = value_at::<T, B, S, F, FORM>(simd, x, second, 0);
        let next = value_at::<T, B, S, F, FORM>(simd, x, second, lanes);
        put::<T, S>(simd, first, &mut y[..lanes], streamed);
        put::<T, S>(simd, next, &mut y[lanes..], streamed);
    }
    let (mut x, mut second, mut y) = (x.remainder(), second.remainder(), y.into_remainder());
    if x.len() >= lanes {
        let value = value_at::<T, B, S, F, FORM>(simd, x, second, 0);
        put::<T, S>(simd, value, take(&mut y, lanes), streamed);
        (x, second) = (&x[lanes..], &second[lanes..]);
    }
    let (x, second) = (T::Compute::load_part(simd, x), T::Compute::load_part(simd, second));
    T::Compute::store_part(simd, formed::<T::Compute, S, F, FORM>(simd, x, second), y);
}

/// A register of y, from element `at` on.
#[inline(always)]
fn value_at<T: Storage<Compute: Tail>, B: Storage, S: Simd, F: Curve, const FORM: u8>(
    simd: S,
    x: &[T],
    second: &[B],
    at: usize,
) -> <T::Compute as Real>::Vector<S> {
    let at = at..at + T::Compute::lanes::<S>();
    let (x, second) = (T::Compute::load(simd, &x[at.clone()]), T::Compute::load(simd, &second[at]));
    formed::<T::Compute, S, F, FORM>(simd, x, second)
}

/// y from registers of the operands.
#[inline(always)]
fn formed<C: Tail, S: Simd, F: Curve, const FORM: u8>(simd: S, x: C::Vector<S>, second: C::Vector<S>) -> C::Vector<S> {
    match FORM {
        ALONE => F::value::<C, S>(simd, x),
        BIAS => F::value::<C, S>(simd, C::vadd(simd, x, second)),
        _ => C::vmul(simd, F::value::<C, S>(simd, x), second),
    }
}

/// A piece of the backward pass.
struct Slopes<'a, T: Storage> {
    function: Function,
    piece: Piece,
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
            Function::Gelu if T::DTYPE.size() == 2 => self.all::<S, HalfGelu>(simd),
            Function::Gelu => self.all::<S, Gelu>(simd),
            Function::GeluTanh => self.all::<S, GeluTanh>(simd),
        }
        if self.streamed {
            stream::finish();
        }
    }
}

impl<T: Storage<Compute: Tail>> Slopes<'_, T> {
    #[inline(always)]
    fn all<S: Simd, F: Curve>(&mut self, simd: S) {
        let (piece, streamed) = (self.piece, self.streamed);
        let mut d_up = self.d_up.chunks_exact_mut(piece.cols);
        let rows = self.dy.chunks_exact(piece.cols).zip(self.dx.chunks_exact_mut(piece.cols));
        for (row, (dy, dx)) in rows.enumerate() {
            let x = piece.of(0, self.x, row);
            match self.beside {
                Beside::Nothing => slopes::<T, S, F>(simd, dy, x, dx, streamed),
                Beside::Up(up) => {
                    let d_up = d_up.next().unwrap_or_default();
                    gated_slopes::<T, S, F>(simd, dy, x, piece.of(1, up, row), dx, d_up, streamed);
                }
                Beside::Bias(bias) => bias_slopes::<T, S, F>(simd, dy, x, bias, dx, self.sums, streamed),
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

/// f(x) and f'(x); f(x) = max(x, 0) - a c
#[inline(always)]
fn curve<C: Tail, S: Simd, F: Curve>(simd: S, x: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>) {
    let zero = C::splat(simd, C::default());
    let a = C::at_most(simd, C::vabs(simd, x), constant::<C, S>(simd, F::farthest(C::DTYPE.size())));
    let (c, p) = F::tail::<C, S>(simd, a);
    let below = C::neg_mul_add(simd, a, p, c);
    let above = C::vsub(simd, C::splat(simd, C::ONE), below);
    let slope = C::select(simd, C::less(simd, x, zero), below, above);
    (C::neg_mul_add(simd, a, c, C::vmax(simd, x, zero)), slope)
}

#[inline(always)]
fn constant<C: Real, S: Simd>(simd: S, value: f64) -> C::Vector<S> {
    C::splat(simd, C::from_f64(value))
}

/// A distribution that is the same above and below 0.
pub trait Curve {
    /// A magnitude whose tail is 0, for values of so many bytes: larger ones, infinity too, have the same.
    fn farthest(bytes: usize) -> f64;
    /// P(-a) and P'(a) for a >= 0.
    fn tail<C: Tail, S: Simd>(simd: S, a: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>);
    /// f(x).
    fn value<C: Tail, S: Simd>(simd: S, x: C::Vector<S>) -> C::Vector<S>;
}

struct Silu;
struct Gelu;
struct GeluTanh;

/// x / (1 + 2^z) from -x, at most so much that 2^z is infinite, and z.
#[inline(always)]
fn logistic<C: Real, S: Simd>(simd: S, minus_x: C::Vector<S>, z: C::Vector<S>) -> C::Vector<S> {
    let e = C::vexp2(simd, z);
    C::vdiv(simd, minus_x, C::vsub(simd, C::splat(simd, -C::ONE), e))
}

impl Curve for Silu {
    fn farthest(bytes: usize) -> f64 {
        if bytes == 8 { 709.0 } else { 88.0 }
    }
    #[inline(always)]
    fn tail<C: Tail, S: Simd>(simd: S, a: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>) {
        let (c, r) = sigmoid_tail::<C, S>(simd, C::vmul(simd, a, constant::<C, S>(simd, -LOG2_E)));
        (c, C::vmul(simd, c, r))
    }
    #[inline(always)]
    fn value<C: Tail, S: Simd>(simd: S, x: C::Vector<S>) -> C::Vector<S> {
        let [most, least] = if C::DTYPE.size() == 8 { [709.8, -709.0] } else { [88.8, -88.0] };
        let minus_x = C::vsub(simd, C::splat(simd, C::default()), x);
        let minus_x = C::at_most(simd, minus_x, constant::<C, S>(simd, most));
        let z = C::at_least(simd, minus_x, constant::<C, S>(simd, least));
        logistic::<C, S>(simd, minus_x, C::vmul(simd, z, constant::<C, S>(simd, LOG2_E)))
    }
}

/// p = 2^z / (1 + 2^z) and 1 - p, z <= 0.
#[inline(always)]
fn sigmoid_tail<C: Tail, S: Simd>(simd: S, z: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>) {
    let one = C::splat(simd, C::ONE);
    let e = C::vexp2(simd, z);
    let r = C::vdiv(simd, one, C::vadd(simd, one, e));
    (C::vmul(simd, e, r), r)
}

impl GeluTanh {
    /// 2 sqrt(2 / pi), and the same times 0.044715.
    const FACTORS: [f64; 2] = [1.595_769_121_605_730_8, 0.071_354_816_272_600_25];

    /// 2 u / ln 2 of x, or the same of -x.
    #[inline(always)]
    fn argument<C: Tail, S: Simd>(simd: S, x: C::Vector<S>, sign: f64) -> C::Vector<S> {
        let [linear, cubic] = Self::FACTORS.map(|factor| constant::<C, S>(simd, sign * LOG2_E * factor));
        C::vmul(simd, x, C::mul_add(simd, C::vmul(simd, x, x), cubic, linear))
    }
}

impl Curve for GeluTanh {
    fn farthest(bytes: usize) -> f64 {
        if bytes == 8 { 21.155 } else { 10.03 }
    }
    #[inline(always)]
    fn tail<C: Tail, S: Simd>(simd: S, a: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>) {
        let [linear, cubic] = [Self::FACTORS[0], 3.0 * Self::FACTORS[1]].map(|factor| constant::<C, S>(simd, factor));
        let (c, r) = sigmoid_tail::<C, S>(simd, Self::argument::<C, S>(simd, a, -1.0));
        let rate = C::mul_add(simd, C::vmul(simd, a, a), cubic, linear);
        (c, C::vmul(simd, C::vmul(simd, c, r), rate))
    }
    #[inline(always)]
    fn value<C: Tail, S: Simd>(simd: S, x: C::Vector<S>) -> C::Vector<S> {
        // Where 2^z is infinite, and where it vanishes beside 1.
        let [most, least] = if C::DTYPE.size() == 8 { [21.16, -21.0] } else { [10.07, -10.0] };
        let minus_x = C::vsub(simd, C::splat(simd, C::default()), x);
        let minus_x = C::at_most(simd, minus_x, constant::<C, S>(simd, most));
        let z = Self::argument::<C, S>(simd, C::at_least(simd, minus_x, constant::<C, S>(simd, least)), 1.0);
        logistic::<C, S>(simd, minus_x, z)
    }
}

impl Gelu {
    /// Phi(-a) and e^(-a^2 / 2).
    #[inline(always)]
    fn normal<C: Tail, S: Simd>(simd: S, a: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>) {
        let e = C::vexp2(simd, C::vmul(simd, C::vmul(simd, a, a), constant::<C, S>(simd, -0.5 * LOG2_E)));
        let s = C::vdiv(simd, C::splat(simd, C::ONE), C::vadd(simd, a, constant::<C, S>(simd, C::CENTRE)));
        let t = C::vmul(simd, C::vsub(simd, a, constant::<C, S>(simd, C::CENTRE)), s);
        (C::vmul(simd, e, C::vmul(simd, s, C::mills(simd, t))), e)
    }
}

impl Curve for Gelu {
    fn farthest(bytes: usize) -> f64 {
        if bytes == 8 { 37.657 } else { 13.26 }
    }
    #[inline(always)]
    fn tail<C: Tail, S: Simd>(simd: S, a: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>) {
        let (c, e) = Self::normal::<C, S>(simd, a);
        (c, C::vmul(simd, e, constant::<C, S>(simd, (0.5 / std::f64::consts::PI).sqrt())))
    }
    #[inline(always)]
    fn value<C: Tail, S: Simd>(simd: S, x: C::Vector<S>) -> C::Vector<S> {
        let a = C::at_most(simd, C::vabs(simd, x), constant::<C, S>(simd, Self::farthest(C::DTYPE.size())));
        let (c, _) = Self::normal::<C, S>(simd, a);
        C::neg_mul_add(simd, a, c, C::vmax(simd, x, C::splat(simd, C::default())))
    }
}

/// Of 16-bit values: Phi(-a) within w of its value or 2^-12 of itself, whichever is more.
struct HalfGelu;

impl HalfGelu {
    /// Phi(-a) and e^(-a^2 / 2).
    #[inline(always)]
    fn normal<C: Tail, S: Simd>(simd: S, a: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>) {
        let e = C::vexp2(simd, C::vmul(simd, C::vmul(simd, a, a), constant::<C, S>(simd, -0.5 * LOG2_E)));
        let s = C::vdiv(simd, C::splat(simd, C::ONE), C::vadd(simd, a, constant::<C, S>(simd, 3.5)));
        let p = polynomial::<C, S, 6>(simd, s, &C::OF_HALF);
        (C::vmul(simd, C::vmul(simd, e, s), p), e)
    }
}

impl Curve for HalfGelu {
    fn farthest(bytes: usize) -> f64 {
        Gelu::farthest(bytes)
    }
    #[inline(always)]
    fn tail<C: Tail, S: Simd>(simd: S, a: C::Vector<S>) -> (C::Vector<S>, C::Vector<S>) {
        let (c, e) = Self::normal::<C, S>(simd, a);
        (c, C::vmul(simd, e, constant::<C, S>(simd, (0.5 / std::f64::consts::PI).sqrt())))
    }
    #[inline(always)]
    fn value<C: Tail, S: Simd>(simd: S, x: C::Vector<S>) -> C::Vector<S> {
        let a = C::at_most(simd, C::vabs(simd, x), constant::<C, S>(simd, Self::farthest(C::DTYPE.size())));
        let (c, _) = Self::normal::<C, S>(simd, a);
        C::neg_mul_add(simd, a, c, C::vmax(simd, x, C::splat(simd, C::default())))
    }
}

/// Phi(-a) exp(a^2 / 2) (a + k) as a polynomial in (a - k) / (a + k), for the digits of a type.
pub trait Tail: Real {
    /// k.
    const CENTRE: f64;
    /// Phi(-a) exp(a^2 / 2) / s as a polynomial in s = 1 / (a + 3.5), for 16-bit values.
    const OF_HALF: [Self; 6];
    /// The polynomial.
    fn mills<S: Simd>(simd: S, t: Self::Vector<S>) -> Self::Vector<S>;
}

impl Tail for f32 {
    const CENTRE: f64 = 3.0;
    const OF_HALF: [f32; 6] = [0.405_738_95, 1.121_632_4, 8.795_13, -20.920_96, 168.729_1, -173.645_06];
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
    const OF_HALF: [f64; 6] = [0.405_738_95, 1.121_632_4, 8.795_13, -20.920_96, 168.729_1, -173.645_06];
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
