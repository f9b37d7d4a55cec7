// Applies the reflectors of a panel to QR_WIDE columns a group: QR_FORM_Q 0: of A, the first reflector first; 1: of Q, the
// last one first.
#define QR_THREADS 256
#define QR_WIDE 16  // columns of a group
#define QR_STREAMS (QR_THREADS / QR_WIDE)
#define QR_SG (QR_THREADS / 32)

#if QR_FORM_Q
// Q from the identity, of which only what reflectors have reached is in memory.
G_KERNEL(qr_update, QR_THREADS, IN(0, real, V), IN(1, real, gram), IO(2, real, Q), PARAMS(3, qr_blocked_params, p)) {
#else
G_KERNEL(qr_update, QR_THREADS, IN(0, real, V), IN(1, real, gram), IN(2, real, A), IO(3, real, W), IO(4, real, R),
         PARAMS(5, qr_blocked_params, p)) {
#endif
  TG_ARRAY(real, sums, QR_SG * QR_COLS * QR_WIDE);
  TG_ARRAY(real, products, QR_COLS * QR_COLS);
  const gk_ctx c = G_CTX();
  const uint mat = c.grp / p.blocks, t = c.tid % QR_WIDE, stream = c.tid / QR_WIDE;
  const uint next = p.first + p.width;
#if QR_FORM_Q
  const uint wide = p.q_cols, col = p.first + (c.grp % p.blocks) * QR_WIDE + t;
#define QR_LOAD(row) \
  (p.last != 0 || (row) < next || col < next ? ((row) == col ? real(1.0f) : real(0.0f)) : Q[x0 + (gk_i64)(row) * wide])
#else
  const uint wide = p.cols, col = next + (c.grp % p.blocks) * QR_WIDE + t;
#define QR_LOAD(row) (p.first == 0 ? A[x0 + (gk_i64)(row) * wide] : W[x0 + (gk_i64)(row) * wide])
#endif
  const bool live = col < wide;
  const gk_i64 x0 = (gk_i64)mat * p.rows * wide + col, v0 = qr_v_at(mat, 0, p), g0 = qr_gram_at(mat, p);
  for (uint e = c.tid; e < QR_COLS * QR_COLS; e += QR_THREADS) products[e] = gram[g0 + e];

  real z[QR_COLS];
  G_UNROLL for (uint j = 0; j < QR_COLS; ++j) z[j] = 0.0f;
  if (live) {
    for (uint row = p.first + stream; row < p.rows; row += QR_STREAMS) {
      const real x = QR_LOAD(row);
      const gk_i64 v = v0 + (gk_i64)row * QR_COLS;
      G_UNROLL for (uint j = 0; j < QR_COLS; j += 4) {
        const v4 u = gk_ld4(V, v + j);
        z[j] += u.x * x;
        z[j + 1] += u.y * x;
        z[j + 2] += u.z * x;
        z[j + 3] += u.w * x;
      }
    }
  }
  G_UNROLL for (uint j = 0; j < QR_COLS; ++j) {
    const real s = z[j] + sg_xor(z[j], QR_WIDE);
    if (c.lane < QR_WIDE) sums[(c.sg * QR_COLS + j) * QR_WIDE + t] = s;
  }
  tg_barrier();
  for (uint e = c.tid; e < QR_COLS * QR_WIDE; e += QR_THREADS) {
    real s = sums[e];
    G_UNROLL for (uint g = 1; g < QR_SG; ++g) s += sums[g * (QR_COLS * QR_WIDE) + e];
    sums[e] = s;  // read and written by this thread alone
  }
  tg_barrier();

  G_UNROLL for (uint j = 0; j < QR_COLS; ++j) z[j] = sums[j * QR_WIDE + t];
  G_UNROLL for (uint n = 0; n < QR_COLS; ++n) {
    const uint k = QR_FORM_Q ? QR_COLS - 1 - n : n;
    z[k] *= products[k * QR_COLS + k];
    G_UNROLL for (uint j = 0; j < QR_COLS; ++j) {
      if (QR_FORM_Q ? j < k : j > k) z[j] -= products[k * QR_COLS + j] * z[k];
    }
  }

  if (!live) return;
  for (uint row = p.first + stream; row < p.rows; row += QR_STREAMS) {
    real x = QR_LOAD(row);
    const gk_i64 v = v0 + (gk_i64)row * QR_COLS;
    G_UNROLL for (uint j = 0; j < QR_COLS; j += 4) {
      const v4 u = gk_ld4(V, v + j);
      x -= (u.x * z[j] + u.y * z[j + 1]) + (u.z * z[j + 2] + u.w * z[j + 3]);
    }
#if QR_FORM_Q
    Q[x0 + (gk_i64)row * wide] = x;
#else
    if (row < next) {
      R[((gk_i64)mat * p.r_rows + row) * wide + col] = x;
    } else {
      W[x0 + (gk_i64)row * wide] = x;
    }
#endif
  }
}
