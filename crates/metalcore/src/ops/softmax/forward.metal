// y = e^(x - m) / s, m the largest of the row, s = sum e^(x - m). What lies beyond a row counts as -infinity. Threads whose
// row is beyond the last one have 0 columns.
G_FN void softmax_take(DEV(const ROW_T) x, gk_i64 base, uint tile, uint t, uint cols, PRIV(real) h) {
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      row_load(x, base + i, h + v * ROW_VEC);
    } else {
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) h[v * ROW_VEC + e] = -g_inf();
    }
  }
}
G_FN void softmax_put(DEV(ROW_T) y, gk_i64 base, uint tile, uint t, uint cols, PRIV(real) h, real factor) {
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) h[v * ROW_VEC + e] *= factor;
      row_store(y, base + i, h + v * ROW_VEC);
    }
  }
}
G_FN real softmax_largest(PRIV(real) h, real largest) {
  G_UNROLL for (uint e = 0; e < ROW_E; ++e) largest = g_max(largest, h[e]);
  return largest;
}

G_KERNEL(softmax_fwd, ROW_THREADS, IN(0, ROW_T, x), OUT(1, ROW_T, y), PARAMS(2, softmax_params, p)) {
  ROW_SCRATCH;
  const gk_ctx c = G_CTX();
  const uint row = c.grp * ROW_ROWS + c.tid / ROW_TPR;
  const uint t = c.tid % ROW_TPR;
  const uint cols = row < p.rows ? p.cols : 0;
  const gk_i64 base = (gk_i64)row * p.cols;
  real h[ROW_E];
#if ROW_STREAM
  const uint tiles = (cols + ROW_TILE - 1) / ROW_TILE;
  real m = -g_inf(), s = 0.0f;
  for (uint tile = 0; tile < tiles; ++tile) {
    softmax_take(x, base, tile, t, cols, h);
    const real larger = softmax_largest(h, m);
    // Nothing but -infinity so far: its exponentials are 0 whatever is subtracted.
    const real shift = larger == -g_inf() ? 0.0f : larger;
    s *= g_exp(m - shift);
    G_UNROLL for (uint e = 0; e < ROW_E; ++e) s += g_exp(h[e] - shift);
    m = larger;
  }
  const real largest = row_max(m, scratch, c);
  s = row_sum(m == -g_inf() ? s : s * g_exp(m - largest), scratch, c);
  const real factor = real(1.0f) / s;
  // From the end, which is still in registers and in the cache.
  for (uint tile = tiles; tile-- > 0;) {
    if (tile + 1 < tiles) softmax_take(x, base, tile, t, cols, h);
    G_UNROLL for (uint e = 0; e < ROW_E; ++e) h[e] = g_exp(h[e] - largest);
    softmax_put(y, base, tile, t, cols, h, factor);
  }
#else
  softmax_take(x, base, 0, t, cols, h);
  const real largest = row_max(softmax_largest(h, -g_inf()), scratch, c);
  real s = 0.0f;
  G_UNROLL for (uint e = 0; e < ROW_E; ++e) {
    h[e] = g_exp(h[e] - largest);
    s += h[e];
  }
  s = row_sum(s, scratch, c);
  softmax_put(y, base, 0, t, cols, h, real(1.0f) / s);
#endif
}
