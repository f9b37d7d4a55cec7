// The gradient of a maximum without sorted indices, for few bags: every (bag, column) has one row that it goes to, and the
// first bag of those that share it sums them in order.
#if BAG_BEGIN
// rows[b, d]: that row, or BAG_NONE; and zeros in dw. A thread takes a chunk of dw and an element of rows.
G_KERNEL(embedding_bag_max_begin, ROW_THREADS, IN(0, uint, indices), IN(1, real, scale), IN(2, uint, largest),
         OUT(3, uint, rows), OUT(4, ROW_T, dw), PARAMS(5, embedding_bag_params, p)) {
  const gk_ctx c = G_CTX();
  const gk_i64 i = gk_i64(c.grp) * ROW_THREADS + c.tid;
  if (i * ROW_VEC < gk_i64(p.rows) * p.cols) {
    real zeros[ROW_VEC];
    G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) zeros[e] = 0.0f;
    row_store(dw, i * ROW_VEC, zeros);
  }
  if (i < gk_i64(p.bags) * p.cols) {
    const uint entry = largest[i];
    const bool counts = entry < p.entries && scale[uint(i / p.cols)] != real(0.0f);
    rows[i] = counts ? bag_row(indices, entry, p) : BAG_NONE;
  }
}
#else
G_KERNEL(embedding_bag_max_bwd, ROW_THREADS, IN(0, ROW_T, dy), IN(1, uint, rows), IO(2, ROW_T, dw),
         PARAMS(3, embedding_bag_params, p)) {
  const gk_ctx c = G_CTX();
  const gk_i64 i = gk_i64(c.grp) * ROW_THREADS + c.tid;
  const gk_i64 n = gk_i64(p.bags) * p.cols;
  if (i >= n) return;
  const uint row = rows[i];
  if (row == BAG_NONE) return;
  const uint column = uint(i % p.cols);
  for (gk_i64 other = column; other < i; other += p.cols) {
    if (rows[other] == row) return;
  }
  real total = 0.0f, lost = 0.0f;
  for (gk_i64 other = i; other < n; other += p.cols) {
    if (rows[other] == row) bag_add(total, lost, gk_real(dy[other]));
  }
  dw[gk_i64(row) * p.cols + column] = gk_to<ROW_T>(total);
}
#endif
