#define GK_ALLOW_SPILL "float64 on sm_80: 80 bytes of a column of 128"
// After a panel: rows of all other columns in their new order; right of the panel U12 = L11^-1 A12 and A22 - L21 U12.
// A group takes LU_CHUNK rows of 32 columns, one column per lane, from one buffer to the other.
#define LU_CHUNK 128

G_KERNEL(lu_update, 256, IN(0, real, from), IO(1, real, to), IN(2, uint, order), PARAMS(3, lu_panel_params, p)) {
  TG_ARRAY(real, L, 32 * 33);
  const gk_ctx c = G_CTX();
  const uint row_block = c.grp % p.row_blocks, rest = c.grp / p.row_blocks;
  const uint col = 32 * (rest % p.col_blocks) + c.lane, mat = rest / p.col_blocks;
  const uint block = col - c.lane, start = LU_CHUNK * row_block;
  const uint end = g_minu(start + LU_CHUNK, p.rows), below = p.first + p.width;
  const bool inside = col < p.cols, own = block == p.first;
  const gk_i64 a0 = (gk_i64)mat * p.rows * p.cols, o0 = (gk_i64)mat * p.rows;
  if (inside) {
    // Above the panel nothing changes, and left of it rows only move.
    const uint last = block < p.first ? end : g_minu(end, p.first);
    for (uint row = start + c.sg; row < last; row += 8)
      to[a0 + (gk_i64)row * p.cols + col] = from[a0 + (gk_i64)(row < p.first ? row : order[o0 + row]) * p.cols + col];
  }
  // Columns of the last panel's own block that come after it are to be updated too.
  const bool right = block > p.first || (own && p.width < 32 && below < p.cols);
  if (!right || end <= p.first) return;
  const bool mine = inside && col >= below;
  for (uint e = c.tid; e < 32 * 32; e += 256) {
    const uint i = e / 32, s = e % 32;
    L[i * 33 + s] = i < p.width && s < p.width ? to[a0 + (gk_i64)(p.first + i) * p.cols + p.first + s] : real(0.0f);
  }
  tg_barrier();
  real u[32];
  G_UNROLL for (uint s = 0; s < 32; ++s)
    u[s] = mine && s < p.width ? from[a0 + (gk_i64)order[o0 + p.first + s] * p.cols + col] : real(0.0f);
  G_UNROLL for (uint s = 0; s < 31; ++s)
    G_UNROLL for (uint i = s + 1; i < 32; ++i) u[i] = g_fma(-L[i * 33 + s], u[s], u[i]);
  G_UNROLL for (uint s = 0; s < 32; ++s) {
    const uint row = p.first + s;
    if (mine && s < p.width && s % 8 == c.sg && row >= start && row < end) to[a0 + (gk_i64)row * p.cols + col] = u[s];
  }
  const uint begin = below > start ? below : start;
  for (uint row = begin + 4 * c.sg; row < end; row += 32) {
    real l[4], x[4];
    G_UNROLL for (uint i = 0; i < 4; ++i) {
      const bool there = row + i < end;
      const gk_i64 at = a0 + (gk_i64)(row + i) * p.cols;
      l[i] = there && c.lane < p.width ? to[at + p.first + c.lane] : real(0.0f);
      x[i] = there && mine ? from[a0 + (gk_i64)order[o0 + row + i] * p.cols + col] : real(0.0f);
    }
    G_UNROLL for (uint s = 0; s < 32; ++s)
      G_UNROLL for (uint i = 0; i < 4; ++i) x[i] = g_fma(-sg_shfl(l[i], s), u[s], x[i]);
    G_UNROLL for (uint i = 0; i < 4; ++i)
      if (row + i < end && mine) to[a0 + (gk_i64)(row + i) * p.cols + col] = x[i];
  }
}
