// What the passes of cross_entropy share. Specialised by text:
//   CE_T, CE_I     storage type of the logits; type of the targets
//   CE_TPR         threads per row; 32: one simd group per row, CE_ROWS rows per threadgroup
//   CE_VEC, CE_V   elements in a chunk (8, 4 or 1); chunks that a thread takes together
#define CE_THREADS (CE_TPR * CE_ROWS)
#define CE_E (CE_V * CE_VEC)
#define CE_LOG2E gk_lit(1.4426950408889634074)

G_FN gk_i64 ce_ignored(PREF(cross_entropy_params) p) {
  return gk_i64((gk_i64(p.ignore_high) << 32) | gk_i64(p.ignore_low));
}
template <typename T> G_FN void ce_load(DEV(T) p, gk_i64 i, PRIV(real) x) {
#if CE_VEC == 8
  v8_spread(gk_ld8_once(p, i), x);
#elif CE_VEC == 4
  const v4 a = gk_ld4_once(p, i);
  x[0] = a.x; x[1] = a.y; x[2] = a.z; x[3] = a.w;
#else
  x[0] = gk_real(p[i]);
#endif
}

// What a thread holds until it is used: 16-bit elements as they lie in memory, for half the registers.
#if CE_VEC == 8
#define ce_chunk gk_raw8<CE_T>
template <typename T> G_FN void ce_hold(DEV(T) p, gk_i64 i, PRIVREF(ce_chunk) c) { c = gk_ld_raw8_once(p, i); }
G_FN void ce_open(PRIVREF(ce_chunk) c, PRIV(real) x) { gk_open8(c, x); }
#else
struct ce_chunk { real e[CE_VEC]; };
template <typename T> G_FN void ce_hold(DEV(T) p, gk_i64 i, PRIVREF(ce_chunk) c) { ce_load(p, i, c.e); }
G_FN void ce_open(PRIVREF(ce_chunk) c, PRIV(real) x) {
  G_UNROLL for (uint e = 0; e < CE_VEC; ++e) x[e] = c.e[e];
}
#endif
