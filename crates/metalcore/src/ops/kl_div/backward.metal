// d log p = g p (1 + log p - log q), d log q = -g p, g the gradient of the row's loss; both 0 where p is 0.
// KL_P, KL_Q: which of them are wanted. A group has one tile of its rows; `parts` groups share a row.
#if KL_P && KL_Q
G_KERNEL(kl_div_bwd, ROW_THREADS, IN(0, real, grad), IN(1, ROW_T, log_p), IN(2, ROW_T, log_q), OUT(3, ROW_T, dp),
         OUT(4, ROW_T, dq), PARAMS(5, kl_div_params, p)) {
#elif KL_P
G_KERNEL(kl_div_bwd, ROW_THREADS, IN(0, real, grad), IN(1, ROW_T, log_p), IN(2, ROW_T, log_q), OUT(3, ROW_T, dp),
         PARAMS(4, kl_div_params, p)) {
#else
G_KERNEL(kl_div_bwd, ROW_THREADS, IN(0, real, grad), IN(1, ROW_T, log_p), IN(2, ROW_T, log_q), OUT(3, ROW_T, dq),
         PARAMS(4, kl_div_params, p)) {
#endif
  const gk_ctx c = G_CTX();
  const uint row = c.grp / p.parts * ROW_ROWS + c.tid / ROW_TPR;
  if (row >= p.rows) return;
  const uint t = c.tid % ROW_TPR;
  const uint tile = c.grp % p.parts;
  const gk_i64 base = (gk_i64)row * p.cols;
  const real g = grad[row];
  row_chunk x[ROW_V], y[ROW_V];
  kl_take(log_p, log_q, base, tile, t, p.cols, x, y);
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < p.cols) {
      real a[ROW_VEC], b[ROW_VEC];
      row_open(x[v], a);
      row_open(y[v], b);
      G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) {
        const real q = kl_p(a[e]);
        const real w = q == 0.0f ? real(0.0f) : q * g;
        b[e] = q == 0.0f ? real(0.0f) : w * (real(1.0f) + (a[e] - b[e]));
        a[e] = -w;
      }
#if KL_P
      row_store(dp, base + i, b);
#endif
#if KL_Q
      row_store(dq, base + i, a);
#endif
    }
  }
}
