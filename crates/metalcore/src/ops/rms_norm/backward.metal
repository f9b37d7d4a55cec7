// dx = r dyw - h (r^3 / cols) sum(dyw h) (+ d_sum), dyw = dy w. Row slot s takes rows s, s + slots, ...; parts[s, :]
// is its share of dw = sum over rows of dy h r: in registers, or in parts itself where the row is streamed.

// One tile of h and dy into registers.
G_FN void rms_take(DEV(const ROW_T) h, DEV(const ROW_T) dy, gk_i64 base, uint tile, uint t, uint cols, PRIV(row_chunk) hv,
                   PRIV(row_chunk) gv) {
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      row_hold(h, base + i, hv[v]);
      row_hold(dy, base + i, gv[v]);
    }
  }
}

// The thread's part of sum(dyw h).
G_FN real rms_dot(PRIV(row_chunk) hv, PRIV(row_chunk) gv, DEV(const ROW_W) w, uint tile, uint t, uint cols) {
  real dot = 0.0f;
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      real x[ROW_VEC], d[ROW_VEC], g[ROW_VEC];
      row_open(hv[v], x);
      row_open(gv[v], d);
      row_weight(w, i, g);
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) dot += d[e] * g[e] * x[e];
    }
  }
  return dot;
}

// dx of one tile, from r and k = dot r^3 / cols; dw grows by dy h r.
G_FN void rms_put(PRIV(row_chunk) hv, PRIV(row_chunk) gv, DEV(const ROW_W) w, DEV(const ROW_T) d_sum, DEV(ROW_T) dx,
                  gk_i64 base, uint tile, uint t, uint cols, real r, real k, PRIV(real) dw) {
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      real x[ROW_VEC], d[ROW_VEC], g[ROW_VEC], o[ROW_VEC];
      row_open(hv[v], x);
      row_open(gv[v], d);
      row_weight(w, i, g);
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) {
        d[e] *= r;
        o[e] = d[e] * g[e] - x[e] * k;
#if ROW_WEIGHT
        dw[v * ROW_VEC + e] += d[e] * x[e];
#endif
      }
#if ROW_ADD
      row_load(d_sum, base + i, g);
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) o[e] += g[e];
#endif
      row_store(dx, base + i, o);
    }
  }
}

#if ROW_STREAM
G_FN void rms_backward(DEV(const ROW_T) dy, DEV(const ROW_T) h, DEV(const ROW_W) w, DEV(const real) rstd,
                       DEV(const ROW_T) d_sum, DEV(ROW_T) dx, DEV(real) parts, PREF(rms_norm_params) p,
                       TG(real) scratch, gk_ctx c) {
  const uint t = c.tid;  // a streamed row has a threadgroup of its own
  const uint tiles = (p.cols + ROW_TILE - 1) / ROW_TILE;
#if ROW_WEIGHT
  const gk_i64 part = (gk_i64)c.grp * p.cols;
  for (uint i = t; i < p.cols; i += ROW_TPR) parts[part + i] = 0.0f;
  tg_barrier_dev();
#endif
  row_chunk hv[ROW_V], gv[ROW_V];
  for (uint row = c.grp; row < p.rows; row += p.slots) {
    const gk_i64 base = (gk_i64)row * p.cols;
    const real r = rstd[row];
    real dot = 0.0f;
    for (uint tile = 0; tile < tiles; ++tile) {
      rms_take(h, dy, base, tile, t, p.cols, hv, gv);
      dot += rms_dot(hv, gv, w, tile, t, p.cols);
    }
    const real k = row_sum(dot, scratch, c) * r * r * r / real(p.cols);
    for (uint tile = 0; tile < tiles; ++tile) {
      real dw[ROW_E];
      G_UNROLL for (uint e = 0; e < ROW_E; ++e) dw[e] = 0.0f;
      rms_take(h, dy, base, tile, t, p.cols, hv, gv);
      rms_put(hv, gv, w, d_sum, dx, base, tile, t, p.cols, r, k, dw);
#if ROW_WEIGHT
      G_UNROLL for (uint e = 0; e < ROW_E; ++e) {
        const uint i = ROW_AT(tile, e / ROW_VEC) + e % ROW_VEC;
        if (i < p.cols) parts[part + i] += dw[e];
      }
#endif
    }
  }
}
#else
G_FN void rms_backward(DEV(const ROW_T) dy, DEV(const ROW_T) h, DEV(const ROW_W) w, DEV(const real) rstd,
                       DEV(const ROW_T) d_sum, DEV(ROW_T) dx, DEV(real) parts, PREF(rms_norm_params) p,
                       TG(real) scratch, gk_ctx c) {
  const uint slot = c.grp * ROW_ROWS + c.tid / ROW_TPR;
  const uint t = c.tid % ROW_TPR;
  real dw[ROW_E];
  G_UNROLL for (uint e = 0; e < ROW_E; ++e) dw[e] = 0.0f;
  for (uint row = slot; row < p.rows; row += p.slots) {
    const gk_i64 base = (gk_i64)row * p.cols;
    const real r = rstd[row];
    row_chunk hv[ROW_V], gv[ROW_V];
    rms_take(h, dy, base, 0, t, p.cols, hv, gv);
    const real k = row_sum(rms_dot(hv, gv, w, 0, t, p.cols), scratch, c) * r * r * r / real(p.cols);
    rms_put(hv, gv, w, d_sum, dx, base, 0, t, p.cols, r, k, dw);
  }
#if ROW_WEIGHT
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(0, v);
    if (i < p.cols) row_parts(parts, (gk_i64)slot * p.cols + i, dw + v * ROW_VEC);
  }
#endif
}
#endif

#if ROW_ADD
G_KERNEL(add_rms_norm_bwd, ROW_THREADS, IN(0, ROW_T, dy), IN(1, ROW_T, h), IN(2, ROW_W, w), IN(3, real, rstd),
         IN(4, ROW_T, d_sum), OUT(5, ROW_T, dx), OUT(6, real, parts), PARAMS(7, rms_norm_params, p)) {
  ROW_SCRATCH;
  rms_backward(dy, h, w, rstd, d_sum, dx, parts, p, scratch, G_CTX());
}
#else
G_KERNEL(rms_norm_bwd, ROW_THREADS, IN(0, ROW_T, dy), IN(1, ROW_T, h), IN(2, ROW_W, w), IN(3, real, rstd),
         OUT(4, ROW_T, dx), OUT(5, real, parts), PARAMS(6, rms_norm_params, p)) {
  ROW_SCRATCH;
  rms_backward(dy, h, w, rstd, dy, dx, parts, p, scratch, G_CTX());
}
#endif
