// Substitution: a group has a matrix and TRSM_COLS right sides. Rows are taken in blocks of 32, a row a lane. A block is
// solved by one simd group in registers; then every simd group subtracts its products from blocks that are left, the
// first one from the next block, which it solves at once: one barrier a block. Tiles of A pass through threadgroup memory,
// one for each simd group, so that device memory is read by rows. Specialised by text:
//   TRSM_SGS  simd groups
#define TRSM_COLS 8
#define TRSM_TILE (32 * 33)

// The tile of A that rows r0.. of op(A) have in columns c0..: entry (i, j) at tile[33 i + j].
G_FN void trsm_load(DEV(const real) A, TG(real) tile, gk_i64 at, uint n, uint r0, uint c0, bool transposed, gk_ctx c) {
  const uint top = transposed ? c0 : r0, left = transposed ? r0 : c0;
  G_UNROLL for (uint e = 0; e < 32; ++e) {
    const real x = top + e < n && left + c.lane < n ? A[at + (gk_i64)(top + e) * n + left + c.lane] : real(0.0f);
    tile[transposed ? 33 * c.lane + e : 33 * e + c.lane] = x;
  }
}

// Solves for 32 rows, lane i for row i; y is its right sides, then its solutions. The divisor's inverse is formed once, of
// d s with s a power of two, so that it is never subnormal.
G_FN void trsm_solve(PRIV(real) y, TG(const real) tile, uint rows, bool forward, bool unit, gk_ctx c) {
  const real d = unit || c.lane >= rows ? real(1.0f) : tile[34 * c.lane], size = g_abs(d);
#if GK_F64
  const real s = size > 1e250 ? 4.909093465297727e-91 : (size < 1e-250 ? 2.037035976334486e90 : 1.0);  // 2^-300, 2^300
#else
  const real s = size > 1.0e30f ? 5.421010862427522e-20f : (size < 1.0e-30f ? 18446744073709551616.0f : 1.0f);  // 2^-64, 2^64
#endif
  const real inverse = real(1.0f) / (d * s);
  for (uint q = 0; q < rows; ++q) {
    const uint j = forward ? q : rows - 1 - q;
    const bool after = forward ? c.lane > j : c.lane < j;
    const real a = tile[33 * c.lane + j];
    G_UNROLL for (uint e = 0; e < TRSM_COLS; ++e) {
      if (c.lane == j && !unit) y[e] = y[e] * s * inverse;
      const real x = sg_shfl(y[e], j);
      if (after) y[e] = g_fma(-a, x, y[e]);
    }
  }
}

G_KERNEL(trsm, 32 * TRSM_SGS, IN(0, real, A), IN(1, real, B), IO(2, real, X), PARAMS(3, trsm_params, p)) {
  TG_ARRAY(real, tiles, TRSM_SGS * TRSM_TILE);
  TG_ARRAY(real, solved, 2 * 32 * TRSM_COLS);
  const gk_ctx c = G_CTX();
  const uint n = p.n, mat = c.grp / p.chunks, first = c.grp % p.chunks * TRSM_COLS, blocks = (n + 31) / 32;
  const gk_i64 a0 = (gk_i64)mat * n * n, x0 = (gk_i64)mat * n * p.cols + first;
  const uint cols = g_minu(TRSM_COLS, p.cols - first);
  TG(real) tile = tiles + c.sg * TRSM_TILE;
  for (uint pass = 0; pass < p.passes; ++pass) {
    const bool transposed = (p.transposed ^ pass) != 0, forward = (p.forward ^ pass) != 0;
    // Step 0 solves the first block alone; step t subtracts the products with block t - 1 from the blocks that are left.
    for (uint t = 0; t < blocks; ++t) {
      for (uint u = t + c.sg; u < (t == 0 ? g_minu(1, blocks) : blocks); u += TRSM_SGS) {
        const uint block = forward ? u : blocks - 1 - u, row = 32 * block + c.lane;
        const gk_i64 at = x0 + (gk_i64)row * p.cols;
        real y[TRSM_COLS];
        G_UNROLL for (uint e = 0; e < TRSM_COLS; ++e) {
          y[e] = 0.0f;
          if (row < n && e < cols) {
            if (t <= 1 && pass == 0) y[e] = B[at + e];
            else y[e] = X[at + e];
          }
        }
        if (t > 0) {
          const uint before = forward ? t - 1 : blocks - t;
          trsm_load(A, tile, a0, n, 32 * block, 32 * before, transposed, c);
          sg_barrier();
          TG(const real) x = solved + (t & 1u) * (32 * TRSM_COLS);
          G_UNROLL for (uint j = 0; j < 32; ++j) {
            const real a = tile[33 * c.lane + j];
            const v4 lo = gk_tg_ld4(x, TRSM_COLS * j), hi = gk_tg_ld4(x, TRSM_COLS * j + 4);
            y[0] = g_fma(-a, lo.x, y[0]);
            y[1] = g_fma(-a, lo.y, y[1]);
            y[2] = g_fma(-a, lo.z, y[2]);
            y[3] = g_fma(-a, lo.w, y[3]);
            y[4] = g_fma(-a, hi.x, y[4]);
            y[5] = g_fma(-a, hi.y, y[5]);
            y[6] = g_fma(-a, hi.z, y[6]);
            y[7] = g_fma(-a, hi.w, y[7]);
          }
          sg_barrier();
        }
        if (u == t) {
          trsm_load(A, tile, a0, n, 32 * block, 32 * block, transposed, c);
          sg_barrier();
          trsm_solve(y, tile, g_minu(32, n - 32 * block), forward, p.unit != 0, c);
          TG(real) x = solved + (1 - (t & 1u)) * (32 * TRSM_COLS);
          if (row >= n) {  // a zero of A times an infinity would be NaN
            G_UNROLL for (uint e = 0; e < TRSM_COLS; ++e) y[e] = 0.0f;
          }
          gk_tg_st4(x, TRSM_COLS * c.lane, v4(y[0], y[1], y[2], y[3]));
          gk_tg_st4(x, TRSM_COLS * c.lane + 4, v4(y[4], y[5], y[6], y[7]));
          sg_barrier();
        }
        G_UNROLL for (uint e = 0; e < TRSM_COLS; ++e) {
          if (row < n && e < cols) X[at + e] = y[e];
        }
      }
      tg_barrier_dev();
    }
  }
}
