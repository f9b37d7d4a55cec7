// Rows laid over threads: what operations on rows share, in front of their kernels.
// Specialised by text:
//   ROW_T            storage type of the rows
//   ROW_W            storage type of a weight
//   ROW_WEIGHT       0: no weight (w is bound, not read)
//   ROW_TPR          threads per row, a power of two; up to 32: ROW_ROWS rows per threadgroup, else one
//   ROW_VEC, ROW_V   elements in a chunk (8, 4 or 1); chunks that a thread holds in registers
//   ROW_STREAM       1: a row is longer than ROW_TPR * ROW_V * ROW_VEC and is read more than once
#define ROW_THREADS (ROW_TPR * ROW_ROWS)
#define ROW_E (ROW_V * ROW_VEC)
#define ROW_TILE (ROW_TPR * ROW_E)

// Chunk v of thread t in a tile of the row.
#define ROW_AT(tile, v) ((tile) * ROW_TILE + ((v) * ROW_TPR + t) * ROW_VEC)

#if ROW_VEC == 8
template <typename T> G_FN void row_open(PRIVREF(gk_raw8<T>) c, PRIV(real) x) {
  gk_keep(c);
  const v8 a = gk_unpack8(c);
  x[0] = a.lo.x; x[1] = a.lo.y; x[2] = a.lo.z; x[3] = a.lo.w;
  x[4] = a.hi.x; x[5] = a.hi.y; x[6] = a.hi.z; x[7] = a.hi.w;
}
#endif
template <typename T> G_FN void row_load(DEV(const T) p, gk_i64 i, PRIV(real) x) {
#if ROW_VEC == 8
  const v8 a = gk_ld8(p, i);
  x[0] = a.lo.x; x[1] = a.lo.y; x[2] = a.lo.z; x[3] = a.lo.w;
  x[4] = a.hi.x; x[5] = a.hi.y; x[6] = a.hi.z; x[7] = a.hi.w;
#elif ROW_VEC == 4
  const v4 a = gk_ld4(p, i);
  x[0] = a.x; x[1] = a.y; x[2] = a.z; x[3] = a.w;
#else
  x[0] = gk_real(p[i]);
#endif
}
G_FN void row_store(DEV(ROW_T) p, gk_i64 i, PRIV(real) x) {
#if ROW_VEC == 8
  v8 a;
  a.lo = v4(x[0], x[1], x[2], x[3]);
  a.hi = v4(x[4], x[5], x[6], x[7]);
  gk_st8(p, i, a);
#elif ROW_VEC == 4
  gk_st4(p, i, v4(x[0], x[1], x[2], x[3]));
#else
  p[i] = gk_to<ROW_T>(x[0]);
#endif
}
#ifdef ROW_W
G_FN void row_weight(DEV(const ROW_W) w, uint i, PRIV(real) g) {
#if ROW_WEIGHT && ROW_VEC == 8
  gk_raw8<ROW_W> c = gk_ld_raw8(w, i);
  row_open(c, g);
#elif ROW_WEIGHT
  row_load(w, i, g);
#else
  G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) g[e] = 1.0f;
#endif
}
#endif

// What a thread holds of a row: 16-bit elements as they lie in memory, for half the registers.
#if ROW_VEC == 8
#define row_chunk gk_raw8<ROW_T>
G_FN void row_hold(DEV(const ROW_T) p, gk_i64 i, PRIVREF(row_chunk) c) { c = gk_ld_raw8(p, i); }
#else
struct row_chunk { real e[ROW_VEC]; };
G_FN void row_open(PRIVREF(row_chunk) c, PRIV(real) x) {
  G_UNROLL for (uint e = 0; e < ROW_VEC; ++e) x[e] = c.e[e];
}
G_FN void row_hold(DEV(const ROW_T) p, gk_i64 i, PRIVREF(row_chunk) c) { row_load(p, i, c.e); }
#endif

G_FN real row_sum(real v, TG(real) scratch, gk_ctx c) {
#if ROW_TPR < 32
  G_UNROLL for (uint mask = ROW_TPR / 2; mask > 0; mask /= 2) v += sg_xor(v, mask);
  return v;
#elif ROW_TPR == 32
  return sg_sum(v);
#else
  return gk_tg_sum<ROW_TPR>(v, scratch, c);
#endif
}
// NaN is ignored, as by g_max.
G_FN real row_max(real v, TG(real) scratch, gk_ctx c) {
#if ROW_TPR < 32
  G_UNROLL for (uint mask = ROW_TPR / 2; mask > 0; mask /= 2) v = g_max(v, sg_xor(v, mask));
  return v;
#elif ROW_TPR == 32
  return sg_max(v);
#else
  return gk_tg_max<ROW_TPR>(v, scratch, c);
#endif
}
#define ROW_SCRATCH TG_ARRAY(real, scratch, ROW_THREADS / 32)
