// Cholesky of a matrix of any size by one group: panels of 32 columns, each less the products with all columns before
// (left-looking), so that L is written once. Rows of a panel go through threadgroup memory 128 at a time; the first 32 of
// the panel are factored by one simd group in registers (steps.metal), the others are solved for, a row a thread.
#define CHOLESKY_THREADS 256
#define CHOLESKY_COLS CHOLESKY_N
#define CHOLESKY_ROWS 128
#define CHOLESKY_DEPTH 16
#define CHOLESKY_STEP (CHOLESKY_DEPTH + 4)
// Row i, column j of L, or of the other triangle's transpose.
#define CHOLESKY_AT(i, j) (at + (p.upper != 0 ? (gk_i64)(j) * p.n + (i) : (gk_i64)(i) * p.n + (j)))

G_KERNEL(cholesky_blocked, CHOLESKY_THREADS, IN(0, real, A), IO(1, real, L), OUT(2, int, info),
         PARAMS(3, cholesky_params, p)) {
  TG_ARRAY(real, work, CHOLESKY_ROWS * CHOLESKY_PITCH);     // factors of products, then the rows of the panel
  TG_ARRAY(real, triangle, CHOLESKY_COLS * CHOLESKY_PITCH);  // the panel's first rows
  TG_ARRAY(real, columns, 2 * CHOLESKY_COLS);
  TG_ARRAY(real, inverses, CHOLESKY_COLS);
  const gk_ctx c = G_CTX();
  const uint n = p.n;
  const gk_i64 at = (gk_i64)c.grp * n * n;
  TG(real) left = work;
  TG(real) right = work + CHOLESKY_ROWS * CHOLESKY_STEP;
  const uint r0 = c.tid / 8 * 4, c0 = c.tid % 8 * 4;  // the 4 x 4 entries of this thread
  uint bad = 0;
  for (uint first = 0; first < n; first += CHOLESKY_COLS) {
    const uint width = g_minu(CHOLESKY_COLS, n - first);
    for (uint base = first; base < n; base += CHOLESKY_ROWS) {
      real sums[16];
      G_UNROLL for (uint e = 0; e < 16; ++e) sums[e] = 0.0f;
      for (uint k0 = 0; k0 < first; k0 += CHOLESKY_DEPTH) {
        for (uint e = c.tid; e < CHOLESKY_ROWS * CHOLESKY_DEPTH; e += CHOLESKY_THREADS) {
          // Neighbouring threads read neighbouring addresses.
          const uint k = p.upper != 0 ? e / CHOLESKY_ROWS : e % CHOLESKY_DEPTH;
          const uint r = p.upper != 0 ? e % CHOLESKY_ROWS : e / CHOLESKY_DEPTH;
          left[r * CHOLESKY_STEP + k] = base + r < n ? L[CHOLESKY_AT(base + r, k0 + k)] : real(0.0f);
        }
        for (uint e = c.tid; e < CHOLESKY_COLS * CHOLESKY_DEPTH; e += CHOLESKY_THREADS) {
          const uint k = p.upper != 0 ? e / CHOLESKY_COLS : e % CHOLESKY_DEPTH;
          const uint r = p.upper != 0 ? e % CHOLESKY_COLS : e / CHOLESKY_DEPTH;
          right[r * CHOLESKY_STEP + k] = first + r < n ? L[CHOLESKY_AT(first + r, k0 + k)] : real(0.0f);
        }
        tg_barrier();
        G_UNROLL for (uint k = 0; k < CHOLESKY_DEPTH; k += 4) {
          v4 x[4], y[4];
          G_UNROLL for (uint e = 0; e < 4; ++e) {
            x[e] = gk_tg_ld4(left, (r0 + e) * CHOLESKY_STEP + k);
            y[e] = gk_tg_ld4(right, (c0 + e) * CHOLESKY_STEP + k);
          }
          G_UNROLL for (uint e = 0; e < 16; ++e) {
            sums[e] = g_fma(x[e / 4].x, y[e % 4].x, sums[e]);
            sums[e] = g_fma(x[e / 4].y, y[e % 4].y, sums[e]);
            sums[e] = g_fma(x[e / 4].z, y[e % 4].z, sums[e]);
            sums[e] = g_fma(x[e / 4].w, y[e % 4].w, sums[e]);
          }
        }
        tg_barrier();
      }
      G_UNROLL for (uint e = 0; e < 16; ++e) {
        work[(r0 + e / 4) * CHOLESKY_PITCH + c0 + e % 4] = sums[e];
      }
      tg_barrier();
      for (uint e = c.tid; e < CHOLESKY_ROWS * CHOLESKY_COLS; e += CHOLESKY_THREADS) {
        const uint r = p.upper != 0 ? e % CHOLESKY_ROWS : e / CHOLESKY_COLS;
        const uint j = p.upper != 0 ? e / CHOLESKY_ROWS : e % CHOLESKY_COLS;
        const bool there = base + r < n && j < width && first + j <= base + r;
        const uint place = r * CHOLESKY_PITCH + j;
        work[place] = there ? A[CHOLESKY_AT(base + r, first + j)] - work[place] : real(0.0f);
      }
      tg_barrier();
      if (base == first) {
        if (c.sg == 0) {
          cholesky_place m;
          m.i = c.lane, m.n = width, m.bad = 0, m.upper = false, m.at = 0;
          real a[CHOLESKY_COLS];
          G_UNROLL for (uint j = 0; j < CHOLESKY_COLS; ++j) a[j] = work[c.lane * CHOLESKY_PITCH + j];
          cholesky_rows(a, columns, triangle, L, m);
          if (bad == 0 && m.bad != 0) bad = first + m.bad;
          if (c.lane < width) inverses[c.lane] = real(1.0f) / triangle[c.lane * (CHOLESKY_PITCH + 1)];
        }
        tg_barrier();
      }
      if (c.tid < CHOLESKY_ROWS) {
        const uint r = c.tid;
        real x[CHOLESKY_COLS];
        G_UNROLL for (uint j = 0; j < CHOLESKY_COLS; ++j) {
          x[j] = work[r * CHOLESKY_PITCH + j];
          if (j < width) {
            G_UNROLL for (uint k = 0; k < j; ++k) x[j] = g_fma(-x[k], triangle[j * CHOLESKY_PITCH + k], x[j]);
            x[j] = x[j] * inverses[j];
            const bool top = base == first && r < CHOLESKY_COLS;
            work[r * CHOLESKY_PITCH + j] = top ? triangle[r * CHOLESKY_PITCH + j] : x[j];
          }
        }
      }
      tg_barrier();
      for (uint e = c.tid; e < CHOLESKY_ROWS * CHOLESKY_COLS; e += CHOLESKY_THREADS) {
        const uint r = p.upper != 0 ? e % CHOLESKY_ROWS : e / CHOLESKY_COLS;
        const uint j = p.upper != 0 ? e / CHOLESKY_ROWS : e % CHOLESKY_COLS;
        if (base + r < n && j < width) L[CHOLESKY_AT(base + r, first + j)] = work[r * CHOLESKY_PITCH + j];
      }
      tg_barrier_dev();
    }
    for (uint e = c.tid; e < first * width; e += CHOLESKY_THREADS) {
      const uint i = p.upper != 0 ? e % first : e / width, j = p.upper != 0 ? e / first : e % width;
      L[CHOLESKY_AT(i, first + j)] = 0.0f;
    }
  }
  if (c.tid == 0) info[c.grp] = int(bad);
}
