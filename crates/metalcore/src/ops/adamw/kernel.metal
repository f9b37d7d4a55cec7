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
G_FN real adamw_delta(real m, real v, adamw_rate r, real eps) {
  return r.size * m / (g_sqrt(v) * r.inverse_root2 + eps);
}

// One chunk of one tensor; `vec`: every pointer is aligned to four elements.
G_FN void adamw_chunk(DEV(ADAMW_P) param, DEV(const ADAMW_G) grad, DEV(real) m, DEV(real) v, DEV(real) v_max, gk_i64 first,
                      gk_i64 numel, bool vec, adamw_rate r, PREF(adamw_params) p, gk_ctx c) {
  if (r.scale == 0.0f) return;
  const real one_minus_b1 = gk_wide_real(p.one_minus_beta1), one_minus_b2 = gk_wide_real(p.one_minus_beta2);
  const real b1 = gk_wide_real(p.beta1), b2 = gk_wide_real(p.beta2), eps = gk_wide_real(p.eps);
  G_UNROLL for (uint u = 0; u < 4; ++u) {
    const gk_i64 i = first + (gk_i64)(u * ADAMW_THREADS + c.tid) * 4;
    if (vec && i + 4 <= numel) {
      const v4 g = gk_ld4_once(grad, i) * r.scale;
      const v4 mm = gk_ld4(m, i) * b1 + g * one_minus_b1;
      const v4 vv = gk_ld4(v, i) * b2 + g * g * one_minus_b2;
      gk_st4(m, i, mm);
      gk_st4(v, i, vv);
      v4 root = vv;
#if ADAMW_AMSGRAD
      const v4 seen = gk_ld4(v_max, i);
      root = v4(adamw_larger(seen.x, vv.x), adamw_larger(seen.y, vv.y), adamw_larger(seen.z, vv.z), adamw_larger(seen.w, vv.w));
      gk_st4(v_max, i, root);
#endif
      const v4 d = v4(adamw_delta(mm.x, root.x, r, eps), adamw_delta(mm.y, root.y, r, eps),
                      adamw_delta(mm.z, root.z, r, eps), adamw_delta(mm.w, root.w, r, eps));
      gk_st4(param, i, gk_ld4(param, i) * r.decay - d);
    } else {
      for (uint e = 0; e < 4; ++e) {
        const gk_i64 j = i + e;
        if (j >= numel) break;
        const real g = gk_real(grad[j]) * r.scale;
        const real mm = m[j] * b1 + g * one_minus_b1;
        const real vv = v[j] * b2 + g * g * one_minus_b2;
        m[j] = mm;
        v[j] = vv;
        real root = vv;
#if ADAMW_AMSGRAD
        root = adamw_larger(v_max[j], vv);
        v_max[j] = root;
#endif
        param[j] = gk_to<ADAMW_P>(gk_real(param[j]) * r.decay - adamw_delta(mm, root, r, eps));
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
