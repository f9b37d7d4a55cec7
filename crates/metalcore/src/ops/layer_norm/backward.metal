// dx = r (g - mean(g) - n mean(g n)) (+ d_sum), n = (h - m) r, g = dy w. Row slot s takes rows s, s + slots, ...;
// parts[s, 0, :] is its share of dw = sum over rows of dy n, parts[s, 1, :] of db = sum over rows of dy: in registers, or in
// parts itself where the row is streamed. Specialised beside rows.h: ROW_ADD 1: the residual form; ROW_SUMS 0: no parts.

// One tile of h and dy into registers.
G_FN void norm_take(DEV(const ROW_T) h, DEV(const ROW_T) dy, gk_i64 base, uint tile, uint t, uint cols, PRIV(row_chunk) hv,
                    PRIV(row_chunk) gv) {
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      row_hold(h, base + i, hv[v]);
      row_hold(dy, base + i, gv[v]);
    }
  }
}

// The thread's parts of sum(g) and sum(g n).
G_FN void norm_dots(PRIV(row_chunk) hv, PRIV(row_chunk) gv, DEV(const ROW_W) w, uint tile, uint t, uint cols, real m, real r,
                    PRIVREF(real) sum_g, PRIVREF(real) sum_gn) {
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      real x[ROW_VEC], d[ROW_VEC], g[ROW_VEC];
      row_open(hv[v], x);
      row_open(gv[v], d);
      row_weight(w, i, g);
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) {
        const real a = d[e] * g[e];
        sum_g += a;
        sum_gn = g_fma(a, (x[e] - m) * r, sum_gn);
      }
    }
  }
}

// dx of one tile; sums grow by dy n, then by dy.
G_FN void norm_put(PRIV(row_chunk) hv, PRIV(row_chunk) gv, DEV(const ROW_W) w, DEV(const ROW_T) d_sum, DEV(ROW_T) dx,
                   gk_i64 base, uint tile, uint t, uint cols, real m, real r, real mean_g, real mean_gn, PRIV(real) dw,
                   PRIV(real) db) {
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      real x[ROW_VEC], d[ROW_VEC], g[ROW_VEC];
      row_open(hv[v], x);
      row_open(gv[v], d);
      row_weight(w, i, g);
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) {
        const real n = (x[e] - m) * r;
#if ROW_SUMS
        dw[v * ROW_VEC + e] = g_fma(d[e], n, dw[v * ROW_VEC + e]);
        db[v * ROW_VEC + e] += d[e];
#endif
        x[e] = g_fma(-n, mean_gn, d[e] * g[e] - mean_g) * r;
      }
#if ROW_ADD
      row_load(d_sum, base + i, g);
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) x[e] += g[e];
#endif
      row_store(dx, base + i, x);
    }
  }
}

G_FN void norm_backward(DEV(const ROW_T) dy, DEV(const ROW_T) h, DEV(const ROW_W) w, DEV(const real) mean,
                        DEV(const real) rstd, DEV(const ROW_T) d_sum, DEV(ROW_T) dx, DEV(real) parts,
                        PREF(layer_norm_params) p, TG(real) scratch, gk_ctx c) {
  const uint slot = c.grp * ROW_ROWS + c.tid / ROW_TPR;
  const uint t = c.tid % ROW_TPR;
  const uint tiles = ROW_STREAM ? (p.cols + ROW_TILE - 1) / ROW_TILE : 1;
#if ROW_SUMS
  const gk_i64 part = (gk_i64)slot * 2 * p.cols;
#endif
  row_chunk hv[ROW_V], gv[ROW_V];
  real dw[ROW_E], db[ROW_E];
  G_UNROLL for (uint e = 0; e < ROW_E; ++e) dw[e] = db[e] = 0.0f;
#if ROW_SUMS && ROW_STREAM
  for (uint i = t; i < 2 * p.cols; i += ROW_TPR) parts[part + i] = 0.0f;
  tg_barrier_dev();
#endif
  for (uint row = slot; row < p.rows; row += p.slots) {
    const gk_i64 base = (gk_i64)row * p.cols;
    const real m = mean[row], r = rstd[row];
    real sum_g = 0.0f, sum_gn = 0.0f;
    for (uint tile = 0; tile < tiles; ++tile) {
      norm_take(h, dy, base, tile, t, p.cols, hv, gv);
      norm_dots(hv, gv, w, tile, t, p.cols, m, r, sum_g, sum_gn);
    }
    row_sum_pair(sum_g, sum_gn, scratch, c);
    const real mean_g = sum_g / real(p.cols), mean_gn = sum_gn / real(p.cols);
    for (uint tile = 0; tile < tiles; ++tile) {
      if (ROW_STREAM) {
        norm_take(h, dy, base, tile, t, p.cols, hv, gv);
        G_UNROLL for (uint e = 0; e < ROW_E; ++e) dw[e] = db[e] = 0.0f;
      }
      norm_put(hv, gv, w, d_sum, dx, base, tile, t, p.cols, m, r, mean_g, mean_gn, dw, db);
#if ROW_SUMS && ROW_STREAM
      G_UNROLL for (uint e = 0; e < ROW_E; ++e) {
        const uint i = ROW_AT(tile, e / ROW_VEC) + e % ROW_VEC;
        if (i < p.cols) {
          parts[part + i] += dw[e];
          parts[part + p.cols + i] += db[e];
        }
      }
#endif
    }
  }
#if ROW_SUMS && !ROW_STREAM
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(0, v);
    if (i < p.cols) {
      row_parts(parts, part + i, dw + v * ROW_VEC);
      row_parts(parts, part + p.cols + i, db + v * ROW_VEC);
    }
  }
#endif
}

#if ROW_ADD
G_KERNEL(add_layer_norm_bwd, ROW_THREADS, IN(0, ROW_T, dy), IN(1, ROW_T, h), IN(2, ROW_W, w), IN(3, real, mean),
         IN(4, real, rstd), IN(5, ROW_T, d_sum), OUT(6, ROW_T, dx), OUT(7, real, parts), PARAMS(8, layer_norm_params, p)) {
  ROW_SCRATCH_TWO;
  norm_backward(dy, h, w, mean, rstd, d_sum, dx, parts, p, scratch, G_CTX());
}
#else
G_KERNEL(layer_norm_bwd, ROW_THREADS, IN(0, ROW_T, dy), IN(1, ROW_T, h), IN(2, ROW_W, w), IN(3, real, mean),
         IN(4, real, rstd), OUT(5, ROW_T, dx), OUT(6, real, parts), PARAMS(7, layer_norm_params, p)) {
  ROW_SCRATCH_TWO;
  norm_backward(dy, h, w, mean, rstd, dy, dx, parts, p, scratch, G_CTX());
}
#endif
