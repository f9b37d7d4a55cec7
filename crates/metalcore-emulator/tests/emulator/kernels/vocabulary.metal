// Every word of the vocabulary. tests/vocabulary.rs computes the right results.
struct vocabulary_params { uint n; float s; };

G_CONST float powers[4] = {1.0f, 2.0f, 4.0f, 8.0f};
G_FN void count_up(PRIV(real) r, uint n, real from) {
  for (uint i = 0; i < n; ++i) r[i] = from + real(i);
}
G_FN void add_s(PRIVREF(real) a, PREF(vocabulary_params) p) { a += p.s; }
template <typename T> G_FN real total(DEV(const T) x, uint n) {
  real sum = real(0.0f);
  for (uint i = 0; i < n; ++i) sum += gk_real(x[i]);
  return sum;
}

// One row of 64 results per word.
G_KERNEL(words, 64, IN(0, half, h), IN(1, bfloat, b), OUT(2, real, reals), OUT(3, uint, uints), IO(4, real, shared),
         IO(5, uint, counter), PARAMS(6, vocabulary_params, p)) {
  TG_ARRAY(real, scratch, 2);
  TG_ARRAY(uint, flags, 2);
  TG_ARRAY(real, tile, 256);
  const gk_ctx c = G_CTX();
  const uint t = c.tid;
  const real x = gk_lit(0.25) * real(t) - gk_lit(3.0);

  uint row = 0;
#define PUT(value) reals[64 * row++ + t] = value
  PUT(sg_sum(x));
  PUT(sg_max(x));
  PUT(sg_min(x));
  PUT(sg_shfl(x, 31u - c.lane));
  PUT(sg_xor(x, 5u));
  PUT(gk_tg_sum<64>(x, scratch, c));
  PUT(gk_tg_max<64>(x, scratch, c));
  PUT(g_sqrt(g_abs(x)));
  PUT(g_rsqrt(g_abs(x) + gk_lit(1.0)));
  PUT(g_rsqrt_near(g_abs(x) + gk_lit(1.0)));
  PUT(g_recip(g_abs(x) + gk_lit(1.0)));
  PUT(g_exp(x));
  PUT(g_log(g_abs(x) + gk_lit(1.0)));
  PUT(g_floor(x));
  PUT(g_abs(x));
  PUT(g_max(x, gk_lit(1.0)));
  PUT(g_min(x, gk_lit(1.0)));
  PUT(g_fma(x, x, -x));
  PUT(g_copysign(gk_lit(2.0), x));
  PUT(powers[t & 3u]);
  real r[4];
  count_up(r, 4, x);
  add_s(r[3], p);
  PUT(r[3]);
  PUT(total(h, p.n) + total(b, p.n));
  const v4 v = v4(x, x + gk_lit(1.0), x + gk_lit(2.0), x + gk_lit(3.0));
  PUT(v4_dot((v + v4(gk_lit(1.0))) * v, (v - v4(gk_lit(2.0))) * gk_lit(0.5)));
  // threadgroup vectors: each thread writes four, and reads those of its mirror image
  gk_tg_st4(tile, 4 * t, v);
  tg_barrier();
  const v4 m = gk_tg_ld4(tile, 4 * (63 - t));
  PUT(m.x + gk_lit(10.0) * m.y + gk_lit(100.0) * m.z + gk_lit(1000.0) * m.w);
  // exchange inside a simd group
  tg_barrier();
  tile[t] = x;
  sg_barrier();
  PUT(tile[t ^ 1u]);
  // exchange through device memory
  shared[t] = shared[t] + x;
  tg_barrier_dev();
  PUT(shared[63 - t]);
  PUT(g_isnan(g_max(g_nan(), x)) ? gk_lit(-1.0) : g_max(g_nan(), x));
  PUT(g_inf());
  PUT(GK_UNIT);
  PUT(GK_TINY);
  PUT(GK_HUGE);
#undef PUT

  row = 0;
#define PUT(value) uints[64 * row++ + t] = value
  PUT(sg_sum(t));
  PUT(sg_max(t));
  PUT(sg_min(t));
  PUT(sg_shfl(t, 31u - c.lane));
  PUT(sg_xor(t, 5u));
  PUT(sg_any(t == 40u) ? 1u : 0u);
  PUT(sg_all(t < 40u) ? 1u : 0u);
  PUT(gk_tg_any<64>(t == 40u, flags, c) ? 1u : 0u);
  PUT(g_minu(t, 5u));
  PUT(g_maxu(t, 5u));
  PUT(g_isnan(x) ? 1u : 0u);
  PUT(g_isnan(g_nan()) ? 1u : 0u);
  PUT(g_isnan(g_inf()) ? 1u : 0u);
  PUT(c.lane + 100u * c.sg + 1000u * c.grp);
  const uint2 two = gk_uint2(t, 7u);
  const uint4 four = gk_uint4(1u, two.y, two.x, 3u);
  PUT(four.x + 10u * four.y + 100u * four.z + 1000u * four.w);
  PUT(uint(gk_size_i64(gk_size{t, 3u}) >> 1));
#undef PUT
  ga_add(counter, 1, t);
  ga_add(shared, 64, x);
  ga_put(shared, 65, gk_lit(2.5));
}

// y = 2 x through every vector word, a thread 16 elements; n is a multiple of 16.
template <typename T> G_FN void double_all(DEV(const T) x, DEV(T) y, uint n, gk_ctx c) {
  for (uint i = 16 * (32 * c.grp + c.tid); i < n; i += 16 * 32) {
    gk_st4(y, i, gk_ld4(x, i) * gk_lit(2.0));
    gk_st4_once(y, i + 4, gk_ld4_once(x, i + 4) * gk_lit(2.0));
    const v8 v = (i & 16u) != 0 ? gk_ld8(x, i + 8) : gk_ld8_once(x, i + 8);
    const v8 w = v8{v.lo + v.lo, v.hi + v.hi};
    if ((i & 16u) != 0) gk_st8(y, i + 8, w); else gk_st8_once(y, i + 8, w);
  }
}
#define DOUBLE(T, suffix)                                                                                          \
  G_KERNEL(double_##suffix, 32, IN(0, T, x), OUT(1, T, y), PARAMS(2, vocabulary_params, p)) {                      \
    double_all<T>(x, y, p.n, G_CTX());                                                                             \
  }
DOUBLE(float, f32)
DOUBLE(half, f16)
DOUBLE(bfloat, bf16)
#if GK_F64
DOUBLE(double, f64)
#endif

// Every conversion: from 16 bits to real, and from real to each storage type.
G_KERNEL(widen, 32, IN(0, half, h), IN(1, bfloat, b), OUT(2, real, from_half), OUT(3, real, from_bfloat),
         PARAMS(4, vocabulary_params, p)) {
  const gk_ctx c = G_CTX();
  const uint i = 32 * c.grp + c.tid;
  if (i < p.n) {
    from_half[i] = gk_real(h[i]);
    from_bfloat[i] = gk_real(b[i]);
  }
}
G_KERNEL(narrow, 32, IN(0, real, x), OUT(1, half, h), OUT(2, bfloat, b), OUT(3, float, f), PARAMS(4, vocabulary_params, p)) {
  const gk_ctx c = G_CTX();
  const uint i = 32 * c.grp + c.tid;
  if (i < p.n) {
    h[i] = gk_to<half>(x[i]);
    b[i] = gk_to<bfloat>(x[i]);
    f[i] = gk_to<float>(x[i]);
  }
}
