// Factors a panel; a column is held as in reflector.metal.
#define QR_THREADS (QR_LANES * QR_COLS)
#define QR_CHUNK (4 * QR_LANES)
#define QR_PITCH (QR_CHUNK + 4)

// A chunk of rows passes through threadgroup memory, so that device memory is read and written by rows.
G_KERNEL(qr_panel, QR_THREADS, IN(0, real, A), IN(1, real, W), IO(2, real, V), IO(3, real, gram), IO(4, real, R),
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
