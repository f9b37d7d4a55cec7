//! eigh on the host: one matrix in each lane of a vector.
//!
//! Householder tridiagonalisation of the lower triangle, in which the rank-2 update of a step is made together with the
//! product of the step after it (LAPACK sytd2; one pass over the triangle for each column), Q from the reflectors
//! (org2l), and implicit QL with Wilkinson's shift (steqr) for all lanes at once: each lane works on its own first
//! unreduced block, and rotations outside of it are the identity. The rotations of a chase are kept and then applied to
//! each row of Q. A lane's operations do not depend on the other lanes but for passes that leave it as it is.

use super::Triangle;
use crate::device::cpu::Threads;
use crate::device::cpu::interleaved::{lanes, load, scratch, store};
use crate::device::cpu::simd::{Real, Simd, WithSimd, dispatch};

/// Chases that a matrix may take, for each of its rows (as LAPACK).
const MOST_CHASES: usize = 30;

/// Eigenvalues, and eigenvectors unless `q` is empty, of each matrix of `a`; `info` as in the module's document.
pub fn eigh<T: Real>(
    threads: &Threads,
    a: &[T],
    n: usize,
    triangle: Triangle,
    l: &mut [T],
    q: &mut [T],
    info: &mut [i32],
) {
    if n == 0 {
        return info.fill(0);
    }
    let vectors = !q.is_empty();
    let lanes = lanes::<T>();
    let (mut l, mut q) = (l, q);
    let mut packs = Vec::with_capacity(info.len().div_ceil(lanes));
    for (a, info) in a.chunks(lanes * n * n).zip(info.chunks_mut(lanes)) {
        let (l_pack, l_rest) = l.split_at_mut(info.len() * n);
        let (q_pack, q_rest) = q.split_at_mut(if vectors { a.len() } else { 0 });
        packs.push(Pack { a, l: l_pack, q: q_pack, info });
        (l, q) = (l_rest, q_rest);
    }
    let registers = if vectors { 2 * n * n } else { n * n } + 8 * n;
    let memory = || scratch::<T>(registers);
    threads.for_each_mut_init(&mut packs, 512 / registers + 1, memory, |(memory, first), pack| {
        dispatch(Solve { pack, n, triangle, memory: &mut memory[*first..] });
    });
}

/// As many matrices as a vector has lanes.
struct Pack<'a, T> {
    a: &'a [T],
    l: &'a mut [T],
    q: &'a mut [T],
    info: &'a mut [i32],
}

struct Solve<'a, 'b, T> {
    pack: &'a mut Pack<'b, T>,
    n: usize,
    triangle: Triangle,
    memory: &'a mut [T],
}

/// Numbers of the type: sums of squares below `tiny_square` are those of zeros beside a matrix of norm 1, and
/// off-diagonal entries below `negligible`, N / 16 roundoffs, are within its error.
struct Limits<T> {
    tiny_square: T,
    roundoff: T,
    negligible: T,
    exponent: i32,
}

impl<T: Real> Limits<T> {
    fn new(n: usize) -> Limits<T> {
        let (square, roundoff, exponent) = if size_of::<T>() == 4 { (100, 24, 125) } else { (900, 53, 1021) };
        Limits {
            tiny_square: T::power_of_two(-square),
            roundoff: T::power_of_two(-roundoff),
            negligible: T::power_of_two(-roundoff - 4) * T::from_f64(n as f64),
            exponent,
        }
    }

    /// The exponent of two that brings a largest entry to 1 or near it.
    fn exponent_of(&self, largest: T) -> i32 {
        let exponent = (largest.to_f64().to_bits() >> 52 & 0x7ff) as i32 - 1023;
        if largest == T::default() { 0 } else { exponent.clamp(-self.exponent, self.exponent) }
    }
}

impl<T: Real> WithSimd for Solve<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Solve { pack, n, triangle, memory } = self;
        let vectors = !pack.q.is_empty();
        let (a, rest) = T::vectors_mut::<S>(memory).0.split_at_mut(n * n);
        let (q, rest) = rest.split_at_mut(if vectors { n * n } else { 0 });
        let (d, rest) = rest.split_at_mut(n);
        let (e, work) = rest.split_at_mut(n);
        let limits = Limits::<T>::new(n);
        load(simd, pack.a, n * n, a);
        if triangle == Triangle::Upper {
            for i in 0..n {
                for j in 0..i {
                    a[i * n + j] = a[j * n + i];
                }
            }
        }
        let mut unscale = [T::ONE; 16];
        rescale::<T, S>(simd, &limits, pack, n, a, &mut unscale);
        tridiagonalise::<T, S>(simd, &limits, n, a, d, e, work);
        if vectors {
            form_q::<T, S>(simd, n, a, q, &mut work[..n]);
        }
        let left = diagonalise::<T, S>(simd, &limits, n, d, e, q, work);
        let mut failed = [T::default(); 16];
        store::<T, S>(simd, &[left], 1, &mut failed[..pack.info.len()]);
        for (info, left) in pack.info.iter_mut().zip(failed) {
            if *info == 0 && left != T::default() {
                *info = 1;
            }
        }
        if vectors {
            canonical_signs::<T, S>(simd, n, q, work);
            store::<T, S>(simd, q, n * n, pack.q);
        }
        store::<T, S>(simd, d, n, pack.l);
        let nan = T::from_f64(f64::NAN);
        let (mut order, mut copy) = (Vec::with_capacity(n), vec![nan; n]);
        for (item, info) in pack.info.iter().enumerate() {
            let l = &mut pack.l[item * n..][..n];
            let q = if vectors { &mut pack.q[item * n * n..][..n * n] } else { &mut [] };
            if *info != 0 {
                l.fill(nan);
                q.fill(nan);
                continue;
            }
            order.clear();
            order.extend(0..n);
            order.sort_by(|i, j| l[*i].partial_cmp(&l[*j]).expect("a finite matrix has finite eigenvalues"));
            copy.copy_from_slice(l);
            for (value, from) in l.iter_mut().zip(&order) {
                *value = copy[*from] * unscale[item];
            }
            for row in q.chunks_exact_mut(n) {
                copy.copy_from_slice(row);
                for (entry, from) in row.iter_mut().zip(&order) {
                    *entry = copy[*from];
                }
            }
        }
    }
}

/// Scales each lane so that its largest entry is 1 or near it. Lanes that are not finite become zeros, and -1 in `info`.
#[inline(always)]
fn rescale<T: Real, S: Simd>(
    simd: S,
    limits: &Limits<T>,
    pack: &mut Pack<'_, T>,
    n: usize,
    a: &mut [T::Vector<S>],
    unscale: &mut [T; 16],
) {
    let zero = T::splat(simd, T::default());
    let (mut largest, mut poison) = (zero, zero);
    for i in 0..n {
        for entry in &a[i * n..=i * n + i] {
            largest = T::vmax(simd, T::vabs(simd, *entry), largest);
            poison = T::mul_add(simd, *entry, zero, poison);
        }
    }
    let count = pack.info.len();
    let (mut most, mut bad, mut scale) = ([T::default(); 16], [T::default(); 16], [T::ONE; 16]);
    store::<T, S>(simd, &[largest], 1, &mut most[..count]);
    store::<T, S>(simd, &[poison], 1, &mut bad[..count]);
    for (item, info) in pack.info.iter_mut().enumerate() {
        let finite = bad[item] == T::default();
        *info = if finite { 0 } else { -1 };
        if finite {
            let exponent = limits.exponent_of(most[item]);
            (scale[item], unscale[item]) = (T::power_of_two(-exponent), T::power_of_two(exponent));
        }
    }
    let mut factor = [zero];
    load(simd, &scale[..count], 1, &mut factor);
    let finite = T::less(simd, poison, T::splat(simd, T::ONE));
    for i in 0..n {
        for entry in &mut a[i * n..=i * n + i] {
            *entry = T::select(simd, finite, T::vmul(simd, *entry, factor[0]), zero);
        }
    }
}

/// T = Q' A Q with diagonal d and off-diagonal e. Reflector k has a 1 in row k + 1, which is implied, its other entries
/// below in column k of A, and tau in row 0 of column k + 1, which nothing reads any more (A is the lower triangle).
#[inline(always)]
fn tridiagonalise<T: Real, S: Simd>(
    simd: S,
    limits: &Limits<T>,
    n: usize,
    a: &mut [T::Vector<S>],
    d: &mut [T::Vector<S>],
    e: &mut [T::Vector<S>],
    work: &mut [T::Vector<S>],
) {
    let zero = T::splat(simd, T::default());
    let one = T::splat(simd, T::ONE);
    let half = T::splat(simd, T::power_of_two(-1));
    let (v, rest) = work.split_at_mut(n);
    let (w, rest) = rest.split_at_mut(n);
    let (u, rest) = rest.split_at_mut(n);
    let p = &mut rest[..n];
    v.fill(zero);
    w.fill(zero);
    e[n - 1] = zero;
    for k in 0..n {
        for i in k..n {
            let updated = T::neg_mul_add(simd, v[i], w[k], a[i * n + k]);
            a[i * n + k] = T::neg_mul_add(simd, w[i], v[k], updated);
        }
        d[k] = a[k * n + k];
        if k + 2 >= n {
            if k + 1 < n {
                e[k] = a[(k + 1) * n + k];
            }
            continue;
        }
        let mut squares = zero;
        for i in k + 2..n {
            squares = T::mul_add(simd, a[i * n + k], a[i * n + k], squares);
        }
        let alpha = a[(k + 1) * n + k];
        let none = T::less(simd, squares, T::splat(simd, limits.tiny_square));
        let norm = T::vsqrt(simd, T::mul_add(simd, alpha, alpha, squares));
        let beta = T::opposite_sign(simd, norm, alpha);
        let tau = T::select(simd, none, zero, T::vdiv(simd, T::vsub(simd, beta, alpha), beta));
        let inverse = T::select(simd, none, zero, T::vdiv(simd, one, T::vsub(simd, alpha, beta)));
        e[k] = T::select(simd, none, alpha, beta);
        a[k + 1] = tau;
        u[k + 1] = one;
        for i in k + 2..n {
            u[i] = T::vmul(simd, a[i * n + k], inverse);
            a[i * n + k] = u[i];
        }
        p[k + 1..].fill(zero);
        let whole = (n - k - 1) / 4 * 4;
        for i in (k + 1..k + 1 + whole).step_by(4) {
            rows::<T, S, 4>(simd, n, k + 1, i, a, v, w, u, p);
        }
        for i in k + 1 + whole..n {
            rows::<T, S, 1>(simd, n, k + 1, i, a, v, w, u, p);
        }
        let mut product = zero;
        for i in k + 1..n {
            p[i] = T::vmul(simd, p[i], tau);
            product = T::mul_add(simd, p[i], u[i], product);
        }
        let factor = T::vmul(simd, T::vmul(simd, half, tau), product);
        for i in k + 1..n {
            v[i] = u[i];
            w[i] = T::neg_mul_add(simd, factor, u[i], p[i]);
        }
    }
}

/// Rows `i` to `i + R` of the lower triangle from column `first` on: A -= v w' + w v', then p += A u, both halves.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the vectors of one step")]
fn rows<T: Real, S: Simd, const R: usize>(
    simd: S,
    n: usize,
    first: usize,
    i: usize,
    a: &mut [T::Vector<S>],
    v: &[T::Vector<S>],
    w: &[T::Vector<S>],
    u: &[T::Vector<S>],
    p: &mut [T::Vector<S>],
) {
    let zero = T::splat(simd, T::default());
    let (mut vi, mut wi, mut ui) = ([zero; R], [zero; R], [zero; R]);
    vi.copy_from_slice(&v[i..i + R]);
    wi.copy_from_slice(&w[i..i + R]);
    ui.copy_from_slice(&u[i..i + R]);
    let mut sums = [zero; R];
    let (v, w, u, left) = (&v[first..i], &w[first..i], &u[first..i], &mut p[first..i]);
    let mut lines = a[i * n..(i + R) * n].chunks_exact_mut(n);
    let mut lines: [&mut [T::Vector<S>]; R] = std::array::from_fn(|_| lines.next().expect("R rows"));
    {
        let lines = lines.each_mut().map(|line| &mut line[first..i]);
        for j in 0..left.len() {
            let mut sum = left[j];
            for r in 0..R {
                let updated = T::neg_mul_add(simd, vi[r], w[j], lines[r][j]);
                let updated = T::neg_mul_add(simd, wi[r], v[j], updated);
                lines[r][j] = updated;
                sums[r] = T::mul_add(simd, updated, u[j], sums[r]);
                sum = T::mul_add(simd, updated, ui[r], sum);
            }
            left[j] = sum;
        }
    }
    for r in 0..R {
        for c in 0..=r {
            let updated = T::neg_mul_add(simd, vi[r], wi[c], lines[r][i + c]);
            let updated = T::neg_mul_add(simd, wi[r], vi[c], updated);
            lines[r][i + c] = updated;
            sums[r] = T::mul_add(simd, updated, ui[c], sums[r]);
            if c < r {
                sums[c] = T::mul_add(simd, updated, ui[r], sums[c]);
            }
        }
    }
    for r in 0..R {
        p[i + r] = T::vadd(simd, p[i + r], sums[r]);
    }
}

/// Q = H_0 H_1 ... of the reflectors that [`tridiagonalise`] left in A, last first.
#[inline(always)]
fn form_q<T: Real, S: Simd>(simd: S, n: usize, a: &[T::Vector<S>], q: &mut [T::Vector<S>], u: &mut [T::Vector<S>]) {
    q.fill(T::splat(simd, T::default()));
    for i in 0..n {
        q[i * n + i] = T::splat(simd, T::ONE);
    }
    for k in (0..n.saturating_sub(2)).rev() {
        u[k + 1] = T::splat(simd, T::ONE);
        for i in k + 2..n {
            u[i] = a[i * n + k];
        }
        let tau = a[k + 1];
        let whole = (n - k - 1) / 4 * 4;
        for c in (k + 1..k + 1 + whole).step_by(4) {
            reflect::<T, S, 4>(simd, n, k + 1, c, tau, u, q);
        }
        for c in k + 1 + whole..n {
            reflect::<T, S, 1>(simd, n, k + 1, c, tau, u, q);
        }
    }
}

/// Columns `c` to `c + W` of Q, from row `first` on, less tau u (u' Q).
#[inline(always)]
fn reflect<T: Real, S: Simd, const W: usize>(
    simd: S,
    n: usize,
    first: usize,
    c: usize,
    tau: T::Vector<S>,
    u: &[T::Vector<S>],
    q: &mut [T::Vector<S>],
) {
    let mut sums = [T::splat(simd, T::default()); W];
    for (u, row) in u[first..n].iter().zip(q[first * n..].chunks_exact(n)) {
        let row = &row[c..c + W];
        for x in 0..W {
            sums[x] = T::mul_add(simd, *u, row[x], sums[x]);
        }
    }
    for x in 0..W {
        sums[x] = T::vmul(simd, sums[x], tau);
    }
    for (u, row) in u[first..n].iter().zip(q[first * n..].chunks_exact_mut(n)) {
        let row = &mut row[c..c + W];
        for x in 0..W {
            row[x] = T::neg_mul_add(simd, *u, sums[x], row[x]);
        }
    }
}

/// Implicit QL: d becomes the eigenvalues, and Q the eigenvectors unless it is empty. Returns what is not 0 in lanes
/// that did not converge.
#[inline(always)]
fn diagonalise<T: Real, S: Simd>(
    simd: S,
    limits: &Limits<T>,
    n: usize,
    d: &mut [T::Vector<S>],
    e: &mut [T::Vector<S>],
    q: &mut [T::Vector<S>],
    work: &mut [T::Vector<S>],
) -> T::Vector<S> {
    let zero = T::splat(simd, T::default());
    let one = T::splat(simd, T::ONE);
    let two = T::splat(simd, T::power_of_two(1));
    let roundoff = T::splat(simd, limits.roundoff);
    let negligible = T::splat(simd, limits.negligible);
    let tiny_square = T::splat(simd, limits.tiny_square);
    let index = |i: usize| T::from_f64(i as f64);
    let (sines, rest) = work.split_at_mut(n);
    let taus = &mut rest[..n];
    // Before `start` every lane is done.
    let mut start = 0;
    for _ in 0..MOST_CHASES * n {
        // The first unreduced block of each lane, from row `from` to row `to`, and what its shift needs.
        let (mut from, mut to) = (T::splat(simd, index(n)), zero);
        let (mut d_first, mut d_second, mut e_first, mut d_last) = (zero, zero, one, zero);
        let (mut inside, mut after) = (zero, zero);
        let mut busy = n;
        for i in start..n - 1 {
            let size = T::vadd(simd, T::vabs(simd, d[i]), T::vabs(simd, d[i + 1]));
            let least = T::mul_add(simd, size, roundoff, negligible);
            let small = T::less(simd, T::vabs(simd, e[i]), least);
            e[i] = T::select(simd, small, zero, e[i]);
            if busy == n {
                let any_left = T::any(simd, T::less(simd, zero, T::vabs(simd, e[i])));
                if !any_left {
                    continue;
                }
                busy = i;
            }
            let entry = T::select(simd, small, zero, one);
            // begins: unreduced here, neither inside nor after a block
            let fresh = T::vsub(simd, entry, T::vadd(simd, inside, after));
            let begins = T::less(simd, zero, fresh);
            from = T::select(simd, begins, T::splat(simd, index(i)), from);
            d_first = T::select(simd, begins, d[i], d_first);
            d_second = T::select(simd, begins, d[i + 1], d_second);
            e_first = T::select(simd, begins, e[i], e_first);
            inside = T::select(simd, begins, one, inside);
            // ends: inside, and reduced here
            let ends = T::less(simd, T::vadd(simd, entry, T::splat(simd, T::power_of_two(-1))), inside);
            after = T::select(simd, ends, one, after);
            inside = T::select(simd, ends, zero, inside);
            let goes_on = T::less(simd, zero, inside);
            to = T::select(simd, goes_on, T::splat(simd, index(i + 1)), to);
            d_last = T::select(simd, goes_on, d[i + 1], d_last);
        }
        if busy == n {
            return zero;
        }
        start = busy;
        // Wilkinson's shift, from the top of the block.
        let ratio = T::vdiv(simd, T::vsub(simd, d_second, d_first), T::vmul(simd, two, e_first));
        let root = T::vsqrt(simd, T::mul_add(simd, ratio, ratio, one));
        let divisor = T::vsub(simd, ratio, T::opposite_sign(simd, root, ratio));
        let mut g = T::vadd(simd, T::vsub(simd, d_last, d_first), T::vdiv(simd, e_first, divisor));
        let (mut s, mut c, mut p) = (one, one, zero);
        let end = T::largest(simd, to).to_f64() as usize;
        for i in (start..end).rev() {
            let place = T::splat(simd, index(i));
            let below = T::less(simd, place, to);
            let above = T::less(simd, place, from);
            let f = T::vmul(simd, s, e[i]);
            let b = T::vmul(simd, c, e[i]);
            let square = T::mul_add(simd, f, f, T::vmul(simd, g, g));
            let none = T::less(simd, square, tiny_square);
            // With the sign of g, the cosine is not negative.
            let r = T::select(simd, none, zero, copysign::<T, S>(simd, T::vsqrt(simd, square), g));
            let s_next = T::select(simd, none, zero, T::vdiv(simd, f, r));
            let c_next = T::select(simd, none, one, T::vdiv(simd, g, r));
            let last = T::less(simd, T::splat(simd, index(i + 1)), to);
            e[i + 1] = within::<T, S>(simd, above, below, T::select(simd, last, r, zero), e[i + 1]);
            let d_shifted = T::vsub(simd, d[i + 1], p);
            let t =
                T::mul_add(simd, T::vsub(simd, d[i], d_shifted), s_next, T::vmul(simd, two, T::vmul(simd, c_next, b)));
            let p_next = T::vmul(simd, s_next, t);
            d[i + 1] = within::<T, S>(simd, above, below, T::vadd(simd, d_shifted, p_next), d[i + 1]);
            let g_next = T::vsub(simd, T::vmul(simd, c_next, t), b);
            sines[i] = within::<T, S>(simd, above, below, s_next, zero);
            taus[i] = T::vdiv(simd, sines[i], T::vadd(simd, one, c_next));
            s = within::<T, S>(simd, above, below, s_next, s);
            c = within::<T, S>(simd, above, below, c_next, c);
            p = within::<T, S>(simd, above, below, p_next, p);
            g = within::<T, S>(simd, above, below, g_next, g);
        }
        for i in start..end {
            let place = T::splat(simd, index(i));
            let first = T::less(simd, place, from);
            let later = T::less(simd, from, place);
            let shifted = T::select(simd, later, d[i], T::vsub(simd, d[i], p));
            d[i] = T::select(simd, first, d[i], shifted);
            e[i] = T::select(simd, first, e[i], T::select(simd, later, e[i], g));
        }
        let (sines, taus) = (&sines[start..end], &taus[start..end]);
        let mut rows = q.chunks_exact_mut(4 * n);
        for rows in rows.by_ref() {
            rotate::<T, S, 4>(simd, n, start, sines, taus, rows);
        }
        for row in rows.into_remainder().chunks_exact_mut(n) {
            rotate::<T, S, 1>(simd, n, start, sines, taus, row);
        }
    }
    let mut left = zero;
    for e in &e[start..n - 1] {
        left = T::vadd(simd, left, T::vabs(simd, *e));
    }
    left
}

/// The rotations of a chase, last first, applied to columns `start` and after of R rows: x -= s (y + tau x),
/// y += s (x - tau y), of which the rounding errors do not drift (Rutishauser).
#[inline(always)]
fn rotate<T: Real, S: Simd, const R: usize>(
    simd: S,
    n: usize,
    start: usize,
    sines: &[T::Vector<S>],
    taus: &[T::Vector<S>],
    rows: &mut [T::Vector<S>],
) {
    let end = start + sines.len();
    let mut rows = rows.chunks_exact_mut(n);
    let rows: [&mut [T::Vector<S>]; R] = std::array::from_fn(|_| &mut rows.next().expect("R rows")[start..=end]);
    let mut carried = [T::splat(simd, T::default()); R];
    for r in 0..R {
        carried[r] = rows[r][sines.len()];
    }
    for i in (0..sines.len()).rev() {
        let (s, tau) = (sines[i], taus[i]);
        for r in 0..R {
            let (x, y) = (rows[r][i], carried[r]);
            carried[r] = T::neg_mul_add(simd, s, T::mul_add(simd, tau, x, y), x);
            rows[r][i + 1] = T::mul_add(simd, s, T::neg_mul_add(simd, tau, y, x), y);
        }
    }
    for r in 0..R {
        rows[r][0] = carried[r];
    }
}

/// `yes` in lanes whose block has the place: neither above its first row nor from its last on; else `no`.
#[inline(always)]
fn within<T: Real, S: Simd>(
    simd: S,
    above: T::Mask<S>,
    below: T::Mask<S>,
    yes: T::Vector<S>,
    no: T::Vector<S>,
) -> T::Vector<S> {
    T::select(simd, above, no, T::select(simd, below, yes, no))
}

/// The magnitude of `a` with the sign of `b`.
#[inline(always)]
fn copysign<T: Real, S: Simd>(simd: S, a: T::Vector<S>, b: T::Vector<S>) -> T::Vector<S> {
    T::opposite_sign(simd, a, T::opposite_sign(simd, a, b))
}

/// Makes the largest entry of each column, the first of equals, positive.
#[inline(always)]
fn canonical_signs<T: Real, S: Simd>(simd: S, n: usize, q: &mut [T::Vector<S>], work: &mut [T::Vector<S>]) {
    let zero = T::splat(simd, T::default());
    let (largest, rest) = work.split_at_mut(n);
    let signed = &mut rest[..n];
    largest.fill(zero);
    signed.fill(zero);
    for row in q.chunks_exact(n) {
        for c in 0..n {
            let size = T::vabs(simd, row[c]);
            let larger = T::less(simd, largest[c], size);
            largest[c] = T::select(simd, larger, size, largest[c]);
            signed[c] = T::select(simd, larger, row[c], signed[c]);
        }
    }
    for signed in signed.iter_mut() {
        let negative = T::less(simd, *signed, zero);
        *signed = T::select(simd, negative, T::splat(simd, -T::ONE), T::splat(simd, T::ONE));
    }
    for row in q.chunks_exact_mut(n) {
        for c in 0..n {
            row[c] = T::vmul(simd, row[c], signed[c]);
        }
    }
}
