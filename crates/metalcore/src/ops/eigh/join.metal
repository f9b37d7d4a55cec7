// The new Q' of a merge: see conquer.metal. A group has 32 rows and 64 columns of it, a thread 4 by 4.
#define EIGH_DEPTH 16
G_KERNEL(eigh_join, 128, IO(0, real, work), PARAMS(1, eigh_params, p)) {
  TG_ARRAY(real, left, EIGH_DEPTH * 36);
  TG_ARRAY(real, right, EIGH_DEPTH * 68);
  TG_ARRAY(real, origin, 32);
  TG_ARRAY(real, mu, 32);
  TG_ARRAY(real, inverse, 32);
  TG_ARRAY(uint, code, 32);
  const gk_ctx c = G_CTX();
  const uint tiles = p.row_tiles * p.col_tiles, node = c.grp / tiles, tile = c.grp - node * tiles;
  const uint mat = node / p.nodes, b = (node - mat * p.nodes) * 2 * p.part, ld = p.lda, t = c.tid;
  const uint size = p.n - b < 2 * p.part ? p.n - b : 2 * p.part;
  const uint row0 = tile / p.col_tiles * 32, col0 = tile % p.col_tiles * 64;
  if (row0 >= size || col0 >= size) return;
  DEV(real) D = work + (eigh_vector(mat, 0, p) + b);
  DEV(real) V = work + (eigh_q(mat, p.old, p) + (gk_i64)b * ld + b);
  DEV(real) W = work + (eigh_q(mat, 1 - p.old, p) + (gk_i64)b * ld + b);
  const uint count = uint(D[EIGH_COUNT * p.ldq]);
  if (t < 32) {
    const uint mine = row0 + t < size ? uint(D[EIGH_CODE * p.ldq + row0 + t]) : EIGH_ALONE;
    const bool root = mine < EIGH_ALONE;
    code[t] = mine;
    origin[t] = root ? D[EIGH_ORIGIN * p.ldq + mine] : 0.0f;
    mu[t] = root ? D[EIGH_MU * p.ldq + mine] : 0.0f;
    inverse[t] = root ? D[EIGH_INV * p.ldq + mine] : 0.0f;
  }
  tg_barrier();
  real sums[16];
  G_UNROLL for (uint e = 0; e < 16; ++e) sums[e] = 0.0f;
  const uint r4 = 4 * (t / 16), c4 = 4 * (t % 16);
  for (uint first = 0; first < count; first += EIGH_DEPTH) {
    for (uint e = t; e < EIGH_DEPTH * 32; e += 128) {
      const uint i = first + e / 32, r = e % 32;
      real x = 0.0f;
      if (i < count && code[r] < EIGH_ALONE) {
        x = inverse[r] * D[EIGH_Z * p.ldq + i] / ((D[EIGH_POLE * p.ldq + i] - origin[r]) - mu[r]);
      }
      left[e / 32 * 36 + r] = x;
    }
    for (uint e = t; e < EIGH_DEPTH * 64; e += 128) {
      const uint i = first + e / 64, column = e % 64;
      real x = 0.0f;
      if (i < count && col0 + column < size) x = V[uint(D[EIGH_ROW * p.ldq + i]) * ld + col0 + column];
      right[e / 64 * 68 + column] = x;
    }
    tg_barrier();
    G_UNROLL for (uint i = 0; i < EIGH_DEPTH; ++i) {
      const v4 x = gk_tg_ld4(left, i * 36 + r4), y = gk_tg_ld4(right, i * 68 + c4);
      sums[0] = g_fma(x.x, y.x, sums[0]);
      sums[1] = g_fma(x.x, y.y, sums[1]);
      sums[2] = g_fma(x.x, y.z, sums[2]);
      sums[3] = g_fma(x.x, y.w, sums[3]);
      sums[4] = g_fma(x.y, y.x, sums[4]);
      sums[5] = g_fma(x.y, y.y, sums[5]);
      sums[6] = g_fma(x.y, y.z, sums[6]);
      sums[7] = g_fma(x.y, y.w, sums[7]);
      sums[8] = g_fma(x.z, y.x, sums[8]);
      sums[9] = g_fma(x.z, y.y, sums[9]);
      sums[10] = g_fma(x.z, y.z, sums[10]);
      sums[11] = g_fma(x.z, y.w, sums[11]);
      sums[12] = g_fma(x.w, y.x, sums[12]);
      sums[13] = g_fma(x.w, y.y, sums[13]);
      sums[14] = g_fma(x.w, y.z, sums[14]);
      sums[15] = g_fma(x.w, y.w, sums[15]);
    }
    tg_barrier();
  }
  G_UNROLL for (uint r = 0; r < 4; ++r) {
    const uint row = row0 + r4 + r;
    if (row >= size) continue;
    const uint from = code[r4 + r];
    G_UNROLL for (uint e = 0; e < 4; ++e) {
      const uint column = col0 + c4 + e;
      if (column < size) {
        W[row * ld + column] = from < EIGH_ALONE ? sums[4 * r + e] : V[(from - EIGH_ALONE) * ld + column];
      }
    }
  }
}
