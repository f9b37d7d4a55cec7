// Batched blocked Householder QR (LAPACK geqrf + orgqr; Golub & Van Loan 5.2.3): a panel of QR_COLS columns is factored in
// registers by one threadgroup (`qr_panel`), and all groups apply its reflectors to the columns after it (`qr_update`).
// A block of reflectors is applied without the triangular factor T: z_j = tau_j (v_j' x - sum_i v_j' v_i z_i), x -= V z, the
// sum over the reflectors applied before; so it needs the products v_j' v_i, which the panel has at hand. Specialised by text:
//   QR_R, QR_LANES   how `qr_panel` holds a column (reflector.metal)
//   QR_COLS          columns of a panel, a multiple of 4
//   QR_FORM_Q        how `qr_update` is used: 0: on A, first reflector first; 1: on Q, last reflector first
// V keeps the reflectors of each panel by rows, QR_COLS of each row; `gram` the products, with tau on the diagonal.
G_FN gk_i64 qr_v_at(uint mat, uint row, PREF(qr_blocked_params) p) {
  return (((gk_i64)mat * p.panels + p.first / QR_COLS) * p.rows + row) * QR_COLS;
}
G_FN gk_i64 qr_gram_at(uint mat, PREF(qr_blocked_params) p) {
  return ((gk_i64)mat * p.panels + p.first / QR_COLS) * (QR_COLS * QR_COLS);
}

#if !defined(QR_FORM_Q)
#define QR_THREADS (QR_LANES * QR_COLS)
#define QR_CHUNK (4 * QR_LANES)
#define QR_PITCH (QR_CHUNK + 4)

// A chunk of rows passes through threadgroup memory, so that device memory is read and written by rows.
G_KERNEL(qr_panel, QR_THREADS, IN(0, real, A), IN(1, real, W), OUT(2, real, V), OUT(3, real, gram), OUT(4, real, R),
         PARAMS(5, qr_blocked_params, p)) {
  TG_ARRAY(real, stage, QR_COLS * QR_PITCH);
  TG_ARRAY(real, reflectors, 2 * QR_R * QR_LANES);
  TG_ARRAY(real, products, QR_COLS * QR_COLS);
  const gk_ctx c = G_CTX();
  const uint col = c.tid / QR_LANES, l = c.tid % QR_LANES, mat = c.grp, rows = p.rows - p.first;
  const gk_i64 a0 = ((gk_i64)mat * p.rows + p.first) * p.cols + p.first;
  real a[QR_R];
  G_UNROLL for (uint i = 0; i < QR_R; i += 4) {
    const uint base = QR_CHUNK * (i / 4);
    for (uint e = c.tid; e < QR_CHUNK * QR_COLS; e += QR_THREADS) {
      const uint row = base + e / QR_COLS, j = e % QR_COLS;
      real x = 0.0f;
      if (row < rows && j < p.width) {
        const gk_i64 at = a0 + (gk_i64)row * p.cols + j;
        x = p.first == 0 ? A[at] : W[at];
      }
      stage[j * QR_PITCH + row - base] = x;
    }
    tg_barrier();
    const v4 u = gk_tg_ld4(stage, col * QR_PITCH + 4 * l);
    a[i] = u.x;
    a[i + 1] = u.y;
    a[i + 2] = u.z;
    a[i + 3] = u.w;
    tg_barrier();
  }
  for (uint e = c.tid; e < QR_COLS * QR_COLS; e += QR_THREADS) products[e] = 0.0f;
  tg_barrier();

  for (uint k = 0; k < p.width; ++k) {
    TG(real) v = reflectors + (k & 1u) * (QR_R * QR_LANES);
    if (c.tid / 32 == k * QR_LANES / 32) {
      const qr_reflector h = qr_reflect(a, k, l, c);
      if (col == k) {
        qr_become(a, h, k, l);
        qr_publish(a, v, k, l);
        if (l == 0) products[k * QR_COLS + k] = h.tau;
      }
    }
    tg_barrier();
    const real d = qr_apply(a, v, products[k * QR_COLS + k], l, col > k);
    if (l == 0 && col < k) {
      products[col * QR_COLS + k] = d;
      products[k * QR_COLS + col] = d;
    }
  }

  const gk_i64 v0 = qr_v_at(mat, p.first, p), r0 = ((gk_i64)mat * p.r_rows + p.first) * p.cols + p.first;
  G_UNROLL for (uint i = 0; i < QR_R; i += 4) {
    const uint base = QR_CHUNK * (i / 4);
    tg_barrier();
    gk_tg_st4(stage, col * QR_PITCH + 4 * l, v4(a[i], a[i + 1], a[i + 2], a[i + 3]));
    tg_barrier();
    for (uint e = c.tid; e < QR_CHUNK * QR_COLS; e += QR_THREADS) {
      const uint row = base + e / QR_COLS, j = e % QR_COLS;
      const real x = stage[j * QR_PITCH + row - base], one = row == j && j < p.width ? 1.0f : 0.0f;
      if (row < rows) V[v0 + (gk_i64)row * QR_COLS + j] = row > j ? x : one;
      if (p.first + row < p.r_rows && j < p.width) R[r0 + (gk_i64)row * p.cols + j] = row <= j ? x : 0.0f;
    }
  }
  const gk_i64 g0 = qr_gram_at(mat, p);
  for (uint e = c.tid; e < QR_COLS * QR_COLS; e += QR_THREADS) gram[g0 + e] = products[e];
}

#else
#define QR_THREADS 256
#define QR_WIDE 16  // columns of a group
#define QR_STREAMS (QR_THREADS / QR_WIDE)
#define QR_SG (QR_THREADS / 32)

#if QR_FORM_Q
// Q from the identity, of which only what reflectors have reached is in memory.
G_KERNEL(qr_update, QR_THREADS, IN(0, real, V), IN(1, real, gram), IO(2, real, Q), PARAMS(3, qr_blocked_params, p)) {
#else
G_KERNEL(qr_update, QR_THREADS, IN(0, real, V), IN(1, real, gram), IN(2, real, A), IO(3, real, W), OUT(4, real, R),
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
#endif
