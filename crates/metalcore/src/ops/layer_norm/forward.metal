// y = (h - m) r w + b, m = mean(h), r = 1 / sqrt(mean((h - m)^2) + eps), h = x or round(x + residual).
// Specialised beside rows.h: ROW_ADD 1: the residual form; ROW_BIAS 0: no bias (b is bound, not read), ROW_B its type.

// One tile of h into registers; the first time the residual form also writes the sum.
G_FN void norm_take(DEV(const ROW_T) x, DEV(const ROW_T) residual, DEV(ROW_T) sum, bool first, gk_i64 base, uint tile,
                    uint t, uint cols, PRIV(real) h) {
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      row_load(x, base + i, h + v * ROW_VEC);
#if ROW_ADD
      real a[ROW_VEC];
      row_load(residual, base + i, a);
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) h[v * ROW_VEC + e] = gk_real(gk_to<ROW_T>(h[v * ROW_VEC + e] + a[e]));
      if (first) row_store(sum, base + i, h + v * ROW_VEC);
#endif
    } else {
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) h[v * ROW_VEC + e] = 0.0f;
    }
  }
}
// The thread's part of sum((h - m)^2).
G_FN real norm_squares(PRIV(real) h, real m, uint tile, uint t, uint cols) {
  real s = 0.0f;
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    if (ROW_AT(tile, v) < cols) {
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) {
        const real d = h[v * ROW_VEC + e] - m;
        s = g_fma(d, d, s);
      }
    }
  }
  return s;
}
G_FN void norm_put(PRIV(real) h, DEV(const ROW_W) w, DEV(const ROW_B) b, DEV(ROW_T) y, gk_i64 base, uint tile, uint t,
                   uint cols, real m, real r) {
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      real g[ROW_VEC];
      row_weight(w, i, g);
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) h[v * ROW_VEC + e] = (h[v * ROW_VEC + e] - m) * r;
#if ROW_BIAS
      real a[ROW_VEC];
      row_load(b, i, a);
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) g[e] = g_fma(h[v * ROW_VEC + e], g[e], a[e]);
#else
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) g[e] *= h[v * ROW_VEC + e];
#endif
      row_store(y, base + i, g);
    }
  }
}

G_FN void norm_forward(DEV(const ROW_T) x, DEV(const ROW_T) residual, DEV(const ROW_W) w, DEV(const ROW_B) b, DEV(ROW_T) y,
                       DEV(ROW_T) sum, DEV(real) mean, DEV(real) rstd, PREF(layer_norm_params) p, TG(real) scratch,
                       gk_ctx c) {
  const uint row = c.grp * ROW_ROWS + c.tid / ROW_TPR;
  if (row >= p.rows) return;  // a whole simd group, and then no tg_barrier follows: ROW_ROWS is 1 where there is one
  const uint t = c.tid % ROW_TPR;
  const uint tiles = ROW_STREAM ? (p.cols + ROW_TILE - 1) / ROW_TILE : 1;
  const gk_i64 base = (gk_i64)row * p.cols;
  real h[ROW_E];
  real s = 0.0f, rest = 0.0f;
  for (uint tile = 0; tile < tiles; ++tile) {
    norm_take(x, residual, sum, true, base, tile, t, p.cols, h);
    G_UNROLL for (uint e = 0; e < ROW_E; ++e) {
      if (sizeof(ROW_T) == 2) s += h[e];
      else row_add(s, rest, h[e]);
    }
  }
  // With its rounding: where both x and the mean are near 0, an error of the mean is all there is of y. That of 16-bit
  // types is below the rounding of y; on an H200 they were bound by these instructions.
  const real m = (sizeof(ROW_T) == 2 ? row_sum(s, scratch, c) : row_sum_two(s, rest, scratch, c)) / real(p.cols);
  s = 0.0f;
  for (uint tile = 0; tile < tiles; ++tile) {
    if (ROW_STREAM) norm_take(x, residual, sum, false, base, tile, t, p.cols, h);
    s += norm_squares(h, m, tile, t, p.cols);
  }
  const real r = g_rsqrt(row_sum(s, scratch, c) / real(p.cols) + gk_wide_real(p.eps));
  if (t == 0) {
    mean[row] = m;
    rstd[row] = r;
  }
  for (uint tile = 0; tile < tiles; ++tile) {
    if (ROW_STREAM) norm_take(x, residual, sum, false, base, tile, t, p.cols, h);
    norm_put(h, w, b, y, base, tile, t, p.cols, m, r);
  }
}

#if ROW_ADD
G_KERNEL(add_layer_norm_fwd, ROW_THREADS, IN(0, ROW_T, x), IN(1, ROW_T, residual), IN(2, ROW_W, w), IN(3, ROW_B, b),
         OUT(4, ROW_T, y), OUT(5, ROW_T, sum), OUT(6, real, mean), OUT(7, real, rstd), PARAMS(8, layer_norm_params, p)) {
  ROW_SCRATCH_TWO;
  norm_forward(x, residual, w, b, y, sum, mean, rstd, p, scratch, G_CTX());
}
#else
G_KERNEL(layer_norm_fwd, ROW_THREADS, IN(0, ROW_T, x), IN(1, ROW_W, w), IN(2, ROW_B, b), OUT(3, ROW_T, y),
         OUT(4, real, mean), OUT(5, real, rstd), PARAMS(6, layer_norm_params, p)) {
  ROW_SCRATCH_TWO;
  norm_forward(x, x, w, b, y, y, mean, rstd, p, scratch, G_CTX());
}
#endif
