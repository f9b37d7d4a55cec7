// d logits = (e^(x - lse) - eps / cols - (1 - eps) at the target) g, where g is the gradient of the row's loss; 0 for
// a row that is ignored or whose target is none. A chunk starts at a multiple of its size in memory, wherever the row
// does: only the first and the last of a row are taken by elements. CE_IN_PLACE 1: written over the logits.
struct ce_row { gk_i64 target; real lse; real smooth; real keep; real g; };

G_FN real ce_gradient(ce_row r, real x, gk_i64 i) {
  const real d = g_exp2((x - r.lse) * CE_LOG2E) - r.smooth;
  return (i == r.target ? d - r.keep : d) * r.g;
}
G_FN void ce_store(DEV(CE_T) p, gk_i64 i, PRIV(real) x) {
#if CE_VEC == 8
  gk_st8_once(p, i, v8_of(x));
#elif CE_VEC == 4
  gk_st4_once(p, i, v4(x[0], x[1], x[2], x[3]));
#else
  p[i] = gk_to<CE_T>(x[0]);
#endif
}

#if CE_IN_PLACE
#define CE_FROM dx
G_KERNEL(cross_entropy_bwd_, CE_THREADS, IN(0, real, grad), IO(1, CE_T, dx), IN(2, CE_I, targets), IN(3, real, lse),
         IN(4, real, count), PARAMS(5, cross_entropy_params, p)) {
#else
#define CE_FROM logits
G_KERNEL(cross_entropy_bwd, CE_THREADS, IN(0, real, grad), IN(1, CE_T, logits), IN(2, CE_I, targets), IN(3, real, lse),
         IN(4, real, count), OUT(5, CE_T, dx), PARAMS(6, cross_entropy_params, p)) {
#endif
  const gk_ctx c = G_CTX();
  const uint row = c.grp / p.parts * CE_ROWS + c.tid / CE_TPR;
  if (row >= p.rows) return;
  const uint t = c.grp % p.parts * (CE_TPR * CE_V) + c.tid % CE_TPR;
  const gk_i64 base = gk_i64(row) * p.cols;
  const uint skew = uint(base % CE_VEC);
  ce_row r;
  r.target = gk_i64(targets[row]);
  const bool counts = r.target != ce_ignored(p) && r.target >= 0 && r.target < gk_i64(p.cols);
  const real eps = gk_wide_real(p.smoothing);
  r.lse = lse[row];
  r.smooth = eps / real(p.cols);
  r.keep = real(1.0f) - eps;
  r.g = grad[p.scalar != 0 ? 0u : row];
  if (p.mean != 0) r.g = r.g / count[0];
  ce_chunk x[CE_V];
  G_UNROLL for (uint v = 0; v < CE_V; ++v) {
    const gk_i64 i = gk_i64(v * CE_TPR + t) * CE_VEC - skew;
    if (counts && i >= 0 && i + CE_VEC <= gk_i64(p.cols)) ce_hold(CE_FROM, base + i, x[v]);
  }
  G_UNROLL for (uint v = 0; v < CE_V; ++v) {
    const gk_i64 i = gk_i64(v * CE_TPR + t) * CE_VEC - skew;
    if (i >= 0 && i + CE_VEC <= gk_i64(p.cols)) {
      real d[CE_VEC];
      if (counts) ce_open(x[v], d);
      G_UNROLL for (uint e = 0; e < CE_VEC; ++e) d[e] = counts ? ce_gradient(r, d[e], i + e) : real(0.0f);
      ce_store(dx, base + i, d);
    } else {
      for (uint e = 0; e < CE_VEC; ++e) {
        if (i + e >= 0 && i + e < gk_i64(p.cols)) {
          const real d = counts ? ce_gradient(r, gk_real(CE_FROM[base + i + e]), i + e) : real(0.0f);
          dx[base + i + e] = gk_to<CE_T>(d);
        }
      }
    }
  }
}
