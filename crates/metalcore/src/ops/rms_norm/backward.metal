// dx = r dyw - h (r^3 / cols) sum(dyw h) (+ d_sum), dyw = dy w. Row slot s takes rows s, s + slots, ...; parts[s, :]
// is its share of dw = sum over rows of dy h r, kept in registers (streaming: in parts itself).
G_FN void rms_backward(DEV(const RMS_T) dy, DEV(const RMS_T) h, DEV(const RMS_W) w, DEV(const real) rstd,
                       DEV(const RMS_T) d_sum, DEV(RMS_T) dx, DEV(real) parts, PREF(rms_norm_params) p,
                       TG(real) scratch, gk_ctx c) {
  const uint slot = c.grp * RMS_ROWS + c.tid / RMS_TPR;
  const uint t = c.tid % RMS_TPR;
  const uint tiles = RMS_STREAM ? (p.cols + RMS_TILE - 1) / RMS_TILE : 1;
#if RMS_WEIGHT
  const gk_i64 part = (gk_i64)slot * p.cols;
#if RMS_STREAM
  for (uint i = t; i < p.cols; i += RMS_TPR) parts[part + i] = 0.0f;
  tg_barrier_dev();
#else
  real dw[RMS_E];
  G_UNROLL for (uint e = 0; e < RMS_E; ++e) dw[e] = 0.0f;
#endif
#endif
  for (uint row = slot; row < p.rows; row += p.slots) {
    const gk_i64 base = (gk_i64)row * p.cols;
    const real r = rstd[row];
    real hv[RMS_E], gv[RMS_E];
    real dot = 0.0f;
    for (uint tile = 0; tile < tiles; ++tile) {
      G_UNROLL for (uint v = 0; v < RMS_V; ++v) {
        const uint i = RMS_AT(tile, v);
        if (i < p.cols) {
          real g[RMS_VEC];
          rms_load(h, base + i, hv + v * RMS_VEC);
          rms_load(dy, base + i, gv + v * RMS_VEC);
          rms_weight(w, i, g);
          G_UNROLL for (uint e = 0; e < RMS_VEC; ++e) dot += gv[v * RMS_VEC + e] * g[e] * hv[v * RMS_VEC + e];
        }
      }
    }
    dot = rms_row_sum(dot, scratch, c);
    const real k = dot * r * r * r / real(p.cols);
    for (uint tile = 0; tile < tiles; ++tile) {
      G_UNROLL for (uint v = 0; v < RMS_V; ++v) {
        const uint i = RMS_AT(tile, v);
        if (i < p.cols) {
          PRIV(real) x = hv + v * RMS_VEC;
          PRIV(real) d = gv + v * RMS_VEC;
          if (RMS_STREAM) {
            rms_load(h, base + i, x);
            rms_load(dy, base + i, d);
          }
          real g[RMS_VEC], o[RMS_VEC];
          rms_weight(w, i, g);
          G_UNROLL for (uint e = 0; e < RMS_VEC; ++e) o[e] = r * (d[e] * g[e]) - x[e] * k;
#if RMS_ADD
          rms_load(d_sum, base + i, g);
          G_UNROLL for (uint e = 0; e < RMS_VEC; ++e) o[e] += g[e];
#endif
          rms_store(dx, base + i, o);
#if RMS_WEIGHT
          G_UNROLL for (uint e = 0; e < RMS_VEC; ++e) {
            const real share = d[e] * (x[e] * r);
#if RMS_STREAM
            parts[part + i + e] += share;
#else
            dw[v * RMS_VEC + e] += share;
#endif
          }
#endif
        }
      }
    }
  }
#if RMS_WEIGHT && !RMS_STREAM
  G_UNROLL for (uint v = 0; v < RMS_V; ++v) {
    const uint i = RMS_AT(0, v);
    if (i < p.cols) {
      G_UNROLL for (uint e = 0; e < RMS_VEC; ++e) parts[part + i + e] = dw[v * RMS_VEC + e];
    }
  }
#endif
}

#if RMS_ADD
G_KERNEL(add_rms_norm_bwd, RMS_THREADS, IN(0, RMS_T, dy), IN(1, RMS_T, h), IN(2, RMS_W, w), IN(3, real, rstd),
         IN(4, RMS_T, d_sum), OUT(5, RMS_T, dx), OUT(6, real, parts), PARAMS(7, rms_norm_params, p)) {
  RMS_SCRATCH;
  rms_backward(dy, h, w, rstd, d_sum, dx, parts, p, scratch, G_CTX());
}
#else
G_KERNEL(rms_norm_bwd, RMS_THREADS, IN(0, RMS_T, dy), IN(1, RMS_T, h), IN(2, RMS_W, w), IN(3, real, rstd),
         OUT(4, RMS_T, dx), OUT(5, real, parts), PARAMS(6, rms_norm_params, p)) {
  RMS_SCRATCH;
  rms_backward(dy, h, w, rstd, dy, dx, parts, p, scratch, G_CTX());
}
#endif
