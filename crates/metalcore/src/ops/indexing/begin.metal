// The first p.copies groups copy dst to out. The others make the float32 sums of 16-bit elements that will be added to
// begin as them; equal indices store equal values. dst is out where nothing is copied.
G_KERNEL(scatter_add_begin, INDEXING_THREADS, IO(0, SCATTER_T, dst), IO(1, uint4, dst_words), IN(2, int, narrow),
         IN(3, gk_i64, wide), IO(4, SCATTER_T, out), IO(5, uint4, out_words), IO(6, real, sums),
         PARAMS(7, indexing_params, p)) {
  const gk_ctx c = G_CTX();
  if (c.grp < p.copies) {
    const gk_i64 words = gk_size_i64(p.words), len = gk_size_i64(p.len);
    const gk_i64 first = gk_i64(c.grp) * (INDEXING_THREADS * INDEXING_AHEAD) + c.tid;
    uint4 held[INDEXING_AHEAD];
    G_UNROLL for (uint k = 0; k < INDEXING_AHEAD; ++k) {
      const gk_i64 i = first + gk_i64(k * INDEXING_THREADS);
      if (i < words) held[k] = dst_words[i];
    }
    G_UNROLL for (uint k = 0; k < INDEXING_AHEAD; ++k) {
      const gk_i64 i = first + gk_i64(k * INDEXING_THREADS);
      if (i < words) out_words[i] = held[k];
    }
    const gk_i64 rest = words * SCATTER_PER_WORD + gk_i64(c.grp) * INDEXING_THREADS + c.tid;
    for (gk_i64 i = rest; i < len; i += gk_i64(p.copies) * INDEXING_THREADS) out[i] = dst[i];
  } else {
#if SCATTER_PER_WORD == 8
    const gk_i64 first = gk_i64(c.grp - p.copies) * (INDEXING_THREADS * INDEXING_AHEAD) + c.tid;
    gk_i64 table[INDEXING_AHEAD], values[INDEXING_AHEAD];
    indexing_places(first, narrow, wide, p, table, values);
    real value[INDEXING_AHEAD];
    G_UNROLL for (uint k = 0; k < INDEXING_AHEAD; ++k) {
      if (table[k] >= 0) value[k] = gk_real(dst[table[k]]);
    }
    G_UNROLL for (uint k = 0; k < INDEXING_AHEAD; ++k) {
      if (table[k] >= 0) ga_put(sums, table[k], value[k]);
    }
#endif
  }
}
