//! Softmax on the host: a row is read from memory once, then from the cache; its exponentials wait there for their sum.

use crate::device::cpu::Threads;
use crate::device::cpu::rows::block_sum;
use crate::device::cpu::simd::{Real, Simd, Storage, WithSimd, dispatch, stream};
use crate::dtype::Element;

/// Elements that a thread takes at a time: more work than the taking.
const CHUNK: usize = 16 * 1024;

/// y of rows of `cols` elements.
pub fn forward<T: Storage>(threads: &Threads, x: &[T], y: &mut [T], cols: usize) {
    assert_eq!(x.len(), y.len());
    if cols == 0 {
        return;
    }
    let streamed = stream::wanted(y, cols);
    let size = (CHUNK / cols).max(1) * cols;
    let mut chunks: Vec<_> = x.chunks(size).zip(y.chunks_mut(size)).collect();
    let terms = || vec![T::Compute::default(); cols];
    threads.for_each_mut_init(&mut chunks, 1, terms, |terms, (x, y)| dispatch(ForwardRows { x, y, terms, streamed }));
}

struct ForwardRows<'a, T: Storage> {
    x: &'a [T],
    y: &'a mut [T],
    /// A row of exponentials.
    terms: &'a mut [T::Compute],
    streamed: bool,
}

impl<T: Storage> WithSimd for ForwardRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let ForwardRows { x, y, terms, streamed } = self;
        let mut rows = x.chunks_exact(terms.len()).peekable();
        for y in y.chunks_exact_mut(terms.len()) {
            let x = rows.next().expect("x is as long as y");
            let next = rows.peek().copied().unwrap_or(x);
            let largest = largest(simd, x);
            let factor = T::Compute::ONE / exponentials(simd, x, largest, terms, next);
            if streamed {
                scale::<T, S, true>(simd, terms, factor, y);
            } else {
                scale::<T, S, false>(simd, terms, factor, y);
            }
        }
        stream::finish();
    }
}

/// Largest element, which is not -infinity where there is another; if there is a NaN, any value.
#[inline(always)]
fn largest<T: Storage, S: Simd>(simd: S, x: &[T]) -> T::Compute {
    let lanes = T::Compute::lanes::<S>();
    let lowest = T::Compute::from_f64(f64::NEG_INFINITY);
    let mut sums = [T::Compute::splat(simd, lowest); 4];
    let mut fours = x.chunks_exact(4 * lanes);
    for four in &mut fours {
        for (sum, x) in sums.iter_mut().zip(four.chunks_exact(lanes)) {
            *sum = T::Compute::vmax(simd, *sum, T::Compute::load(simd, x));
        }
    }
    let mut ones = fours.remainder().chunks_exact(lanes);
    for x in &mut ones {
        sums[0] = T::Compute::vmax(simd, sums[0], T::Compute::load(simd, x));
    }
    let halves = [T::Compute::vmax(simd, sums[0], sums[1]), T::Compute::vmax(simd, sums[2], sums[3])];
    let mut largest = T::Compute::largest(simd, T::Compute::vmax(simd, halves[0], halves[1]));
    for x in ones.remainder() {
        let x = T::Compute::get(*x);
        largest = if x > largest { x } else { largest };
    }
    largest
}

/// terms := e^(x - largest); their sum. Asks for the row that is `next`: computing leaves the memory idle.
#[inline(always)]
fn exponentials<T: Storage, S: Simd>(
    simd: S,
    x: &[T],
    largest: T::Compute,
    terms: &mut [T::Compute],
    next: &[T],
) -> T::Compute {
    let lanes = T::Compute::lanes::<S>();
    let largest = T::Compute::splat(simd, largest);
    let rest = x.len() / lanes * lanes..;
    let last = T::Compute::vsub(simd, T::Compute::load_part(simd, &x[rest.clone()]), largest);
    T::Compute::store_part(simd, T::Compute::vexp(simd, last), &mut terms[rest.clone()]);
    let first = T::Compute::load_part(simd, &terms[rest]);
    block_sum::<T::Compute, S>(
        simd,
        first,
        x.len() / lanes,
        #[inline(always)]
        |j, sum| {
            let at = j * lanes..(j + 1) * lanes;
            stream::prefetch(&next[at.start]);
            let shifted = T::Compute::vsub(simd, T::Compute::load(simd, &x[at.clone()]), largest);
            let term = T::Compute::vexp(simd, shifted);
            T::Compute::store(simd, term, &mut terms[at]);
            T::Compute::vadd(simd, sum, term)
        },
    )
}

/// y := terms factor
#[inline(always)]
fn scale<T: Storage, S: Simd, const STREAMED: bool>(simd: S, terms: &[T::Compute], factor: T::Compute, y: &mut [T]) {
    let lanes = T::Compute::lanes::<S>();
    let factor = T::Compute::splat(simd, factor);
    let (mut terms, mut y) = (terms.chunks_exact(lanes), y.chunks_exact_mut(lanes));
    for (term, y) in (&mut terms).zip(&mut y) {
        let scaled = T::Compute::vmul(simd, T::Compute::load(simd, term), factor);
        if STREAMED {
            stream::store::<T::Compute, S, T>(simd, scaled, y);
        } else {
            T::Compute::store(simd, scaled, y);
        }
    }
    let rest = T::Compute::load_part(simd, terms.remainder());
    T::Compute::store_part(simd, T::Compute::vmul(simd, rest, factor), y.into_remainder());
}

/// dx of rows of `cols` elements.
pub fn backward<T: Storage>(threads: &Threads, y: &[T], dy: &[T], dx: &mut [T], cols: usize) {
    assert!(y.len() == dx.len() && dy.len() == dx.len());
    if cols == 0 {
        return;
    }
    let streamed = stream::wanted(dx, cols);
    let size = (CHUNK / cols).max(1) * cols;
    let chunks = y.chunks(size).zip(dy.chunks(size)).zip(dx.chunks_mut(size));
    let mut chunks: Vec<_> = chunks.map(|((y, dy), dx)| BackwardRows { y, dy, dx, cols, streamed }).collect();
    threads.for_each_mut(&mut chunks, 1, |rows| dispatch(rows));
}

struct BackwardRows<'a, T> {
    y: &'a [T],
    dy: &'a [T],
    dx: &'a mut [T],
    cols: usize,
    streamed: bool,
}

impl<T: Storage> WithSimd for &mut BackwardRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut rows = self.y.chunks_exact(self.cols).zip(self.dy.chunks_exact(self.cols)).peekable();
        for dx in self.dx.chunks_exact_mut(self.cols) {
            let (y, dy) = rows.next().expect("y and dy are as long as dx");
            let next = rows.peek().copied().unwrap_or((y, dy));
            if self.streamed {
                row_gradient::<T, S, true>(simd, y, dy, dx, next);
            } else {
                row_gradient::<T, S, false>(simd, y, dy, dx, next);
            }
        }
        stream::finish();
    }
}

/// dx := y (dy - sum(y dy)). Asks for the rows of y and dy that are `next`, where converting
/// leaves the memory idle: 16-bit types 0.94 to 1.08 of torch, float32 1.0 to 0.93.
#[inline(always)]
fn row_gradient<T: Storage, S: Simd, const STREAMED: bool>(
    simd: S,
    y: &[T],
    dy: &[T],
    dx: &mut [T],
    next: (&[T], &[T]),
) {
    let lanes = T::Compute::lanes::<S>();
    let whole = y.len() / lanes;
    let rest = whole * lanes..;
    let (y_rest, dy_rest) =
        (T::Compute::load_part(simd, &y[rest.clone()]), T::Compute::load_part(simd, &dy[rest.clone()]));
    let dot = block_sum::<T::Compute, S>(
        simd,
        T::Compute::vmul(simd, y_rest, dy_rest),
        whole,
        #[inline(always)]
        |j, sum| {
            let at = j * lanes..(j + 1) * lanes;
            T::Compute::mul_add(simd, T::Compute::load(simd, &y[at.clone()]), T::Compute::load(simd, &dy[at]), sum)
        },
    );
    let dot = T::Compute::splat(simd, dot);
    for j in 0..whole {
        let at = j * lanes..(j + 1) * lanes;
        if size_of::<T>() == 2 {
            stream::prefetch(&next.0[at.start]);
            stream::prefetch(&next.1[at.start]);
        }
        let (y, dy) = (T::Compute::load(simd, &y[at.clone()]), T::Compute::load(simd, &dy[at.clone()]));
        let gradient = T::Compute::vmul(simd, y, T::Compute::vsub(simd, dy, dot));
        if STREAMED {
            stream::store::<T::Compute, S, T>(simd, gradient, &mut dx[at]);
        } else {
            T::Compute::store(simd, gradient, &mut dx[at]);
        }
    }
    let gradient = T::Compute::vmul(simd, y_rest, T::Compute::vsub(simd, dy_rest, dot));
    T::Compute::store_part(simd, gradient, &mut dx[rest]);
}
