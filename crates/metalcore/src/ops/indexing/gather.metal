// Words of the source, as the index names them. A word is an element, or several of them where they lie together.
G_KERNEL(gather, INDEXING_THREADS, IN(0, INDEXING_WORD, src), IN(1, int, narrow), IN(2, gk_i64, wide),
         OUT(3, INDEXING_WORD, out), PARAMS(4, indexing_params, p)) {
  const gk_ctx c = G_CTX();
  const gk_i64 first = gk_i64(c.grp) * (INDEXING_THREADS * INDEXING_AHEAD) + c.tid;
  gk_i64 table[INDEXING_AHEAD], values[INDEXING_AHEAD];
  indexing_places(first, narrow, wide, p, table, values);
#if INDEXING_BYTES == 16
  const uint4 missing = gk_uint4(p.missing[0], p.missing[1], p.missing[2], p.missing[3]);
#elif INDEXING_BYTES == 8
  const uint2 missing = gk_uint2(p.missing[0], p.missing[1]);
#else
  const INDEXING_WORD missing = INDEXING_WORD(p.missing[0]);
#endif
  INDEXING_WORD found[INDEXING_AHEAD];
  G_UNROLL for (uint k = 0; k < INDEXING_AHEAD; ++k) {
    found[k] = missing;
    if (table[k] >= 0) found[k] = src[table[k]];
  }
  G_UNROLL for (uint k = 0; k < INDEXING_AHEAD; ++k) {
    if (first + gk_i64(k * INDEXING_THREADS) < gk_size_i64(p.total)) out[values[k]] = found[k];
  }
}
