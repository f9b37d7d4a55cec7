// y = h r w, r = 1 / sqrt(mean(h^2) + eps), h = x or round(x + residual).
// One tile of h into registers; the first time the residual form also writes the sum.
G_FN void rms_take(DEV(const ROW_T) x, DEV(const ROW_T) residual, DEV(ROW_T) sum, gk_i64 base, uint tile, uint t, uint cols,
                   PRIV(real) h) {
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      row_load(x, base + i, h + v * ROW_VEC);
#if ROW_ADD
      real a[ROW_VEC];
      row_load(residual, base + i, a);
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) h[v * ROW_VEC + e] = gk_real(gk_to<ROW_T>(h[v * ROW_VEC + e] + a[e]));
      row_store(sum, base + i, h + v * ROW_VEC);
#endif
    } else {
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) h[v * ROW_VEC + e] = 0.0f;
    }
  }
}

G_FN void rms_forward(DEV(const ROW_T) x, DEV(const ROW_T) residual, DEV(const ROW_W) w, DEV(ROW_T) y, DEV(ROW_T) sum,
                      DEV(real) rstd, PREF(rms_norm_params) p, TG(real) scratch, gk_ctx c) {
  const uint row = c.grp * ROW_ROWS + c.tid / ROW_TPR;
  if (row >= p.rows) return;  // a whole simd group, and then no tg_barrier follows: ROW_ROWS is 1 where there is one
  const uint t = c.tid % ROW_TPR;
  const uint tiles = ROW_STREAM ? (p.cols + ROW_TILE - 1) / ROW_TILE : 1;
  const gk_i64 base = (gk_i64)row * p.cols;
  real h[ROW_E];
  real ss = 0.0f;
  for (uint tile = 0; tile < tiles; ++tile) {
    rms_take(x, residual, sum, base, tile, t, p.cols, h);
    G_UNROLL for (uint e = 0; e < ROW_E; ++e) ss += h[e] * h[e];
  }
  ss = row_sum(ss, scratch, c);
  const real r = g_rsqrt(ss / real(p.cols) + gk_wide_real(p.eps));
  if (t == 0) rstd[row] = r;
  for (uint tile = 0; tile < tiles; ++tile) {
    if (ROW_STREAM) rms_take(x, residual, sum, base, tile, t, p.cols, h);
    G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
      const uint i = ROW_AT(tile, v);
      if (i < p.cols) {
        real g[ROW_VEC];
        row_weight(w, i, g);
        G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) g[e] *= h[v * ROW_VEC + e] * r;
        row_store(y, base + i, g);
      }
    }
  }
}

#if ROW_ADD
G_KERNEL(add_rms_norm_fwd, ROW_THREADS, IN(0, ROW_T, x), IN(1, ROW_T, residual), IN(2, ROW_W, w), OUT(3, ROW_T, y),
         OUT(4, ROW_T, sum), OUT(5, real, rstd), PARAMS(6, rms_norm_params, p)) {
  ROW_SCRATCH;
  rms_forward(x, residual, w, y, sum, rstd, p, scratch, G_CTX());
}
#else
G_KERNEL(rms_norm_fwd, ROW_THREADS, IN(0, ROW_T, x), IN(1, ROW_W, w), OUT(2, ROW_T, y), OUT(3, real, rstd),
         PARAMS(4, rms_norm_params, p)) {
  ROW_SCRATCH;
  rms_forward(x, x, w, y, y, rstd, p, scratch, G_CTX());
}
#endif
