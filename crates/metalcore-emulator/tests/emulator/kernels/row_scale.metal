// y = x / sqrt(mean(x^2)), a row of x per group: vector loads, a group sum, a tail, three storage types.
#ifndef ROW_THREADS
#define ROW_THREADS 256
#endif
struct row_params { uint rows; uint cols; uint stride; uint vec; float eps; };

// One row.
template <typename T>
G_FN void row_body(DEV(const T) x, DEV(T) y, DEV(float) scale, PREF(row_params) p, TG(float) scratch, gk_ctx c) {
  const gk_i64 row = (gk_i64)c.grp * p.stride;
  const uint vectors = p.vec != 0 ? p.cols / 4 * 4 : 0;
  float sum = 0.0f;
  for (uint i = c.tid * 4; i < vectors; i += ROW_THREADS * 4) {
    const v4 v = gk_ld4(x, row + i);
    sum += v4_dot(v, v);
  }
  for (uint i = vectors + c.tid; i < p.cols; i += ROW_THREADS) {
    const float v = gk_real(x[row + i]);
    sum += v * v;
  }
  sum = gk_tg_sum<ROW_THREADS>(sum, scratch, c);
  const float r = g_rsqrt(sum / float(p.cols) + p.eps);
  if (c.tid == 0) scale[c.grp] = r;
  for (uint i = c.tid * 4; i < vectors; i += ROW_THREADS * 4) gk_st4(y, row + i, gk_ld4(x, row + i) * r);
  for (uint i = vectors + c.tid; i < p.cols; i += ROW_THREADS) y[row + i] = gk_to<T>(gk_real(x[row + i]) * r);
}

#define ROW_KERNEL(T, suffix)                                                                                   \
  G_KERNEL(row_scale_##suffix, ROW_THREADS, IN(0, T, x), OUT(1, T, y), OUT(2, float, scale),                    \
           PARAMS(3, row_params, p)) {                                                                          \
    TG_ARRAY(float, scratch, (ROW_THREADS + 31) / 32);                                                          \
    row_body<T>(x, y, scale, p, scratch, G_CTX());                                                              \
  }
ROW_KERNEL(float, f32)
ROW_KERNEL(half, f16)
ROW_KERNEL(bfloat, bf16)
