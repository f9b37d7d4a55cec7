//! kl_div on the host: both rows are read once.

use crate::device::cpu::Threads;
use crate::device::cpu::rows::block_sum;
use crate::device::cpu::simd::{Real, Simd, Storage, WithSimd, dispatch, stream};

/// Elements that a thread takes at a time: more work than the taking.
const CHUNK: usize = 16 * 1024;

/// Losses of rows of `cols` classes.
pub fn forward<T: Storage>(threads: &Threads, log_p: &[T], log_q: &[T], losses: &mut [T::Compute], cols: usize) {
    assert!(log_p.len() == log_q.len() && log_p.len() == losses.len() * cols);
    if cols == 0 {
        return losses.fill(T::Compute::default());
    }
    let rows = (CHUNK / cols).max(1);
    let parts = log_p.chunks(rows * cols).zip(log_q.chunks(rows * cols)).zip(losses.chunks_mut(rows));
    let mut tasks: Vec<_> = parts.map(|((log_p, log_q), losses)| ForwardRows { log_p, log_q, losses }).collect();
    threads.for_each_mut(&mut tasks, 1, |task| dispatch(task));
}

struct ForwardRows<'a, T: Storage> {
    log_p: &'a [T],
    log_q: &'a [T],
    losses: &'a mut [T::Compute],
}

impl<T: Storage> WithSimd for &mut ForwardRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let cols = self.log_p.len() / self.losses.len();
        let lanes = T::Compute::lanes::<S>();
        let rows = self.log_p.chunks_exact(cols).zip(self.log_q.chunks_exact(cols));
        for ((x, y), loss) in rows.zip(&mut *self.losses) {
            let rest = cols / lanes * lanes..;
            // What lies beyond the row is 0 in both: a difference of 0.
            let first = term::<T, S>(
                simd,
                T::Compute::load_part(simd, &x[rest.clone()]),
                T::Compute::load_part(simd, &y[rest]),
                T::Compute::splat(simd, T::Compute::default()),
            );
            *loss = block_sum::<T::Compute, S>(
                simd,
                first,
                cols / lanes,
                #[inline(always)]
                |j, sum| {
                    let at = j * lanes..(j + 1) * lanes;
                    term::<T, S>(simd, T::Compute::load(simd, &x[at.clone()]), T::Compute::load(simd, &y[at]), sum)
                },
            );
        }
    }
}

type Vector<T, S> = <<T as Storage>::Compute as Real>::Vector<S>;

/// `yes` where p is 0, or would be subnormal; else `no`. The exponential is 0 there.
#[inline(always)]
fn where_none<T: Storage, S: Simd>(simd: S, p: Vector<T, S>, yes: Vector<T, S>, no: Vector<T, S>) -> Vector<T, S> {
    let zero = T::Compute::splat(simd, T::Compute::default());
    // NaN is neither: it takes the `no` of what is not 0.
    let positive = T::Compute::select(simd, T::Compute::less(simd, zero, p), no, yes);
    T::Compute::select(simd, T::Compute::less(simd, p, T::Compute::splat(simd, T::Compute::ONE)), positive, no)
}

/// sum + p (x - y)
#[inline(always)]
fn term<T: Storage, S: Simd>(simd: S, x: Vector<T, S>, y: Vector<T, S>, sum: Vector<T, S>) -> Vector<T, S> {
    let p = T::Compute::vexp(simd, x);
    where_none::<T, S>(simd, p, sum, T::Compute::mul_add(simd, p, T::Compute::vsub(simd, x, y), sum))
}

/// The gradients that are wanted.
pub fn backward<T: Storage>(
    threads: &Threads,
    grad: &[T::Compute],
    log_p: &[T],
    log_q: &[T],
    dp: Option<&mut [T]>,
    dq: Option<&mut [T]>,
    cols: usize,
) {
    assert!(log_p.len() == log_q.len() && log_p.len() == grad.len() * cols);
    assert!(dp.as_ref().is_none_or(|dp| dp.len() == log_p.len()));
    assert!(dq.as_ref().is_none_or(|dq| dq.len() == log_p.len()));
    if cols == 0 {
        return;
    }
    let rows = (CHUNK / cols).max(1);
    let streamed = [&dp, &dq].map(|out| out.as_ref().is_some_and(|out| stream::wanted(out, cols)));
    let mut dp = dp.into_iter().flat_map(|dp| dp.chunks_mut(rows * cols));
    let mut dq = dq.into_iter().flat_map(|dq| dq.chunks_mut(rows * cols));
    let parts = log_p.chunks(rows * cols).zip(log_q.chunks(rows * cols)).zip(grad.chunks(rows));
    let mut tasks: Vec<_> = parts
        .map(|((log_p, log_q), grad)| BackwardRows { grad, log_p, log_q, dp: dp.next(), dq: dq.next(), streamed })
        .collect();
    threads.for_each_mut(&mut tasks, 1, |task| dispatch(task));
}

struct BackwardRows<'a, T: Storage> {
    grad: &'a [T::Compute],
    log_p: &'a [T],
    log_q: &'a [T],
    dp: Option<&'a mut [T]>,
    dq: Option<&'a mut [T]>,
    streamed: [bool; 2],
}

impl<T: Storage> WithSimd for &mut BackwardRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let cols = self.log_p.len() / self.grad.len();
        let lanes = T::Compute::lanes::<S>();
        for (row, g) in self.grad.iter().enumerate() {
            let g = T::Compute::splat(simd, *g);
            let mut start = row * cols;
            let end = start + cols;
            while start < end {
                let at = start..end.min(start + lanes);
                start = at.end;
                let whole = at.len() == lanes;
                let load = |values: &[T]| match whole {
                    true => T::Compute::load(simd, &values[at.clone()]),
                    false => T::Compute::load_part(simd, &values[at.clone()]),
                };
                let [dp, dq] = entry::<T, S>(simd, load(self.log_p), load(self.log_q), g);
                for (out, value, streamed) in
                    [(&mut self.dp, dp, self.streamed[0]), (&mut self.dq, dq, self.streamed[1])]
                {
                    let Some(out) = out else { continue };
                    match (whole, streamed) {
                        (true, true) => stream::store::<T::Compute, S, T>(simd, value, &mut out[at.clone()]),
                        (true, false) => T::Compute::store(simd, value, &mut out[at.clone()]),
                        (false, _) => T::Compute::store_part(simd, value, &mut out[at.clone()]),
                    }
                }
            }
        }
        stream::finish();
    }
}

/// g p (1 + x - y) and -g p; 0 where p is 0.
#[inline(always)]
fn entry<T: Storage, S: Simd>(simd: S, x: Vector<T, S>, y: Vector<T, S>, g: Vector<T, S>) -> [Vector<T, S>; 2] {
    let p = T::Compute::vexp(simd, x);
    let zero = T::Compute::splat(simd, T::Compute::default());
    let weighted = T::Compute::vmul(simd, p, g);
    let sum = T::Compute::vadd(simd, T::Compute::splat(simd, T::Compute::ONE), T::Compute::vsub(simd, x, y));
    let dp = where_none::<T, S>(simd, p, zero, T::Compute::vmul(simd, weighted, sum));
    [dp, where_none::<T, S>(simd, p, zero, T::Compute::vsub(simd, zero, weighted))]
}
