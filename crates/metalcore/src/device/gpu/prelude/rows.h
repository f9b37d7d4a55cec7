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
template <typename T> G_FN void row_open(PRIVREF(gk_raw8<T>) c, PRIV(real) x) { gk_open8(c, x); }
#endif
template <typename T> G_FN void row_load(DEV(const T) p, gk_i64 i, PRIV(real) x) {
#if ROW_VEC == 8
  v8_spread(gk_ld8(p, i), x);
#elif ROW_VEC == 4
  const v4 a = gk_ld4(p, i);
  x[0] = a.x; x[1] = a.y; x[2] = a.z; x[3] = a.w;
#else
  x[0] = gk_real(p[i]);
#endif
}
#if ROW_STREAM  // what is written need not stay in the cache: the row, which is read again, should
#define ROW_ST8 gk_st8_once
#define ROW_ST4 gk_st4_once
#else
#define ROW_ST8 gk_st8
#define ROW_ST4 gk_st4
#endif
G_FN void row_store(DEV(ROW_T) p, gk_i64 i, PRIV(real) x) {
#if ROW_VEC == 8
  ROW_ST8(p, i, v8_of(x));
#elif ROW_VEC == 4
  ROW_ST4(p, i, v4(x[0], x[1], x[2], x[3]));
#else
  p[i] = gk_to<ROW_T>(x[0]);
#endif
}
// A thread's chunk of partial sums: one access of 4 bytes an element would move 8 times the memory.
G_FN void row_parts(DEV(real) p, gk_i64 i, PRIV(real) x) {
#if ROW_VEC == 1
  p[i] = x[0];
#else
  G_UNROLL for (uint e = 0; e < ROW_VEC; e += 4) gk_st4(p, i + e, v4(x[e], x[e + 1], x[e + 2], x[e + 3]));
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
// Both sums over a row's threads, by the same barriers.
G_FN void row_sum_pair(PRIVREF(real) a, PRIVREF(real) b, TG(real) scratch, gk_ctx c) {
#if ROW_TPR <= 32
  a = row_sum(a, scratch, c);
  b = row_sum(b, scratch, c);
#else
  a = sg_sum(a);
  b = sg_sum(b);
  if (c.lane == 0) {
    scratch[c.sg] = a;
    scratch[ROW_THREADS / 32 + c.sg] = b;
  }
  tg_barrier();
  a = 0.0f;
  b = 0.0f;
  G_UNROLL for (uint i = 0; i < ROW_TPR / 32; ++i) {
    a += scratch[i];
    b += scratch[ROW_THREADS / 32 + i];
  }
  tg_barrier();
#endif
}
// s + rest += x, s holding the rounded sum and rest what was rounded away (Knuth's TwoSum).
G_FN void row_add(PRIVREF(real) s, PRIVREF(real) rest, real x) {
  const real sum = s + x, part = sum - s;
  rest += (s - (sum - part)) + (x - part);
  s = sum;
}
// The sum over a row's threads of s + rest, rounded once.
G_FN real row_sum_two(real s, real rest, TG(real) scratch, gk_ctx c) {
  G_UNROLL for (uint mask = (ROW_TPR < 32 ? ROW_TPR : 32) / 2; mask > 0; mask /= 2) {
    rest += sg_xor(rest, mask);
    row_add(s, rest, sg_xor(s, mask));
  }
#if ROW_TPR > 32
  if (c.lane == 0) {
    scratch[c.sg] = s;
    scratch[ROW_THREADS / 32 + c.sg] = rest;
  }
  tg_barrier();
  s = 0.0f;
  rest = 0.0f;
  G_UNROLL for (uint i = 0; i < ROW_TPR / 32; ++i) {
    row_add(s, rest, scratch[i]);
    rest += scratch[ROW_THREADS / 32 + i];
  }
  tg_barrier();
#endif
  return s + rest;
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
#define ROW_SCRATCH_TWO TG_ARRAY(real, scratch, 2 * (ROW_THREADS / 32))  // for row_sum_pair, row_sum_two
