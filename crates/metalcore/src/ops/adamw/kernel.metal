// One AdamW step over many tensors (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2):
//   m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g g,  p <- decay p - size m / (sqrt(v) / root2 + eps)
// with decay = 1 - lr wd, size = lr / (1 - b1^t), root2 = sqrt(1 - b2^t). Specialised by text:
//   ADAMW_P, ADAMW_G   storage types of parameters and gradients; moments are `real`
//   ADAMW_AMSGRAD      1: v is replaced by the largest v so far
//   ADAMW_SLOTS        tensors of one launch
// A threadgroup takes ADAMW_CHUNK elements of one tensor.
#define ADAMW_THREADS 256
#define ADAMW_CHUNK (ADAMW_THREADS * 4 * 4)

// 1 - b^t from log(b) = x.a + x.b + ...: no cancellation where b^t is close to 1 (Metal has neither expm1 nor double).
G_FN real adamw_one_minus_power(real t, gk_wide x) {
#if GK_F64
  const real y = t * gk_wide_real(x), rest = 0.0f;
#else
  const real y = t * x.a, rest = g_fma(t, x.a, -y) + t * x.b;
#endif
  if (y > -0.35f) {  // the Taylor series; its remainder is below 2^-24 (float64: 2^-53)
    const real z = y + rest;
    real s = 1.0f;
    for (uint n = GK_F64 ? 16 : 8; n > 1; --n) s = 1.0f + s * z / real(n);
    return -z * s;
  }
  return 1.0f - g_exp(y) * (1.0f + rest);
}

// Counts the step of every tensor, unless the gradients overflowed, and prepares its coefficients:
// coefficients[4 i ..] = decay, size, 1 / root2, factor on the gradient (0: leave the tensor alone).
G_KERNEL(adamw_prepare, 256, IO(0, float, steps), OUT(1, real, coefficients), IN(2, real, lr), IN(3, float, grad_scale),
         IN(4, float, found_inf), PARAMS(5, adamw_prepare_params, p)) {
  const gk_ctx c = G_CTX();
  const uint i = c.grp * 256 + c.tid;
  if (i >= p.tensors) return;
  const bool skip = p.has_found_inf != 0 && found_inf[0] != 0.0f;
  const real t = steps[i] + (skip ? 0.0f : 1.0f);
  const real rate = p.has_lr != 0 ? lr[0] : gk_wide_real(p.lr);
  steps[i] = float(t);
  coefficients[4 * i] = 1.0f - rate * gk_wide_real(p.weight_decay);
  coefficients[4 * i + 1] = rate / adamw_one_minus_power(t, p.log_beta1);
  coefficients[4 * i + 2] = g_rsqrt(adamw_one_minus_power(t, p.log_beta2));
  const real sign = p.maximize != 0 ? -1.0f : 1.0f;
  coefficients[4 * i + 3] = skip ? 0.0f : (p.has_grad_scale != 0 ? sign / real(grad_scale[0]) : sign);
}

// As torch.maximum: a NaN stays.
G_FN real adamw_larger(real a, real b) { return g_isnan(a) || a > b ? a : b; }

struct adamw_rate { real decay; real size; real inverse_root2; real scale; };
struct adamw_scalars { real b1; real one_minus_b1; real b2; real one_minus_b2; real eps; };
// The step of one element; `largest` is looked at with amsgrad alone. Every sum is a fused one by name: left to the
// compiler, the same element would get other bits in another form of the loop.
G_FN void adamw_element(PRIVREF(real) param, PRIVREF(real) m, PRIVREF(real) v, PRIVREF(real) largest, real grad, adamw_rate r,
                        adamw_scalars k) {
  const real g = grad * r.scale;
  m = g_fma(m, k.b1, g * k.one_minus_b1);
  v = g_fma(v, k.b2, g * g * k.one_minus_b2);
#if ADAMW_AMSGRAD
  largest = adamw_larger(largest, v);
#else
  largest = v;
#endif
  param = g_fma(param, r.decay, -(r.size * m / g_fma(g_sqrt(largest), r.inverse_root2, k.eps)));
}

// One chunk of one tensor; `vec`: every pointer is aligned to four elements.
G_FN void adamw_chunk(DEV(ADAMW_P) param, DEV(const ADAMW_G) grad, DEV(real) m, DEV(real) v, DEV(real) v_max, gk_i64 first,
                      gk_i64 numel, bool vec, adamw_rate r, PREF(adamw_params) p, gk_ctx c) {
  if (r.scale == 0.0f) return;
  adamw_scalars k;
  k.b1 = gk_wide_real(p.beta1);
  k.one_minus_b1 = gk_wide_real(p.one_minus_beta1);
  k.b2 = gk_wide_real(p.beta2);
  k.one_minus_b2 = gk_wide_real(p.one_minus_beta2);
  k.eps = gk_wide_real(p.eps);
  G_UNROLL for (uint u = 0; u < 4; ++u) {
    const gk_i64 i = first + (gk_i64)(u * ADAMW_THREADS + c.tid) * 4;
    if (vec && i + 4 <= numel) {
      const v4 g4 = gk_ld4_once(grad, i), m4 = gk_ld4(m, i), s4 = gk_ld4(v, i), p4 = gk_ld4(param, i);
      const real gg[4] = {g4.x, g4.y, g4.z, g4.w};
      real mm[4] = {m4.x, m4.y, m4.z, m4.w}, vv[4] = {s4.x, s4.y, s4.z, s4.w}, pp[4] = {p4.x, p4.y, p4.z, p4.w};
#if ADAMW_AMSGRAD
      const v4 l4 = gk_ld4(v_max, i);
#else
      const v4 l4 = s4;
#endif
      real largest[4] = {l4.x, l4.y, l4.z, l4.w};
      G_UNROLL for (uint e = 0; e < 4; ++e) adamw_element(pp[e], mm[e], vv[e], largest[e], gg[e], r, k);
      gk_st4(m, i, v4(mm[0], mm[1], mm[2], mm[3]));
      gk_st4(v, i, v4(vv[0], vv[1], vv[2], vv[3]));
      gk_st4(param, i, v4(pp[0], pp[1], pp[2], pp[3]));
#if ADAMW_AMSGRAD
      gk_st4(v_max, i, v4(largest[0], largest[1], largest[2], largest[3]));
#endif
    } else {
      for (uint e = 0; e < 4; ++e) {
        const gk_i64 j = i + e;
        if (j >= numel) break;
        real mm = m[j], vv = v[j], pp = gk_real(param[j]), largest = vv;
#if ADAMW_AMSGRAD
        largest = v_max[j];
#endif
        adamw_element(pp, mm, vv, largest, gk_real(grad[j]), r, k);
        m[j] = mm;
        v[j] = vv;
        param[j] = gk_to<ADAMW_P>(pp);
#if ADAMW_AMSGRAD
        v_max[j] = largest;
#endif
      }
    }
  }
}

#if GK_CUDA
// The addresses travel with the launch (at most 32764 bytes of parameters), so that a captured graph keeps its own copy.
struct adamw_table {
  unsigned long long param[ADAMW_SLOTS], grad[ADAMW_SLOTS], m[ADAMW_SLOTS], v[ADAMW_SLOTS], v_max[ADAMW_SLOTS];
  long long numel[ADAMW_SLOTS];
  uint first_group[ADAMW_SLOTS], vec[ADAMW_SLOTS];
  adamw_params p;
  uint first_tensor;
};
G_KERNEL(adamw_update, ADAMW_THREADS, IN(0, real, coefficients), PARAMS(1, adamw_table, a)) {
  const gk_ctx c = G_CTX();
  uint lo = 0, hi = a.p.slots;  // the last slot whose first group is not after this one
  while (hi - lo > 1) {
    const uint mid = (lo + hi) / 2;
    if (a.first_group[mid] <= c.grp) lo = mid; else hi = mid;
  }
  const real* k = coefficients + 4 * (a.first_tensor + lo);
  const adamw_rate r = {k[0], k[1], k[2], k[3]};
  adamw_chunk((ADAMW_P*)a.param[lo], (const ADAMW_G*)a.grad[lo], (real*)a.m[lo], (real*)a.v[lo], (real*)a.v_max[lo],
              (gk_i64)(c.grp - a.first_group[lo]) * ADAMW_CHUNK, a.numel[lo], a.vec[lo] != 0, r, a.p, c);
}
#else
// Metal binds at most 31 buffers: ADAMW_SLOTS tensors a launch. An unused slot is bound to any buffer.
#if ADAMW_AMSGRAD
#define ADAMW_SLOT(n, a, b, c, d, e) \
  IO(a, ADAMW_P, param##n), IN(b, ADAMW_G, grad##n), IO(c, real, m##n), IO(d, real, v##n), IO(e, real, v_max##n)
#define ADAMW_ARGS                                                                                                 \
  ADAMW_SLOT(0, 0, 1, 2, 3, 4), ADAMW_SLOT(1, 5, 6, 7, 8, 9), ADAMW_SLOT(2, 10, 11, 12, 13, 14),                   \
      ADAMW_SLOT(3, 15, 16, 17, 18, 19), ADAMW_SLOT(4, 20, 21, 22, 23, 24), IN(25, real, coefficients), PARAMS(26, adamw_slots, a)
#define ADAMW_MAX(n) v_max##n
#else
#define ADAMW_SLOT(n, a, b, c, d) IO(a, ADAMW_P, param##n), IN(b, ADAMW_G, grad##n), IO(c, real, m##n), IO(d, real, v##n)
#define ADAMW_ARGS                                                                                                 \
  ADAMW_SLOT(0, 0, 1, 2, 3), ADAMW_SLOT(1, 4, 5, 6, 7), ADAMW_SLOT(2, 8, 9, 10, 11), ADAMW_SLOT(3, 12, 13, 14, 15), \
      ADAMW_SLOT(4, 16, 17, 18, 19), IN(20, real, coefficients), PARAMS(21, adamw_slots, a)
#define ADAMW_MAX(n) v##n
#endif
struct adamw_slots {
  adamw_params p;
  uint first_tensor;
  uint first_group[ADAMW_SLOTS], end_group[ADAMW_SLOTS], numel_lo[ADAMW_SLOTS], numel_hi[ADAMW_SLOTS], vec[ADAMW_SLOTS];
};
#define ADAMW_TRY(s)                                                                                                 \
  if (c.grp >= a.first_group[s] && c.grp < a.end_group[s]) {                                                         \
    const uint k = 4 * (a.first_tensor + s);                                                                         \
    adamw_rate r;                                                                                                    \
    r.decay = coefficients[k];                                                                                       \
    r.size = coefficients[k + 1];                                                                                    \
    r.inverse_root2 = coefficients[k + 2];                                                                           \
    r.scale = coefficients[k + 3];                                                                                   \
    adamw_chunk(param##s, grad##s, m##s, v##s, ADAMW_MAX(s), (gk_i64)(c.grp - a.first_group[s]) * ADAMW_CHUNK,       \
                (gk_i64)a.numel_hi[s] * 4294967296 + a.numel_lo[s], a.vec[s] != 0, r, a.p, c);                       \
  }
G_KERNEL(adamw_update, ADAMW_THREADS, ADAMW_ARGS) {
  const gk_ctx c = G_CTX();
  ADAMW_TRY(0) ADAMW_TRY(1) ADAMW_TRY(2) ADAMW_TRY(3) ADAMW_TRY(4)
}
#endif
