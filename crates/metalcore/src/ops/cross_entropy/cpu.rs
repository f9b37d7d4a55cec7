//! Cross entropy on the host: a row is taken in blocks that stay in the first cache, each read from memory once.

use super::{CrossEntropy, Reduction};
use crate::IndexElement;
use crate::device::cpu::Threads;
use crate::device::cpu::simd::{Real, Simd, Storage, WithSimd, dispatch, stream};
use crate::dtype::Element;
use crate::error::{Error, Result};

/// Elements that a thread takes at a time: more work than the taking.
const CHUNK: usize = 16 * 1024;
/// Elements whose largest is looked for before their exponentials are summed.
const BLOCK: usize = 2048;

/// Losses and lse of the rows; sum or mean of the losses, and the number of rows that count.
pub fn forward<T: Storage, I: IndexElement>(
    threads: &Threads,
    problem: &CrossEntropy,
    logits: &[T],
    targets: &[I],
    losses: &mut [T::Compute],
    lse: &mut [T::Compute],
    reduced: Option<(&mut T::Compute, &mut T::Compute)>,
) -> Result<()> {
    let cols = problem.cols;
    assert!(logits.len() == problem.rows * cols && targets.len() == problem.rows);
    assert!(losses.len() == problem.rows && lse.len() == problem.rows);
    let outside = |target: &&I| {
        let target = (**target).into();
        target != problem.ignore && usize::try_from(target).map_or(true, |target| target >= cols)
    };
    if let Some(target) = targets.iter().find(outside) {
        let expected = format!("0 to {} or {}", cols as i64 - 1, problem.ignore);
        return Err(Error::Index { op: "cross_entropy", argument: "targets", got: (*target).into(), expected });
    }
    let rows = (CHUNK / cols.max(1)).max(1);
    let parts = losses.chunks_mut(rows).zip(lse.chunks_mut(rows)).zip(targets.chunks(rows)).enumerate();
    let mut tasks: Vec<_> = parts
        .map(|(part, ((losses, lse), targets))| {
            let logits = &logits[part * rows * cols..][..targets.len() * cols];
            ForwardRows { problem, logits, targets, losses, lse }
        })
        .collect();
    threads.for_each_mut(&mut tasks, 1, |task| dispatch(task));
    if let Some((loss, count)) = reduced {
        let counted = targets.iter().filter(|target| (**target).into() != problem.ignore).count() as f64;
        let sum: f64 = losses.iter().map(|loss| loss.to_f64()).sum();
        *loss = T::Compute::from_f64(if problem.reduction == Reduction::Mean { sum / counted } else { sum });
        *count = T::Compute::from_f64(counted);
    }
    Ok(())
}

struct ForwardRows<'a, T: Storage, I> {
    problem: &'a CrossEntropy,
    logits: &'a [T],
    targets: &'a [I],
    losses: &'a mut [T::Compute],
    lse: &'a mut [T::Compute],
}

impl<T: Storage, I: IndexElement> WithSimd for &mut ForwardRows<'_, T, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let CrossEntropy { cols, ignore, smoothing, .. } = *self.problem;
        for (row, target) in self.targets.iter().enumerate() {
            let target: i64 = (*target).into();
            let (mut loss, mut lse) = (0.0, 0.0);
            if target != ignore {
                let x = &self.logits[row * cols..(row + 1) * cols];
                let (max, sum) = max_and_sum(simd, x);
                loss = max - x[target as usize].to_f64() + sum.ln();
                lse = max + sum.ln();
                if smoothing != 0.0 {
                    let mean = total(simd, x) / cols as f64;
                    loss = (1.0 - smoothing) * loss + smoothing * (max - mean + sum.ln());
                }
            }
            (self.losses[row], self.lse[row]) = (T::Compute::from_f64(loss), T::Compute::from_f64(lse));
        }
    }
}

/// The largest element m, and the sum of e^(x - m).
#[inline(always)]
fn max_and_sum<T: Storage, S: Simd>(simd: S, x: &[T]) -> (f64, f64) {
    // Not minus infinity, from which the difference to itself is NaN.
    let least = T::Compute::from_f64(if T::DTYPE.compute() == crate::DType::F64 { f64::MIN } else { f32::MIN.into() });
    let lanes = T::Compute::lanes::<S>();
    let (mut max, mut sum) = (least.to_f64(), 0.0);
    for block in x.chunks(BLOCK) {
        let whole = block.len() / lanes * lanes;
        let mut tops = [T::Compute::splat(simd, least); 4];
        for (k, x) in block[..whole].chunks_exact(lanes).enumerate() {
            tops[k % 4] = T::Compute::vmax(simd, tops[k % 4], T::Compute::load(simd, x));
        }
        let halves = [T::Compute::vmax(simd, tops[0], tops[1]), T::Compute::vmax(simd, tops[2], tops[3])];
        let mut top = T::Compute::largest(simd, T::Compute::vmax(simd, halves[0], halves[1])).to_f64();
        for x in &block[whole..] {
            top = top.max(x.to_f64());
        }
        if top > max {
            sum *= (max - top).exp();
            max = top;
        }
        let m = T::Compute::splat(simd, T::Compute::from_f64(max));
        let mut sums = [T::Compute::splat(simd, T::Compute::default()); 4];
        for (k, x) in block[..whole].chunks_exact(lanes).enumerate() {
            let term = T::Compute::vexp(simd, T::Compute::vsub(simd, T::Compute::load(simd, x), m));
            sums[k % 4] = T::Compute::vadd(simd, sums[k % 4], term);
        }
        let halves = [T::Compute::vadd(simd, sums[0], sums[1]), T::Compute::vadd(simd, sums[2], sums[3])];
        sum += T::Compute::sum(simd, T::Compute::vadd(simd, halves[0], halves[1])).to_f64();
        for x in &block[whole..] {
            sum += (x.to_f64() - max).exp();
        }
    }
    (max, sum)
}

#[inline(always)]
fn total<T: Storage, S: Simd>(simd: S, x: &[T]) -> f64 {
    let lanes = T::Compute::lanes::<S>();
    let mut total = 0.0;
    for block in x.chunks(BLOCK) {
        let whole = block.len() / lanes * lanes;
        let mut sum = T::Compute::load_part(simd, &block[whole..]);
        for x in block[..whole].chunks_exact(lanes) {
            sum = T::Compute::vadd(simd, sum, T::Compute::load(simd, x));
        }
        total += T::Compute::sum(simd, sum).to_f64();
    }
    total
}

/// The gradient of the logits. Without `logits` they are in `dx`, and are written over.
pub fn backward<T: Storage, I: IndexElement>(
    threads: &Threads,
    problem: &CrossEntropy,
    grad: &[T::Compute],
    logits: Option<&[T]>,
    targets: &[I],
    lse: &[T::Compute],
    count: Option<T::Compute>,
    dx: &mut [T],
) {
    let cols = problem.cols;
    assert!(dx.len() == problem.rows * cols && logits.is_none_or(|logits| logits.len() == dx.len()));
    assert!(targets.len() == problem.rows && lse.len() == problem.rows);
    if cols == 0 {
        return;
    }
    let streamed = stream::wanted(dx, cols);
    let rows = (CHUNK / cols).max(1);
    let mut tasks: Vec<_> = dx
        .chunks_mut(rows * cols)
        .enumerate()
        .map(|(part, dx)| BackwardRows { problem, first: part * rows, grad, logits, targets, lse, count, dx, streamed })
        .collect();
    threads.for_each_mut(&mut tasks, 1, |task| dispatch(task));
}

struct BackwardRows<'a, T: Storage, I> {
    problem: &'a CrossEntropy,
    first: usize,
    grad: &'a [T::Compute],
    logits: Option<&'a [T]>,
    targets: &'a [I],
    lse: &'a [T::Compute],
    count: Option<T::Compute>,
    dx: &'a mut [T],
    streamed: bool,
}

impl<T: Storage, I: IndexElement> WithSimd for &mut BackwardRows<'_, T, I> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let CrossEntropy { cols, ignore, smoothing, .. } = *self.problem;
        for (row, dx) in self.dx.chunks_exact_mut(cols).enumerate() {
            let row = self.first + row;
            let target: i64 = self.targets[row].into();
            // The forward pass has refused others; what a caller passes here must not be read past the row either.
            if target == ignore || !(0..cols as i64).contains(&target) {
                dx.fill(T::from_f32(0.0));
                continue;
            }
            let g = self.grad[if self.problem.reduction == Reduction::None { row } else { 0 }];
            let g = self.count.map_or(g, |count| g / count);
            let lse = self.lse[row];
            let smooth = smoothing / cols as f64;
            let x = self.logits.map(|logits| &logits[row * cols..(row + 1) * cols]);
            let at = x.map_or(dx[target as usize], |x| x[target as usize]);
            let factors = [lse, T::Compute::from_f64(smooth), g].map(|value| T::Compute::splat(simd, value));
            match (x, self.streamed) {
                (Some(x), true) => gradients::<T, S, true>(simd, x, dx, factors),
                (Some(x), false) => gradients::<T, S, false>(simd, x, dx, factors),
                (None, _) => in_place(simd, dx, factors),
            }
            let p = (at.to_f64() - lse.to_f64()).exp();
            dx[target as usize] = T::Compute::from_f64((p - smooth - (1.0 - smoothing)) * g.to_f64()).put();
        }
        stream::finish();
    }
}

type Vector<T, S> = <<T as Storage>::Compute as Real>::Vector<S>;

/// (e^(x - lse) - smooth) g
#[inline(always)]
fn entry<T: Storage, S: Simd>(simd: S, x: Vector<T, S>, [lse, smooth, g]: [Vector<T, S>; 3]) -> Vector<T, S> {
    let p = T::Compute::vexp(simd, T::Compute::vsub(simd, x, lse));
    T::Compute::vmul(simd, T::Compute::vsub(simd, p, smooth), g)
}

#[inline(always)]
fn gradients<T: Storage, S: Simd, const STREAMED: bool>(simd: S, x: &[T], dx: &mut [T], factors: [Vector<T, S>; 3]) {
    let lanes = T::Compute::lanes::<S>();
    let (mut x, mut dx) = (x.chunks_exact(lanes), dx.chunks_exact_mut(lanes));
    for (x, dx) in (&mut x).zip(&mut dx) {
        let d = entry::<T, S>(simd, T::Compute::load(simd, x), factors);
        if STREAMED {
            stream::store::<T::Compute, S, T>(simd, d, dx);
        } else {
            T::Compute::store(simd, d, dx);
        }
    }
    T::Compute::store_part(
        simd,
        entry::<T, S>(simd, T::Compute::load_part(simd, x.remainder()), factors),
        dx.into_remainder(),
    );
}

#[inline(always)]
fn in_place<T: Storage, S: Simd>(simd: S, dx: &mut [T], factors: [Vector<T, S>; 3]) {
    let lanes = T::Compute::lanes::<S>();
    let mut chunks = dx.chunks_exact_mut(lanes);
    for dx in &mut chunks {
        T::Compute::store(simd, entry::<T, S>(simd, T::Compute::load(simd, dx), factors), dx);
    }
    let rest = chunks.into_remainder();
    T::Compute::store_part(simd, entry::<T, S>(simd, T::Compute::load_part(simd, rest), factors), rest);
}
