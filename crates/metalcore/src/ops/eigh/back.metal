// Q of A from that of T: each eigenvector x, a row of Q', becomes H_0 H_1 ... x, last reflector first, with x in the registers
// of a simd group; then its sign, and it is stored as a column. A group has 32 columns, a simd group EIGH_EACH of them.
// Specialised by text: EIGH_CHUNKS, 32 rows each. Groups beyond one for the columns do nothing where Q is not asked for.
#define EIGH_EACH 4
G_KERNEL(eigh_back, 256, OUT(0, real, L), OUT(1, real, Q), IN(2, real, work), PARAMS(3, eigh_params, p)) {
  TG_ARRAY(real, stage, 32 * 33);
  const gk_ctx c = G_CTX();
  const uint n = p.n, groups = (n + 31) / 32, mat = c.grp / groups, column0 = (c.grp - mat * groups) * 32;
  const gk_i64 scales = eigh_vector(mat, EIGH_SCALE, p), values = eigh_vector(mat, EIGH_D, p);
  const gk_i64 taus = eigh_vector(mat, EIGH_TAU, p), reflectors = (gk_i64)mat * p.stride, q0 = eigh_q(mat, p.old, p);
  const real unscale = work[scales];
  const bool failed = work[scales + 1] != 0.0f;
  if (c.tid < 32 && column0 + c.tid < n) {
    const uint j = column0 + c.tid;
    L[(gk_i64)mat * n + j] = failed ? g_nan() : work[values + j] * unscale;
  }
  if (p.vectors == 0) return;
  real x[EIGH_EACH * EIGH_CHUNKS];
  G_UNROLL for (uint r = 0; r < EIGH_EACH; ++r) {
    const uint j = column0 + EIGH_EACH * c.sg + r;
    G_UNROLL for (uint h = 0; h < EIGH_CHUNKS; ++h) {
      const uint i = 32 * h + c.lane;
      x[r * EIGH_CHUNKS + h] = 0.0f;
      if (i < n && j < n) x[r * EIGH_CHUNKS + h] = work[q0 + (gk_i64)j * p.lda + i];
    }
  }
  // The next reflector is on its way while one is applied.
  real coming[EIGH_CHUNKS];
  G_UNROLL for (uint h = 0; h < EIGH_CHUNKS; ++h) coming[h] = 0.0f;
  for (uint s = 2; s <= n; ++s) {
    const uint k = n - s;  // the one that comes is k - 1
    real u[EIGH_CHUNKS], sums[EIGH_EACH];
    G_UNROLL for (uint r = 0; r < EIGH_EACH; ++r) sums[r] = 0.0f;
    G_UNROLL for (uint h = 0; h < EIGH_CHUNKS; ++h) {
      const uint i = 32 * h + c.lane;
      u[h] = coming[h];
      coming[h] = 0.0f;
      if (k > 0 && i >= k && i < n) coming[h] = work[reflectors + (gk_i64)(k - 1) * p.lda + i];
      G_UNROLL for (uint r = 0; r < EIGH_EACH; ++r) sums[r] = g_fma(u[h], x[r * EIGH_CHUNKS + h], sums[r]);
    }
    if (s == 2) continue;
    const real tau = work[taus + k];
    G_UNROLL for (uint r = 0; r < EIGH_EACH; ++r) {
      const real factor = -tau * sg_sum(sums[r]);
      G_UNROLL for (uint h = 0; h < EIGH_CHUNKS; ++h) {
        x[r * EIGH_CHUNKS + h] = g_fma(factor, u[h], x[r * EIGH_CHUNKS + h]);
      }
    }
  }
  G_UNROLL for (uint r = 0; r < EIGH_EACH; ++r) {
    real most = 0.0f, signed_most = 0.0f;
    uint row = n;
    G_UNROLL for (uint h = 0; h < EIGH_CHUNKS; ++h) {
      const real y = x[r * EIGH_CHUNKS + h];
      if (g_abs(y) > most) {
        most = g_abs(y);
        signed_most = y;
        row = 32 * h + c.lane;
      }
    }
    const real top = sg_max(most);
    const uint first = sg_min(most == top ? row : n);
    const bool negative = sg_any(row == first && signed_most < 0.0f);
    const real sign = failed ? g_nan() : (negative ? -1.0f : 1.0f);
    G_UNROLL for (uint h = 0; h < EIGH_CHUNKS; ++h) x[r * EIGH_CHUNKS + h] *= sign;
  }
  const gk_i64 out = (gk_i64)mat * n * n;
  G_UNROLL for (uint h = 0; h < EIGH_CHUNKS; ++h) {
    if (32 * h < n) {
      G_UNROLL for (uint r = 0; r < EIGH_EACH; ++r) {
        stage[(EIGH_EACH * c.sg + r) * 33 + c.lane] = x[r * EIGH_CHUNKS + h];
      }
      tg_barrier();
      for (uint i = c.sg; i < 32; i += 8) {
        if (32 * h + i < n && column0 + c.lane < n) Q[out + (gk_i64)(32 * h + i) * n + column0 + c.lane] = stage[c.lane * 33 + i];
      }
      tg_barrier();
    }
  }
}
