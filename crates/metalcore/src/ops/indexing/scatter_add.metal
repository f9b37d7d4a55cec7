// to += from where the index says, in any order; SCATTER_ROUND: to := from there, sums rounded to 16 bits; equal indices
// store equal values.
G_KERNEL(scatter_add, INDEXING_THREADS, IN(0, SCATTER_FROM, from), IN(1, int, narrow), IN(2, gk_i64, wide),
         IO(3, SCATTER_TO, to), PARAMS(4, indexing_params, p)) {
  const gk_ctx c = G_CTX();
  const gk_i64 first = gk_i64(c.grp) * (INDEXING_THREADS * INDEXING_AHEAD) + c.tid;
  gk_i64 table[INDEXING_AHEAD], values[INDEXING_AHEAD];
  indexing_places(first, narrow, wide, p, table, values);
  real value[INDEXING_AHEAD];
  G_UNROLL for (uint k = 0; k < INDEXING_AHEAD; ++k) {
    if (table[k] >= 0) value[k] = gk_real(from[SCATTER_ROUND ? table[k] : values[k]]);
  }
  G_UNROLL for (uint k = 0; k < INDEXING_AHEAD; ++k) {
    if (table[k] >= 0) {
#if SCATTER_ROUND
      ga_put(to, table[k], gk_to<SCATTER_TO>(value[k]));
#else
      ga_add(to, table[k], value[k]);
#endif
    }
  }
}
