// y1 = x1 c1 - x2 s1, y2 = x2 c2 + x1 s2 for every head of a position. A thread has ROPE_VEC places of both halves, keeps
// their cosines and sines in registers and goes through some heads. Specialised by text:
//   ROPE_T, ROPE_W   storage type of q and k; of the tables
//   ROPE_VEC         elements of a chunk: 8, 4 or 1
//   ROPE_FULL        1: rows of the tables hold c1, c2 and s1, s2; 0: c1 = c2, s1 = s2
//   ROPE_IDS         32-bit words of a position id; 0: there are none
//   ROPE_BACK        1: the transposed rotation
//   ROPE_K           0: one tensor alone
#define ROPE_THREADS 256
// Heads whose loads are in flight at once.
#define ROPE_HEADS 4

// What a thread holds of a head: 16-bit elements as they lie in memory, for half the registers.
#if ROPE_VEC == 8
#define rope_chunk gk_raw8<ROPE_T>
template <typename T> G_FN void rope_open(PRIVREF(gk_raw8<T>) c, PRIV(real) x) { gk_open8(c, x); }
G_FN void rope_hold(DEV(const ROPE_T) p, gk_i64 i, PRIVREF(rope_chunk) c) { c = gk_ld_raw8(p, i); }
#else
struct rope_chunk { real e[ROPE_VEC]; };
G_FN void rope_open(PRIVREF(rope_chunk) c, PRIV(real) x) {
  G_UNROLL for (uint e = 0; e < ROPE_VEC; ++e) x[e] = c.e[e];
}
#endif
template <typename T> G_FN void rope_load(DEV(const T) p, gk_i64 i, PRIV(real) x) {
#if ROPE_VEC == 8
  v8_spread(gk_ld8(p, i), x);
#elif ROPE_VEC == 4
  const v4 a = gk_ld4(p, i);
  x[0] = a.x; x[1] = a.y; x[2] = a.z; x[3] = a.w;
#else
  x[0] = gk_real(p[i]);
#endif
}
#if ROPE_VEC != 8
G_FN void rope_hold(DEV(const ROPE_T) p, gk_i64 i, PRIVREF(rope_chunk) c) { rope_load(p, i, c.e); }
#endif
G_FN void rope_store(DEV(ROPE_T) p, gk_i64 i, PRIV(real) x) {
#if ROPE_VEC == 8
  gk_st8(p, i, v8_of(x));
#elif ROPE_VEC == 4
  gk_st4(p, i, v4(x[0], x[1], x[2], x[3]));
#else
  p[i] = gk_to<ROPE_T>(x[0]);
#endif
}

// Cosines and sines of a thread's places.
#if ROPE_FULL
struct rope_angles { real c1[ROPE_VEC]; real s1[ROPE_VEC]; real c2[ROPE_VEC]; real s2[ROPE_VEC]; };
#else
#define c2 c1
#define s2 s1
struct rope_angles { real c1[ROPE_VEC]; real s1[ROPE_VEC]; };
#endif

// The first `heads` of ROPE_HEADS heads, from x[from] and x[from + stride] on.
G_FN void rope_heads(DEV(const ROPE_T) x, DEV(ROPE_T) y, gk_i64 from, gk_i64 to, uint stride, uint out_stride, uint heads,
                     uint middle, PRIVREF(rope_angles) t) {
  rope_chunk a[ROPE_HEADS], b[ROPE_HEADS];
  G_UNROLL for (uint h = 0; h < ROPE_HEADS; ++h) {
    if (h < heads) {
      rope_hold(x, from + (gk_i64)h * stride, a[h]);
      rope_hold(x, from + (gk_i64)h * stride + middle, b[h]);
    }
  }
  G_UNROLL for (uint h = 0; h < ROPE_HEADS; ++h) {
    if (h < heads) {
      real x1[ROPE_VEC], x2[ROPE_VEC];
      rope_open(a[h], x1);
      rope_open(b[h], x2);
      G_UNROLL for (uint e = 0; e < ROPE_VEC; ++e) {
        const real u = x1[e], v = x2[e];
#if ROPE_BACK
        x1[e] = g_fma(v, t.s2[e], u * t.c1[e]);
        x2[e] = g_fma(-u, t.s1[e], v * t.c2[e]);
#else
        x1[e] = g_fma(-v, t.s1[e], u * t.c1[e]);
        x2[e] = g_fma(u, t.s2[e], v * t.c2[e]);
#endif
      }
      rope_store(y, to + (gk_i64)h * out_stride, x1);
      rope_store(y, to + (gk_i64)h * out_stride + middle, x2);
    }
  }
}

// Groups 0 .. blocks - 1 have all positions and the first heads of q, the next as many the following heads; then k.
G_FN void rope_groups(DEV(const ROPE_T) q, DEV(const ROPE_T) k, DEV(const ROPE_W) cos, DEV(const ROPE_W) sin,
                      DEV(const uint) ids, DEV(ROPE_T) q_out, DEV(ROPE_T) k_out, PREF(rope_params) p, gk_ctx c) {
  const uint item = (c.grp % p.blocks) * ROPE_THREADS + c.tid;
  if (item >= p.items) return;
  const uint row = item / p.lanes;
  const uint i = (item % p.lanes) * ROPE_VEC;
  const uint batch = row / p.seq;
  const uint s = row % p.seq;

  uint position = s;
  bool known = true;
#if ROPE_IDS
  const gk_i64 id = ((gk_i64)batch * p.ids_batch + s) * ROPE_IDS;
  position = ids[id];
  known = position < p.positions;
#if ROPE_IDS == 2
  known = known && ids[id + 1] == 0;
#endif
#endif
  rope_angles t;
  if (known) {
    const gk_i64 at = ((gk_i64)batch * p.table_batch + position) * p.table_width + i;
    rope_load(cos, at, t.c1);
    rope_load(sin, at, t.s1);
#if ROPE_FULL
    rope_load(cos, at + p.half_width, t.c2);
    rope_load(sin, at + p.half_width, t.s2);
#endif
  } else {
    G_UNROLL for (uint e = 0; e < ROPE_VEC; ++e) t.c1[e] = t.s1[e] = t.c2[e] = t.s2[e] = g_nan();
  }

  uint chunk = c.grp / p.blocks;
  const bool first = !ROPE_K || chunk < p.q_chunks;
  if (!first) chunk -= p.q_chunks;
  const uint heads = first ? p.q_heads : p.k_heads;
  const uint stride = first ? p.q_head : p.k_head;
  const uint begin = chunk * p.heads_per_thread;
  const uint end = g_minu(begin + p.heads_per_thread, heads);
  const gk_i64 batches = first ? (gk_i64)p.q_batch_high << 32 | p.q_batch : (gk_i64)p.k_batch_high << 32 | p.k_batch;
  const gk_i64 from = batch * batches + (gk_i64)s * (first ? p.q_position : p.k_position) + i;
  // (B, H, S, D) or (B, S, H, D), contiguous
  const uint out_position = p.heads_first ? p.width : heads * p.width;
  const uint out_stride = p.heads_first ? p.seq * p.width : p.width;
  const gk_i64 to = (gk_i64)batch * p.seq * heads * p.width + (gk_i64)s * out_position + i;
  for (uint h = begin; h < end; h += ROPE_HEADS) {
    const gk_i64 x_at = from + (gk_i64)h * stride;
    const gk_i64 y_at = to + (gk_i64)h * out_stride;
    if (first) {
      rope_heads(q, q_out, x_at, y_at, stride, out_stride, end - h, p.half_width, t);
    } else {
      rope_heads(k, k_out, x_at, y_at, stride, out_stride, end - h, p.half_width, t);
    }
  }
}

#if ROPE_K
G_KERNEL(rope_qk, ROPE_THREADS, IN(0, ROPE_T, q), IN(1, ROPE_T, k), IN(2, ROPE_W, cos), IN(3, ROPE_W, sin), IN(4, uint, ids),
         OUT(5, ROPE_T, q_out), OUT(6, ROPE_T, k_out), PARAMS(7, rope_params, p)) {
  rope_groups(q, k, cos, sin, ids, q_out, k_out, p, G_CTX());
}
#else
G_KERNEL(rope_x, ROPE_THREADS, IN(0, ROPE_T, x), IN(1, ROPE_W, cos), IN(2, ROPE_W, sin), IN(3, uint, ids),
         OUT(4, ROPE_T, y), PARAMS(5, rope_params, p)) {
  rope_groups(x, x, cos, sin, ids, y, y, p, G_CTX());
}
#endif
