// dx = r dyw - h (r^3 / cols) sum(dyw h) (+ d_sum), dyw = dy w. Row slot s takes rows s, s + slots, ...; parts[s, :]
// is its share of dw = sum over rows of dy h r: in registers, or in parts itself where the row is streamed.

// What a thread holds of a row: 16-bit elements as they lie in memory, for half the registers.
#if RMS_VEC == 8
#define rms_chunk gk_raw8<RMS_T>
G_FN void rms_hold(DEV(const RMS_T) p, gk_i64 i, PRIVREF(rms_chunk) c) { c = gk_ld_raw8(p, i); }
#else
struct rms_chunk { real e[RMS_VEC]; };
G_FN void rms_open(PRIVREF(rms_chunk) c, PRIV(real) x) {
  G_UNROLL for (uint e = 0; e < RMS_VEC; ++e) x[e] = c.e[e];
}
G_FN void rms_hold(DEV(const RMS_T) p, gk_i64 i, PRIVREF(rms_chunk) c) { rms_load(p, i, c.e); }
#endif

// One tile of h and dy into registers.
G_FN void rms_take(DEV(const RMS_T) h, DEV(const RMS_T) dy, gk_i64 base, uint tile, uint t, uint cols, PRIV(rms_chunk) hv,
                   PRIV(rms_chunk) gv) {
  G_UNROLL for (uint v = 0; v < RMS_V; ++v) {
    const uint i = RMS_AT(tile, v);
    if (i < cols) {
      rms_hold(h, base + i, hv[v]);
      rms_hold(dy, base + i, gv[v]);
    }
  }
}

// The thread's part of sum(dyw h).
G_FN real rms_dot(PRIV(rms_chunk) hv, PRIV(rms_chunk) gv, DEV(const RMS_W) w, uint tile, uint t, uint cols) {
  real dot = 0.0f;
  G_UNROLL for (uint v = 0; v < RMS_V; ++v) {
    const uint i = RMS_AT(tile, v);
    if (i < cols) {
      real x[RMS_VEC], d[RMS_VEC], g[RMS_VEC];
      rms_open(hv[v], x);
      rms_open(gv[v], d);
      rms_weight(w, i, g);
      G_UNROLL for (uint e = 0; e < RMS_VEC; ++e) dot += d[e] * g[e] * x[e];
    }
  }
  return dot;
}

// dx of one tile, from r and k = dot r^3 / cols; dw grows by dy h r.
G_FN void rms_put(PRIV(rms_chunk) hv, PRIV(rms_chunk) gv, DEV(const RMS_W) w, DEV(const RMS_T) d_sum, DEV(RMS_T) dx,
                  gk_i64 base, uint tile, uint t, uint cols, real r, real k, PRIV(real) dw) {
  G_UNROLL for (uint v = 0; v < RMS_V; ++v) {
    const uint i = RMS_AT(tile, v);
    if (i < cols) {
      real x[RMS_VEC], d[RMS_VEC], g[RMS_VEC], o[RMS_VEC];
      rms_open(hv[v], x);
      rms_open(gv[v], d);
      rms_weight(w, i, g);
      G_UNROLL for (uint e = 0; e < RMS_VEC; ++e) {
        d[e] *= r;
        o[e] = d[e] * g[e] - x[e] * k;
#if RMS_WEIGHT
        dw[v * RMS_VEC + e] += d[e] * x[e];
#endif
      }
#if RMS_ADD
      rms_load(d_sum, base + i, g);
      G_UNROLL for (uint e = 0; e < RMS_VEC; ++e) o[e] += g[e];
#endif
      rms_store(dx, base + i, o);
    }
  }
}

#if RMS_STREAM
G_FN void rms_backward(DEV(const RMS_T) dy, DEV(const RMS_T) h, DEV(const RMS_W) w, DEV(const real) rstd,
                       DEV(const RMS_T) d_sum, DEV(RMS_T) dx, DEV(real) parts, PREF(rms_norm_params) p,
                       TG(real) scratch, gk_ctx c) {
  const uint t = c.tid;  // a streamed row has a threadgroup of its own
  const uint tiles = (p.cols + RMS_TILE - 1) / RMS_TILE;
#if RMS_WEIGHT
  const gk_i64 part = (gk_i64)c.grp * p.cols;
  for (uint i = t; i < p.cols; i += RMS_TPR) parts[part + i] = 0.0f;
  tg_barrier_dev();
#endif
  rms_chunk hv[RMS_V], gv[RMS_V];
  for (uint row = c.grp; row < p.rows; row += p.slots) {
    const gk_i64 base = (gk_i64)row * p.cols;
    const real r = rstd[row];
    real dot = 0.0f;
    for (uint tile = 0; tile < tiles; ++tile) {
      rms_take(h, dy, base, tile, t, p.cols, hv, gv);
      dot += rms_dot(hv, gv, w, tile, t, p.cols);
    }
    const real k = rms_row_sum(dot, scratch, c) * r * r * r / real(p.cols);
    for (uint tile = 0; tile < tiles; ++tile) {
      real dw[RMS_E];
      G_UNROLL for (uint e = 0; e < RMS_E; ++e) dw[e] = 0.0f;
      rms_take(h, dy, base, tile, t, p.cols, hv, gv);
      rms_put(hv, gv, w, d_sum, dx, base, tile, t, p.cols, r, k, dw);
#if RMS_WEIGHT
      G_UNROLL for (uint e = 0; e < RMS_E; ++e) {
        const uint i = RMS_AT(tile, e / RMS_VEC) + e % RMS_VEC;
        if (i < p.cols) parts[part + i] += dw[e];
      }
#endif
    }
  }
}
#else
G_FN void rms_backward(DEV(const RMS_T) dy, DEV(const RMS_T) h, DEV(const RMS_W) w, DEV(const real) rstd,
                       DEV(const RMS_T) d_sum, DEV(RMS_T) dx, DEV(real) parts, PREF(rms_norm_params) p,
                       TG(real) scratch, gk_ctx c) {
  const uint slot = c.grp * RMS_ROWS + c.tid / RMS_TPR;
  const uint t = c.tid % RMS_TPR;
  real dw[RMS_E];
  G_UNROLL for (uint e = 0; e < RMS_E; ++e) dw[e] = 0.0f;
  for (uint row = slot; row < p.rows; row += p.slots) {
    const gk_i64 base = (gk_i64)row * p.cols;
    const real r = rstd[row];
    rms_chunk hv[RMS_V], gv[RMS_V];
    rms_take(h, dy, base, 0, t, p.cols, hv, gv);
    const real k = rms_row_sum(rms_dot(hv, gv, w, 0, t, p.cols), scratch, c) * r * r * r / real(p.cols);
    rms_put(hv, gv, w, d_sum, dx, base, 0, t, p.cols, r, k, dw);
  }
#if RMS_WEIGHT
  G_UNROLL for (uint v = 0; v < RMS_V; ++v) {
    const uint i = RMS_AT(0, v);
    PRIV(real) d = dw + v * RMS_VEC;
    if (i < p.cols) {
#if RMS_VEC == 1
      parts[(gk_i64)slot * p.cols + i] = d[0];
#else
      G_UNROLL for (uint e = 0; e < RMS_VEC; e += 4) {
        gk_st4(parts, (gk_i64)slot * p.cols + i + e, v4(d[e], d[e + 1], d[e + 2], d[e + 3]));
      }
#endif
    }
  }
#endif
}
#endif

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
