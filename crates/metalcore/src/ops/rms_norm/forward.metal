// y = h r w, r = 1 / sqrt(mean(h^2) + eps), h = x or round(x + residual).
// One tile of h into registers; the first time the residual form also writes the sum.
G_FN void rms_take(DEV(const RMS_T) x, DEV(const RMS_T) residual, DEV(RMS_T) sum, gk_i64 base, uint tile, uint t, uint cols,
                   PRIV(real) h) {
  G_UNROLL for (uint v = 0; v < RMS_V; ++v) {
    const uint i = RMS_AT(tile, v);
    if (i < cols) {
      rms_load(x, base + i, h + v * RMS_VEC);
#if RMS_ADD
      real a[RMS_VEC];
      rms_load(residual, base + i, a);
      G_UNROLL for (uint e = 0; e < RMS_VEC; ++e) h[v * RMS_VEC + e] = gk_real(gk_to<RMS_T>(h[v * RMS_VEC + e] + a[e]));
      rms_store(sum, base + i, h + v * RMS_VEC);
#endif
    } else {
      G_UNROLL for (uint e = 0; e < RMS_VEC; ++e) h[v * RMS_VEC + e] = 0.0f;
    }
  }
}

G_FN void rms_forward(DEV(const RMS_T) x, DEV(const RMS_T) residual, DEV(const RMS_W) w, DEV(RMS_T) y, DEV(RMS_T) sum,
                      DEV(real) rstd, PREF(rms_norm_params) p, TG(real) scratch, gk_ctx c) {
  const uint row = c.grp * RMS_ROWS + c.tid / RMS_TPR;
  if (row >= p.rows) return;  // a whole simd group, and then no tg_barrier follows: RMS_ROWS is 1 where there is one
  const uint t = c.tid % RMS_TPR;
  const uint tiles = RMS_STREAM ? (p.cols + RMS_TILE - 1) / RMS_TILE : 1;
  const gk_i64 base = (gk_i64)row * p.cols;
  real h[RMS_E];
  real ss = 0.0f;
  for (uint tile = 0; tile < tiles; ++tile) {
    rms_take(x, residual, sum, base, tile, t, p.cols, h);
    G_UNROLL for (uint e = 0; e < RMS_E; ++e) ss += h[e] * h[e];
  }
  ss = rms_row_sum(ss, scratch, c);
  const real r = g_rsqrt(ss / real(p.cols) + gk_wide_real(p.eps));
  if (t == 0) rstd[row] = r;
  for (uint tile = 0; tile < tiles; ++tile) {
    if (RMS_STREAM) rms_take(x, residual, sum, base, tile, t, p.cols, h);
    G_UNROLL for (uint v = 0; v < RMS_V; ++v) {
      const uint i = RMS_AT(tile, v);
      if (i < p.cols) {
        real g[RMS_VEC];
        rms_weight(w, i, g);
        G_UNROLL for (uint e = 0; e < RMS_VEC; ++e) g[e] *= h[v * RMS_VEC + e] * r;
        rms_store(y, base + i, g);
      }
    }
  }
}

#if RMS_ADD
G_KERNEL(add_rms_norm_fwd, RMS_THREADS, IN(0, RMS_T, x), IN(1, RMS_T, residual), IN(2, RMS_W, w), OUT(3, RMS_T, y),
         OUT(4, RMS_T, sum), OUT(5, real, rstd), PARAMS(6, rms_norm_params, p)) {
  RMS_SCRATCH;
  rms_forward(x, residual, w, y, sum, rstd, p, scratch, G_CTX());
}
#else
G_KERNEL(rms_norm_fwd, RMS_THREADS, IN(0, RMS_T, x), IN(1, RMS_W, w), OUT(2, RMS_T, y), OUT(3, real, rstd),
         PARAMS(4, rms_norm_params, p)) {
  RMS_SCRATCH;
  rms_forward(x, x, w, y, y, rstd, p, scratch, G_CTX());
}
#endif
