// loss and lse = m + log s of each row in one pass: m the largest element so far, s the sum of e^(x - m), which is
// scaled anew where m grows. CE_SMOOTH 1: the mean of the row is needed too. A row that is ignored is not read.
G_FN real ce_row_sum(real v, TG(real) scratch, gk_ctx c) {
#if CE_TPR == 32
  return sg_sum(v);
#else
  return gk_tg_sum<CE_TPR>(v, scratch, c);
#endif
}
G_FN real ce_row_max(real v, TG(real) scratch, gk_ctx c) {
#if CE_TPR == 32
  return sg_max(v);
#else
  return gk_tg_max<CE_TPR>(v, scratch, c);
#endif
}

G_KERNEL(cross_entropy_fwd, CE_THREADS, IN(0, CE_T, logits), IN(1, CE_I, targets), OUT(2, real, losses), OUT(3, real, lse),
         PARAMS(4, cross_entropy_params, p)) {
  TG_ARRAY(real, scratch, CE_THREADS / 32);
  const gk_ctx c = G_CTX();
  const uint row = c.grp * CE_ROWS + c.tid / CE_TPR;
  if (row >= p.rows) return;  // a whole simd group, and then no tg_barrier follows: CE_ROWS is 1 where there is one
  const uint t = c.tid % CE_TPR;
  const gk_i64 target = gk_i64(targets[row]);
  const bool ignored = target == ce_ignored(p);
  if (ignored || target < 0 || target >= gk_i64(p.cols)) {  // the same for the row's threads
    if (t == 0) losses[row] = ignored ? real(0.0f) : g_nan();
    if (t == 0) lse[row] = ignored ? real(0.0f) : g_nan();
    return;
  }
  const gk_i64 base = gk_i64(row) * p.cols;
  real m = -GK_HUGE;
  real s = 0.0f;
#if CE_SMOOTH
  real total = 0.0f;
#endif
  for (uint tile = 0; tile < p.cols; tile += CE_TPR * CE_E) {
    real x[CE_E];
    real top = m;
    G_UNROLL for (uint v = 0; v < CE_V; ++v) {
      const uint i = tile + (v * CE_TPR + t) * CE_VEC;
      if (i < p.cols) {
        ce_load(logits, base + i, x + v * CE_VEC);
      } else {
        G_UNROLL for (uint e = 0; e < CE_VEC; ++e) x[v * CE_VEC + e] = -g_inf();
      }
    }
    G_UNROLL for (uint e = 0; e < CE_E; ++e) top = g_max(top, x[e]);
    if (top > m) {
      s *= g_exp2((m - top) * CE_LOG2E);
      m = top;
    }
    real part = 0.0f;
    G_UNROLL for (uint e = 0; e < CE_E; ++e) part += g_exp2((x[e] - m) * CE_LOG2E);
    s += part;
#if CE_SMOOTH
    part = 0.0f;
    G_UNROLL for (uint v = 0; v < CE_V; ++v) {
      if (tile + (v * CE_TPR + t) * CE_VEC < p.cols) {
        G_UNROLL for (uint e = 0; e < CE_VEC; ++e) part += x[v * CE_VEC + e];
      }
    }
    total += part;
#endif
  }
  const real top = ce_row_max(m, scratch, c);
  s = ce_row_sum(s * g_exp2((m - top) * CE_LOG2E), scratch, c);
#if CE_SMOOTH
  total = ce_row_sum(total, scratch, c);
#endif
  if (t == 0) {
    const real log_sum = g_log(s);
    real loss = (top - gk_real(logits[base + target])) + log_sum;
#if CE_SMOOTH
    const real eps = gk_wide_real(p.smoothing);
    loss = (real(1.0f) - eps) * loss + eps * ((top - total / real(p.cols)) + log_sum);
#endif
    losses[row] = loss;
    lse[row] = top + log_sum;
  }
}
