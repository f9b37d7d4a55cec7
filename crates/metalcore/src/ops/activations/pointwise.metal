// f(x), or f(gate) up, and their derivatives, element by element: a thread takes a chunk.
//   ACT_GATED        1: the gated form
#define ACT_FIRST ((gk_i64)c.grp * ACT_THREADS + c.tid) * ACT_VEC
#define ACT_COUNT ((gk_i64)p.numel_high << 32 | (gk_i64)p.numel_low)

// Where element i of a tensor is whose rows, of p.row_chunks chunks, are `stride` elements apart; 0: contiguous.
G_FN gk_i64 act_place(gk_i64 i, uint stride, PREF(activation_params) p) {
  if (p.row_chunks == 0) return i;
  const uint chunk = (uint)(i / ACT_VEC), row = chunk / p.row_chunks;
  return (gk_i64)row * stride + (chunk - row * p.row_chunks) * ACT_VEC;
}

#if ACT_BACKWARD
template <uint F>
G_FN void act_backward(DEV(const ACT_T) dy, DEV(const ACT_T) x, DEV(const ACT_T) up, DEV(ACT_T) dx, DEV(ACT_T) d_up,
                       PREF(activation_params) p, gk_ctx c) {
  const gk_i64 n = ACT_COUNT, i = ACT_FIRST;
  real d[ACT_VEC], h[ACT_VEC];
#if ACT_GATED
  real u[ACT_VEC];
#endif
  act_load(dy, i, n - i, d);
  act_load(x, act_place(i, p.x_stride, p), n - i, h);
#if ACT_GATED
  act_load(up, act_place(i, p.up_stride, p), n - i, u);
#endif
  G_UNROLL for (uint e = 0; e < ACT_VEC; ++e) {
    real value;
    const real slope = act_slope<F>(h[e], value);
#if ACT_GATED
    h[e] = d[e] * u[e] * slope;
    d[e] = d[e] * value;
#else
    h[e] = d[e] * slope;
#endif
  }
  act_store(dx, i, n - i, h);
#if ACT_GATED
  act_store(d_up, i, n - i, d);
#endif
}
#else
template <uint F>
G_FN void act_forward(DEV(const ACT_T) x, DEV(const ACT_T) up, DEV(ACT_T) y, PREF(activation_params) p, gk_ctx c) {
  const gk_i64 n = ACT_COUNT, i = ACT_FIRST;
  real h[ACT_VEC];
#if ACT_GATED
  real u[ACT_VEC];
#endif
  act_load(x, act_place(i, p.x_stride, p), n - i, h);
#if ACT_GATED
  act_load(up, act_place(i, p.up_stride, p), n - i, u);
#endif
  G_UNROLL for (uint e = 0; e < ACT_VEC; ++e) {
    h[e] = act_value<F>(h[e]);
#if ACT_GATED
    h[e] *= u[e];
#endif
  }
  act_store(y, i, n - i, h);
}
#endif

#if ACT_BACKWARD && ACT_GATED
G_KERNEL(gated_activation_bwd, ACT_THREADS, IN(0, ACT_T, dy), IN(1, ACT_T, x), IN(2, ACT_T, up), OUT(3, ACT_T, dx),
         OUT(4, ACT_T, d_up), PARAMS(5, activation_params, p)) {
  const gk_ctx c = G_CTX();
  ACT_CALL(p.function, act_backward, dy, x, up, dx, d_up, p, c);
}
#elif ACT_BACKWARD
G_KERNEL(activation_bwd, ACT_THREADS, IN(0, ACT_T, dy), IN(1, ACT_T, x), OUT(2, ACT_T, dx),
         PARAMS(3, activation_params, p)) {
  const gk_ctx c = G_CTX();
  ACT_CALL(p.function, act_backward, dy, x, x, dx, dx, p, c);
}
#elif ACT_GATED
G_KERNEL(gated_activation_fwd, ACT_THREADS, IN(0, ACT_T, x), IN(1, ACT_T, up), OUT(2, ACT_T, y),
         PARAMS(3, activation_params, p)) {
  const gk_ctx c = G_CTX();
  ACT_CALL(p.function, act_forward, x, up, y, p, c);
}
#else
G_KERNEL(activation_fwd, ACT_THREADS, IN(0, ACT_T, x), OUT(1, ACT_T, y), PARAMS(2, activation_params, p)) {
  const gk_ctx c = G_CTX();
  ACT_CALL(p.function, act_forward, x, x, y, p, c);
}
#endif
