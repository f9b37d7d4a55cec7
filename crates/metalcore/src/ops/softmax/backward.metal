// dx = y (dy - sum(y dy)). Threads whose row is beyond the last one have 0 columns.
G_FN void softmax_take(DEV(const ROW_T) y, DEV(const ROW_T) dy, gk_i64 base, uint tile, uint t, uint cols, PRIV(row_chunk) yv,
                       PRIV(row_chunk) gv) {
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      row_hold(y, base + i, yv[v]);
      row_hold(dy, base + i, gv[v]);
    }
  }
}
// The thread's part of sum(y dy).
G_FN real softmax_dot(PRIV(row_chunk) yv, PRIV(row_chunk) gv, uint tile, uint t, uint cols) {
  real dot = 0.0f;
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      real a[ROW_VEC], b[ROW_VEC];
      row_open(yv[v], a);
      row_open(gv[v], b);
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) dot = g_fma(a[e], b[e], dot);
    }
  }
  return dot;
}
G_FN void softmax_put(PRIV(row_chunk) yv, PRIV(row_chunk) gv, DEV(ROW_T) dx, gk_i64 base, uint tile, uint t, uint cols,
                      real dot) {
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      real a[ROW_VEC], b[ROW_VEC];
      row_open(yv[v], a);
      row_open(gv[v], b);
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) a[e] *= b[e] - dot;
      row_store(dx, base + i, a);
    }
  }
}

G_KERNEL(softmax_bwd, ROW_THREADS, IN(0, ROW_T, y), IN(1, ROW_T, dy), OUT(2, ROW_T, dx), PARAMS(3, softmax_params, p)) {
  ROW_SCRATCH;
  const gk_ctx c = G_CTX();
  const uint row = c.grp * ROW_ROWS + c.tid / ROW_TPR;
  const uint t = c.tid % ROW_TPR;
  const uint cols = row < p.rows ? p.cols : 0;
  const gk_i64 base = (gk_i64)row * p.cols;
  row_chunk yv[ROW_V], gv[ROW_V];
#if ROW_STREAM
  const uint tiles = (cols + ROW_TILE - 1) / ROW_TILE;
  real dot = 0.0f;
  for (uint tile = 0; tile < tiles; ++tile) {
    softmax_take(y, dy, base, tile, t, cols, yv, gv);
    dot += softmax_dot(yv, gv, tile, t, cols);
  }
  dot = row_sum(dot, scratch, c);
  // From the end, which is still in registers and in the cache.
  for (uint tile = tiles; tile-- > 0;) {
    if (tile + 1 < tiles) softmax_take(y, dy, base, tile, t, cols, yv, gv);
    softmax_put(yv, gv, dx, base, tile, t, cols, dot);
  }
#else
  softmax_take(y, dy, base, 0, t, cols, yv, gv);
  softmax_put(yv, gv, dx, base, 0, t, cols, row_sum(softmax_dot(yv, gv, 0, t, cols), scratch, c));
#endif
}
