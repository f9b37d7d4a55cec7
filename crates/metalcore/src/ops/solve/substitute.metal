// P A = L U: X from A X = B or its transpose. A group solves 8 right sides of a matrix, in place in X, by blocks of 32
// rows: a simd group has one right side of the diagonal block, then every thread takes rows of what is left.
#define LU_PITCH 33

// Entry (row, col) of the triangular factor of L, U, or of their transposes.
G_FN gk_i64 lu_at(uint row, uint col, PREF(lu_substitute_params) p) {
  return p.transposed != 0 ? (gk_i64)col * p.n + row : (gk_i64)row * p.n + col;
}

G_KERNEL(lu_substitute, 256, IN(0, real, LU), IN(1, int, pivots), IN(2, real, B), IO(3, real, X),
         PARAMS(4, lu_substitute_params, p)) {
  TG_ARRAY(real, T, 32 * LU_PITCH);
  TG_ARRAY(real, solved, 32 * 8);
  const gk_ctx c = G_CTX();
  const uint mat = c.grp / p.chunks, first = 8 * (c.grp % p.chunks), width = g_minu(8, p.sides - first);
  const gk_i64 l0 = (gk_i64)mat * p.n * p.n, x0 = (gk_i64)mat * p.n * p.sides + first, p0 = (gk_i64)mat * p.n;
  for (uint row = c.tid / 8; row < p.n; row += 32)
    if (c.tid % 8 < width) {
      const gk_i64 at = x0 + (gk_i64)row * p.sides + c.tid % 8;
      X[at] = p.identity == 0 ? B[at] : first + c.tid % 8 == row ? real(1.0f) : real(0.0f);
    }
  tg_barrier_dev();
  if (p.transposed == 0 && c.tid < width) {
    for (uint row = 0; row < p.n; ++row) {
      const uint other = g_minu((uint)pivots[p0 + row] - 1, p.n - 1);
      if (other != row) {
        const gk_i64 i = x0 + (gk_i64)row * p.sides + c.tid, j = x0 + (gk_i64)other * p.sides + c.tid;
        const real x = X[i];
        X[i] = X[j];
        X[j] = x;
      }
    }
  }
  tg_barrier_dev();
  const uint blocks = (p.n + 31) / 32;
  for (uint pass = 0; pass < 2; ++pass) {
    // L has a unit diagonal, and is the first factor of A and the second one of its transpose.
    const bool forward = pass == 0, unit = forward == (p.transposed == 0);
    for (uint block = 0; block < blocks; ++block) {
      const uint k = 32 * (forward ? block : blocks - 1 - block), size = g_minu(32, p.n - k);
      for (uint e = c.tid; e < 32 * 32; e += 256) {
        const uint i = e / 32, s = e % 32;
        const bool there = i < size && s < size;
        const real x = there ? LU[l0 + (gk_i64)(k + i) * p.n + k + s] : i == s ? real(1.0f) : real(0.0f);
        T[p.transposed != 0 ? s * LU_PITCH + i : i * LU_PITCH + s] = x;
      }
      tg_barrier();
      const bool mine = c.lane < size && c.sg < width;
      const gk_i64 at = x0 + (gk_i64)(k + c.lane) * p.sides + c.sg;
      real x = mine ? X[at] : real(0.0f);
      for (uint n = 0; n < size; ++n) {
        const uint s = forward ? n : size - 1 - n;
        real known = sg_shfl(x, s);
        if (!unit) known = known / T[s * LU_PITCH + s];
        if (c.lane == s) x = known;
        else if (forward ? c.lane > s : c.lane < s) x = g_fma(-T[c.lane * LU_PITCH + s], known, x);
      }
      if (mine) X[at] = x;
      solved[c.lane * 8 + c.sg] = x;
      tg_barrier();
      const uint begin = forward ? k + size : 0, end = forward ? p.n : k;
      for (uint row = begin + c.tid; row < end; row += 256) {
        real y[8];
        const gk_i64 y0 = x0 + (gk_i64)row * p.sides;
        G_UNROLL for (uint j = 0; j < 8; ++j) y[j] = j < width ? X[y0 + j] : real(0.0f);
        for (uint s = 0; s < size; ++s) {
          const real l = LU[l0 + lu_at(row, k + s, p)];
          G_UNROLL for (uint j = 0; j < 8; ++j) y[j] = g_fma(-l, solved[s * 8 + j], y[j]);
        }
        G_UNROLL for (uint j = 0; j < 8; ++j)
          if (j < width) X[y0 + j] = y[j];
      }
      tg_barrier_dev();
    }
  }
  if (p.transposed != 0 && c.tid < width) {
    for (uint n = 0; n < p.n; ++n) {
      const uint row = p.n - 1 - n, other = g_minu((uint)pivots[p0 + row] - 1, p.n - 1);
      if (other != row) {
        const gk_i64 i = x0 + (gk_i64)row * p.sides + c.tid, j = x0 + (gk_i64)other * p.sides + c.tid;
        const real x = X[i];
        X[i] = X[j];
        X[j] = x;
      }
    }
  }
}
