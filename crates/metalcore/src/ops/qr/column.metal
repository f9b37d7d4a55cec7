// Batched Householder QR of any size in device memory, one threadgroup per matrix, one column per simd group at a time.
// The matrix and Q are kept by columns in `work` (rows * (cols + q_cols) elements per matrix), so that a simd group reads
// a column coalesced; the current reflector is in threadgroup memory (QR_MAX_ROWS).
#define QR_SG (QR_THREADS / 32)

// x -= tau (v' x) v on rows first..rows-1 of the columns `from`, `from` + QR_SG, ... below `to`.
G_FN void qr_apply(DEV(real) x, gk_i64 x0, TG(const real) v, real tau, uint first, uint rows, uint from, uint to, gk_ctx c) {
  for (uint j = from + c.sg; j < to; j += QR_SG) {
    const gk_i64 column = x0 + (gk_i64)j * rows;
    real d = 0.0f;
    for (uint i = first + c.lane; i < rows; i += 32) d += v[i] * x[column + i];
    d = tau * sg_sum(d);
    for (uint i = first + c.lane; i < rows; i += 32) x[column + i] -= d * v[i];
  }
}

G_KERNEL(qr_column, QR_THREADS, IN(0, real, A), OUT(1, real, Q), OUT(2, real, R), OUT(3, real, work), PARAMS(4, qr_params, p)) {
  TG_ARRAY(real, v, QR_MAX_ROWS);
  TG_ARRAY(real, taus, QR_MAX_ROWS);
  TG_ARRAY(real, scratch, QR_SG);
  const gk_ctx c = G_CTX();
  const gk_i64 a0 = (gk_i64)c.grp * p.rows * p.cols;
  const gk_i64 w0 = (gk_i64)c.grp * p.rows * (p.cols + p.q_cols), q0 = w0 + (gk_i64)p.rows * p.cols;
  const uint size = p.rows * p.cols;
  for (uint e = c.tid; e < size; e += QR_THREADS) work[w0 + (gk_i64)(e % p.cols) * p.rows + e / p.cols] = A[a0 + e];
  tg_barrier_dev();

  for (uint k = 0; k < p.rank; ++k) {
    const gk_i64 column = w0 + (gk_i64)k * p.rows;
    const real alpha = work[column + k];
    real ss = 0.0f;
    for (uint i = k + 1 + c.tid; i < p.rows; i += QR_THREADS) {
      const real t = work[column + i];
      ss += t * t;
    }
    ss = gk_tg_sum<QR_THREADS>(ss, scratch, c);
    real s = 1.0f, tail = 1.0f;
    if (qr_unsafe(ss, alpha)) {
      tail = 0.0f;
      for (uint i = k + 1 + c.tid; i < p.rows; i += QR_THREADS) tail = g_max(tail, g_abs(work[column + i]));
      tail = gk_tg_max<QR_THREADS>(tail, scratch, c);
      s = qr_scale(g_max(tail, g_abs(alpha)));
      tail = ss == 0.0f ? tail : 1.0f;  // a NaN is no zero
      ss = 0.0f;
      for (uint i = k + 1 + c.tid; i < p.rows; i += QR_THREADS) {
        const real t = work[column + i] * s;
        ss += t * t;
      }
      ss = gk_tg_sum<QR_THREADS>(ss, scratch, c);
    }
    const qr_reflector h = qr_make(alpha, ss, s, tail == 0.0f);
    tg_barrier_dev();  // every thread has read its part of the column
    for (uint i = k + c.tid; i < p.rows; i += QR_THREADS) {
      const real t = i == k ? real(1.0f) : work[column + i] * h.s * h.scale;
      v[i] = t;
      work[column + i] = i == k ? h.beta : t;
    }
    if (c.tid == 0) taus[k] = h.tau;
    tg_barrier_dev();
    qr_apply(work, w0, v, h.tau, k, p.rows, k + 1, p.cols, c);
    tg_barrier_dev();
  }

  const gk_i64 r0 = (gk_i64)c.grp * p.r_rows * p.cols;
  const uint r_size = p.r_rows * p.cols;
  for (uint e = c.tid; e < r_size; e += QR_THREADS) {
    const uint i = e / p.cols, j = e % p.cols;
    R[r0 + e] = 0.0f;
    if (i <= j) R[r0 + e] = work[w0 + (gk_i64)j * p.rows + i];
  }

  // Q = H_0 ... H_(rank-1) I, last reflector first.
  const uint q_size = p.rows * p.q_cols;
  for (uint e = c.tid; e < q_size; e += QR_THREADS) work[q0 + e] = e / p.rows == e % p.rows ? 1.0f : 0.0f;
  for (uint n = 0; n < p.rank; ++n) {
    const uint k = p.rank - 1 - n;
    tg_barrier_dev();
    for (uint i = k + c.tid; i < p.rows; i += QR_THREADS) v[i] = i == k ? real(1.0f) : work[w0 + (gk_i64)k * p.rows + i];
    tg_barrier_dev();
    qr_apply(work, q0, v, taus[k], k, p.rows, k, p.q_cols, c);
  }
  tg_barrier_dev();
  const gk_i64 out = (gk_i64)c.grp * q_size;
  for (uint e = c.tid; e < q_size; e += QR_THREADS) Q[out + e] = work[q0 + (gk_i64)(e % p.q_cols) * p.rows + e / p.q_cols];
}
