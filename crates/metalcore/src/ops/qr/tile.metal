// Batched Householder QR with the matrix in registers (LAPACK geqr2 + org2r; Golub & Van Loan 5.2.1).
// A column belongs to QR_LANES neighbouring threads, which hold QR_R of its rows each; rows and columns beyond the
// matrix are zeros, which reflections leave alone. Specialised by text:
//   QR_R, QR_LANES   rows per thread (a multiple of 4); threads per column (a power of 2 up to 32)
//   QR_COLS          columns that a matrix has room for; QR_LANES * QR_COLS threads work on a matrix
//   QR_MATS          matrices per threadgroup (1 unless a matrix takes at most one simd group)
//   QR_KEEP          1: the reflectors stay in threadgroup memory and Q is formed without a barrier
#define QR_TPM (QR_LANES * QR_COLS)
#define QR_ROWS (QR_R * QR_LANES)
#define QR_RANK (QR_ROWS < QR_COLS ? QR_ROWS : QR_COLS)
#define QR_VS (QR_KEEP ? QR_RANK : 2)
#if QR_LANES * QR_COLS <= 32
#define qr_sync() sg_barrier()
#else
#define qr_sync() tg_barrier()
#endif
G_KERNEL(qr_tile, QR_TPM * QR_MATS, IN(0, real, A), OUT(1, real, Q), OUT(2, real, R), PARAMS(3, qr_params, p)) {
  TG_ARRAY(real, reflectors, QR_MATS * QR_VS * QR_ROWS);
  TG_ARRAY(real, taus, QR_MATS * QR_RANK);
  const gk_ctx c = G_CTX();
  const uint slot = QR_MATS == 1 ? 0 : c.tid / QR_TPM, t = c.tid - slot * QR_TPM;
  const uint col = t / QR_LANES, l = t % QR_LANES;
  const bool live = QR_MATS == 1 || c.grp * QR_MATS + slot < p.batch;
  const uint mat = live ? c.grp * QR_MATS + slot : p.batch - 1;  // a spare slot repeats the last matrix, and stores nothing
  TG(real) V = reflectors + slot * (QR_VS * QR_ROWS);
  TG(real) tau = taus + slot * QR_RANK;

  const gk_i64 a0 = (gk_i64)mat * p.rows * p.cols;
  real a[QR_R];
  G_UNROLL for (uint i = 0; i < QR_R; ++i) {
    const uint row = QR_ROW(i, l);
    a[i] = 0.0f;
    if (row < p.rows && col < p.cols) a[i] = A[a0 + (gk_i64)row * p.cols + col];
  }

  const uint last = (t | 31u) / QR_LANES;  // the last column of this simd group
  for (uint k = 0; k < p.rank; ++k) {
    TG(real) v = V + (QR_KEEP ? k : k & 1u) * QR_ROWS;
    if (t / 32 == k * QR_LANES / 32) {
      const qr_reflector h = qr_reflect(a, k, l, c);
      if (col == k) {
        qr_become(a, h, k, l);
        qr_publish(a, v, k, l);
        if (l == 0) tau[k] = h.tau;
      }
    }
    qr_sync();
    if (last > k) qr_apply(a, v, tau[k], l, col > k);
  }

  const gk_i64 r0 = (gk_i64)mat * p.r_rows * p.cols;
  if (live && col < p.cols) {
    G_UNROLL for (uint i = 0; i < QR_R; ++i) {
      const uint row = QR_ROW(i, l);
      if (row < p.r_rows) R[r0 + (gk_i64)row * p.cols + col] = row <= col ? a[i] : 0.0f;
    }
  }

  // Q = H_0 ... H_(rank-1) I, last reflector first; column `col` of it, from the same threads.
  if (p.q_cols == 0) return;
  real q[QR_R];
  G_UNROLL for (uint i = 0; i < QR_R; ++i) q[i] = QR_ROW(i, l) == col ? 1.0f : 0.0f;
#if !QR_KEEP
  qr_sync();  // the last reads of V come before it is written again
#endif
  for (uint n = 0; n < p.rank; ++n) {
    const uint k = p.rank - 1 - n;
    TG(real) v = V + (QR_KEEP ? k : n & 1u) * QR_ROWS;
#if !QR_KEEP
    if (col == k) qr_publish(a, v, k, l);
    qr_sync();
#endif
    if (last >= k) qr_apply(q, v, tau[k], l, col >= k);
  }
  const gk_i64 q0 = (gk_i64)mat * p.rows * p.q_cols;
  if (live && col < p.q_cols) {
    G_UNROLL for (uint i = 0; i < QR_R; ++i) {
      const uint row = QR_ROW(i, l);
      if (row < p.rows) Q[q0 + (gk_i64)row * p.q_cols + col] = q[i];
    }
  }
}
