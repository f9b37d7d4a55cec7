// Rows laid over threads: what the forward and the backward pass of rms_norm share.
// Specialised by text:
//   RMS_T, RMS_W     storage type of x and y; of the weight
//   RMS_WEIGHT       0: no weight (w is bound, not read)         RMS_ADD  1: the residual forms
//   RMS_TPR          threads per row; 32: one simd group per row, RMS_ROWS rows per threadgroup
//   RMS_VEC, RMS_V   elements in a chunk (8, 4 or 1); chunks that a thread holds in registers
//   RMS_STREAM       1: a row is longer than RMS_TPR * RMS_V * RMS_VEC and is read twice
#define RMS_THREADS (RMS_TPR * RMS_ROWS)
#define RMS_E (RMS_V * RMS_VEC)
#define RMS_TILE (RMS_TPR * RMS_E)

// Chunk v of thread t in a tile of the row.
#define RMS_AT(tile, v) ((tile) * RMS_TILE + ((v) * RMS_TPR + t) * RMS_VEC)

#if RMS_VEC == 8
template <typename T> G_FN void rms_open(PRIVREF(gk_raw8<T>) c, PRIV(real) x) {
  gk_keep(c);
  const v8 a = gk_unpack8(c);
  x[0] = a.lo.x; x[1] = a.lo.y; x[2] = a.lo.z; x[3] = a.lo.w;
  x[4] = a.hi.x; x[5] = a.hi.y; x[6] = a.hi.z; x[7] = a.hi.w;
}
#endif
template <typename T> G_FN void rms_load(DEV(const T) p, gk_i64 i, PRIV(real) x) {
#if RMS_VEC == 8
  const v8 a = gk_ld8(p, i);
  x[0] = a.lo.x; x[1] = a.lo.y; x[2] = a.lo.z; x[3] = a.lo.w;
  x[4] = a.hi.x; x[5] = a.hi.y; x[6] = a.hi.z; x[7] = a.hi.w;
#elif RMS_VEC == 4
  const v4 a = gk_ld4(p, i);
  x[0] = a.x; x[1] = a.y; x[2] = a.z; x[3] = a.w;
#else
  x[0] = gk_real(p[i]);
#endif
}
G_FN void rms_store(DEV(RMS_T) p, gk_i64 i, PRIV(real) x) {
#if RMS_VEC == 8
  v8 a;
  a.lo = v4(x[0], x[1], x[2], x[3]);
  a.hi = v4(x[4], x[5], x[6], x[7]);
  gk_st8(p, i, a);
#elif RMS_VEC == 4
  gk_st4(p, i, v4(x[0], x[1], x[2], x[3]));
#else
  p[i] = gk_to<RMS_T>(x[0]);
#endif
}
G_FN void rms_weight(DEV(const RMS_W) w, uint i, PRIV(real) g) {
#if RMS_WEIGHT && RMS_VEC == 8
  gk_raw8<RMS_W> c = gk_ld_raw8(w, i);
  rms_open(c, g);
#elif RMS_WEIGHT
  rms_load(w, i, g);
#else
  G_UNROLL for (uint e = 0; e < RMS_VEC; ++e) g[e] = 1.0f;
#endif
}
G_FN real rms_row_sum(real v, TG(real) scratch, gk_ctx c) {
#if RMS_TPR == 32
  return sg_sum(v);
#else
  return gk_tg_sum<RMS_TPR>(v, scratch, c);
#endif
}
#define RMS_SCRATCH TG_ARRAY(real, scratch, RMS_THREADS / 32)
