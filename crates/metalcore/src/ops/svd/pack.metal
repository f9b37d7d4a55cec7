// W = A times a power of two, with columns of zeros up to the width; V = I.
#define SVD_NT 1024
G_KERNEL(svd_pack, SVD_NT, IN(0, real, A), OUT(1, real, W), OUT(2, real, V), OUT(3, real, ids), OUT(4, real, scales),
         OUT(5, uint, flags), PARAMS(6, svd_block_params, p)) {
  TG_ARRAY(real, scratch, SVD_NT / 32);
  const gk_ctx c = G_CTX();
  const uint mat = c.grp;
  const gk_i64 a0 = (gk_i64)mat * p.rows * p.cols, w0 = (gk_i64)mat * p.rows * p.width;
  const gk_i64 v0 = (gk_i64)mat * p.cols * p.width;
  real largest = 0.0f, wrong = 0.0f;
  for (uint e = c.tid; e < p.rows * p.cols; e += SVD_NT) {
    const real a = A[a0 + e];
    if (!svd_finite(a)) wrong = 1.0f;
    largest = g_max(largest, g_abs(a));
  }
  wrong = gk_tg_max<SVD_NT>(wrong, scratch, c);
  largest = gk_tg_max<SVD_NT>(largest, scratch, c);
  const svd_scales s = svd_scale(wrong > 0.0f ? real(0.0f) : largest);
  for (uint e = c.tid; e < p.rows * p.width; e += SVD_NT) {
    const uint row = e / p.width, col = e % p.width;
    real x = 0.0f;
    if (col < p.cols) x = A[a0 + (gk_i64)row * p.row_stride + (gk_i64)col * p.col_stride] * s.up * s.more;
    W[w0 + e] = x;
  }
  if (p.vectors != 0) {
    for (uint e = c.tid; e < p.cols * p.width; e += SVD_NT) V[v0 + e] = e / p.width == e % p.width ? 1.0f : 0.0f;
  }
  for (uint e = c.tid; e < p.width; e += SVD_NT) ids[(gk_i64)mat * p.width + e] = real(e);
  for (uint e = c.tid; e <= p.most_sweeps; e += SVD_NT) {
    flags[(gk_i64)mat * (p.most_sweeps + 1) + e] = e == 0 && !(wrong > 0.0f) ? 1u : 0u;
  }
  if (c.tid < 3) scales[(gk_i64)mat * 3 + c.tid] = c.tid == 0 ? s.up : (c.tid == 1 ? s.more : wrong);
}
