// The gradient of each entry's factor: dy[bag] . weight[row]; 0 for an entry that is skipped. A simd group an entry.
G_KERNEL(embedding_bag_bwd_samples, ROW_THREADS, IN(0, ROW_T, dy), IN(1, ROW_T, weight), IN(2, uint, indices),
         IN(3, uint, offsets), IN(4, real, scale), OUT(5, ROW_T, d_samples), PARAMS(6, embedding_bag_params, p)) {
  const gk_ctx c = G_CTX();
  const uint entry = c.grp * (ROW_THREADS / 32) + c.sg;
  if (entry >= p.entries) return;  // the whole simd group
  const uint row = bag_row(indices, entry, p);
  const uint bag = bag_of(offsets, entry, p);
  real dot = 0.0f;
  if (row != BAG_NONE && row != p.padding && bag != BAG_NONE && scale[bag] != real(0.0f)) {
    for (uint column = c.lane * ROW_VEC; column < p.cols; column += 32 * ROW_VEC) {
      real a[ROW_VEC], b[ROW_VEC];
      row_load(dy, gk_i64(bag) * p.cols + column, a);
      row_load(weight, gk_i64(row) * p.cols + column, b);
      real sum = 0.0f;
      G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) sum = g_fma(a[i], b[i], sum);
      dot += sum;
    }
  }
  dot = sg_sum(dot);
  if (c.lane == 0) d_samples[entry] = gk_to<ROW_T>(dot);
}
