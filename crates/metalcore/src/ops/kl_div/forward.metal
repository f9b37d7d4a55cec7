// loss = sum p (log p - log q) of each row. Threads whose row is beyond the last one have 0 columns.
G_KERNEL(kl_div_fwd, ROW_THREADS, IN(0, ROW_T, log_p), IN(1, ROW_T, log_q), OUT(2, real, losses),
         PARAMS(3, kl_div_params, p)) {
  ROW_SCRATCH;
  const gk_ctx c = G_CTX();
  const uint row = c.grp * ROW_ROWS + c.tid / ROW_TPR;
  const uint t = c.tid % ROW_TPR;
  const uint cols = row < p.rows ? p.cols : 0;
  const gk_i64 base = (gk_i64)row * p.cols;
  real s = 0.0f;
  for (uint tile = 0; tile < (cols + ROW_TILE - 1) / ROW_TILE; ++tile) {
    row_chunk x[ROW_V], y[ROW_V];
    kl_take(log_p, log_q, base, tile, t, cols, x, y);
    real part = 0.0f;
    G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
      if (ROW_AT(tile, v) < cols) {
        real a[ROW_VEC], b[ROW_VEC];
        row_open(x[v], a);
        row_open(y[v], b);
        G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) {
          const real q = kl_p(a[e]);
          part += q == 0.0f ? real(0.0f) : q * (a[e] - b[e]);
        }
      }
    }
    s += part;
  }
  s = row_sum(s, scratch, c);
  if (t == 0 && row < p.rows) losses[row] = s;
}
