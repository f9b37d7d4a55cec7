// f(x) = x P(x) and its derivative: what the kernels of the activations share.
// Every product that meets a sum is a g_fma by name, so that all forms of the loops give the same bits.
// Specialised by text:
//   ACT_T, ACT_B     storage type of x and y; of the bias
//   ACT_VEC          elements in a chunk: 8, or 1 where a tensor or a row does not start on 16 bytes
//   ACT_THREADS      threads of a group
// F is the function: 0 silu, 1 gelu, 2 the tanh form of gelu. All wait for memory alone, so one kernel has the three.
#define ACT_CALL(function, name, ...)            \
  do {                                           \
    if ((function) == 0) name<0>(__VA_ARGS__);   \
    else if ((function) == 1) name<1>(__VA_ARGS__); \
    else name<2>(__VA_ARGS__);                   \
  } while (false)

// A magnitude whose tail is 0.
template <uint F> G_FN real act_farthest() {
#if GK_F64
  return F == 0 ? 800.0f : F == 1 ? 39.0f : 22.0f;
#else
  return F == 0 ? 128.0f : F == 1 ? 14.5f : 11.5f;
#endif
}

// e^x for x <= 0. Of 16-bit types by way of 2^x, relative error (4 + |x|) w: with expf they were bound by instructions on
// an H200, silu forward at 74 % of copy bandwidth.
G_FN real act_exp(real x) {
  if (sizeof(ACT_T) == 2) return g_exp2(x * gk_lit(1.4426950408889634074));
  return g_exp(x);
}

// c = sigma(z), r = 1 - c, z <= 0
G_FN void act_sigmoid(real z, PRIVREF(real) c, PRIVREF(real) r) {
  const real e = act_exp(z);
  r = g_recip(real(1.0f) + e);
  c = e * r;
}

// c = Phi(-a), p = its density, a >= 0
G_FN void act_normal(real a, PRIVREF(real) c, PRIVREF(real) p) {
  const real e = act_exp(a * a * real(-0.5f));
#if GK_F64
  const real s = g_recip(a + 6.0), t = (a - 6.0) * s;
  real m = 8.876840802023829e-10;
  m = g_fma(m, t, 5.237636606010233e-09);
  m = g_fma(m, t, -1.34456172912233e-10);
  m = g_fma(m, t, -4.434552970785575e-08);
  m = g_fma(m, t, 9.45572690337117e-09);
  m = g_fma(m, t, 3.1187244991295677e-07);
  m = g_fma(m, t, -4.3030600972602457e-07);
  m = g_fma(m, t, -1.800686073929392e-06);
  m = g_fma(m, t, 6.796409416958435e-06);
  m = g_fma(m, t, 1.0759772542319458e-06);
  m = g_fma(m, t, -6.475191429322486e-05);
  m = g_fma(m, t, 0.00018136032488251668);
  m = g_fma(m, t, 3.2869980622442494e-05);
  m = g_fma(m, t, -0.002131605195723298);
  m = g_fma(m, t, 0.010029820648351936);
  m = g_fma(m, t, -0.030985315509016793);
  m = g_fma(m, t, 0.07517191566812548);
  m = g_fma(m, t, -0.15268023206441028);
  m = g_fma(m, t, 0.2679742458416971);
  m = g_fma(m, t, -0.4139035857755929);
  m = g_fma(m, t, 0.5689688918147829);
  m = g_fma(m, t, -0.7010090295908655);
  m = g_fma(m, t, 0.7773517718933622);
#else
  const real s = g_recip(a + 3.0f), t = (a - 3.0f) * s;
  real m;
  if (sizeof(ACT_T) == 2) {  // c within 1e-7, and 1e-5 of itself in the tail
    m = 1.802084084e-3f;
    m = g_fma(m, t, 6.559328642e-3f);
    m = g_fma(m, t, -1.106529124e-2f);
    m = g_fma(m, t, -4.729807377e-2f);
    m = g_fma(m, t, 2.301287502e-1f);
    m = g_fma(m, t, -5.093154907e-1f);
    m = g_fma(m, t, 7.290799618e-1f);
  } else {
    m = -2.910220937e-4f;
    m = g_fma(m, t, -9.316650103e-4f);
    m = g_fma(m, t, 1.094801934e-3f);
    m = g_fma(m, t, 6.948343944e-3f);
    m = g_fma(m, t, -1.048464794e-2f);
    m = g_fma(m, t, -4.726215452e-2f);
    m = g_fma(m, t, 2.300198227e-1f);
    m = g_fma(m, t, -5.093319416e-1f);
    m = g_fma(m, t, 7.290836572e-1f);
  }
#endif
  c = e * (s * m);
  p = e * gk_lit(0.3989422804014327);
}

// c = P(-a), p = P'(a), a >= 0
template <uint F> G_FN void act_tail(real a, PRIVREF(real) c, PRIVREF(real) p) {
  if (F == 1) {
    act_normal(a, c, p);
    return;
  }
  real r;
  if (F == 0) {
    act_sigmoid(-a, c, r);
    p = c * r;
  } else {
    const real square = a * a;
    act_sigmoid(-a * g_fma(square, gk_lit(0.07135481627260025), gk_lit(1.5957691216057308)), c, r);
    p = c * r * g_fma(square, gk_lit(0.21406444881780073), gk_lit(1.5957691216057308));
  }
}

// |x|, at most what has a tail of 0. NaN stays.
template <uint F> G_FN real act_magnitude(real x) {
  const real a = g_abs(x), farthest = act_farthest<F>();
#if GK_METAL  // whose fast maths may make a minimum of the comparison, which loses NaN
  if (g_isnan(x)) return x;
#endif
  return a > farthest ? farthest : a;
}
template <uint F> G_FN real act_value(real x) {
  const real a = act_magnitude<F>(x);
  real c, p;
  act_tail<F>(a, c, p);
  return g_fma(-a, c, g_max(x, real(0.0f)));
}

// f(x) and f'(x)
template <uint F> G_FN real act_slope(real x, PRIVREF(real) value) {
  const real a = act_magnitude<F>(x);
  real c, p;
  act_tail<F>(a, c, p);
  value = g_fma(-a, c, g_max(x, real(0.0f)));
  const real below = g_fma(-a, p, c);
  return x < real(0.0f) ? below : real(1.0f) - below;
}

// ACT_VEC elements from i on, of which `left` are there; the others are 0.
template <typename T> G_FN void act_load(DEV(const T) p, gk_i64 i, gk_i64 left, PRIV(real) x) {
#if ACT_VEC == 8
  if (left >= 8) {
    v8_spread(gk_ld8(p, i), x);
    return;
  }
#endif
  G_UNROLL for (uint e = 0; e < ACT_VEC; ++e) x[e] = (gk_i64)e < left ? gk_real(p[i + e]) : real(0.0f);
}
G_FN void act_store(DEV(ACT_T) p, gk_i64 i, gk_i64 left, PRIV(real) x) {
#if ACT_VEC == 8
  if (left >= 8) {
    gk_st8(p, i, v8_of(x));
    return;
  }
#endif
  G_UNROLL for (uint e = 0; e < ACT_VEC; ++e) {
    if ((gk_i64)e < left) p[i + e] = gk_to<ACT_T>(x[e]);
  }
}
