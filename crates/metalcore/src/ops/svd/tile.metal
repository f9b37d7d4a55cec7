#define GK_ALLOW_SPILL "128 rows: A and V take all registers of 1024 threads; 76 bytes are cheaper than device memory"
// A whole matrix in registers. A (rows, cols), rows >= cols, is given by its strides; `swap`: it is the transpose of
// the caller's matrix, so that U and V, and the rule of signs, change places.
// The entry of largest magnitude of a column, the first one on a tie: its row, times 2, plus 1 where it is negative.
struct svd_peak { real size; uint key; };
G_FN svd_peak svd_higher(svd_peak a, real size, uint key) {
  if (size > a.size || (size == a.size && key / 2 < a.key / 2)) {
    a.size = size;
    a.key = key;
  }
  return a;
}
G_FN real svd_sign(PRIV(real) u, uint chunk, uint rows, TG(real) sizes, TG(uint) keys, gk_ctx c) {
  svd_peak p;
  p.size = -1.0f;
  p.key = 0;
  G_UNROLL for (uint i = 0; i < SVD_R; ++i) {
    const uint row = chunk * SVD_R + i;
    if (row < rows) p = svd_higher(p, g_abs(u[i]), 2 * row + (u[i] < 0.0f ? 1u : 0u));
  }
  G_UNROLL for (uint m = SVD_PAIRS; m < SVD_SHARED; m *= 2) {
    const real size = sg_xor(p.size, m);
    const uint key = sg_xor(p.key, m);
    p = svd_higher(p, size, key);
  }
#if SVD_WIDE
  tg_barrier();
  if (c.lane < SVD_PAIRS) {
    sizes[svd_slot(c)] = p.size;
    keys[svd_slot(c)] = p.key;
  }
  tg_barrier();
  for (uint i = 0; i < SVD_PARTS; ++i) {
    p = svd_higher(p, sizes[i * SVD_PAIRS + c.tid % SVD_PAIRS], keys[i * SVD_PAIRS + c.tid % SVD_PAIRS]);
  }
#endif
  return (p.key & 1u) != 0 ? -1.0f : 1.0f;
}

G_KERNEL(svd_tile, SVD_NT, IN(0, real, A), OUT(1, real, U), OUT(2, real, S), OUT(3, real, V), OUT(4, uint, info),
         PARAMS(5, svd_tile_params, p)) {
  TG_ARRAY(real, partial, 2 * SVD_PARTIAL);
  TG_ARRAY(real, turns, 3 * SVD_PAIRS);
  TG_ARRAY(real, mail, SVD_MAIL);
  TG_ARRAY(real, squares, SVD_COLS * SVD_MATS);
  TG_ARRAY(uint, keys, SVD_PARTIAL);
  TG_ARRAY(uint, flags, (SVD_NT + 31) / 32);
  const gk_ctx c = G_CTX();
  const uint slot = SVD_MATS == 1 ? 0 : c.tid / SVD_TPM, t = c.tid - slot * SVD_TPM;
  const uint pair = t % SVD_PAIRS, chunk = t / SVD_PAIRS;
  const bool live = SVD_MATS == 1 || c.grp * SVD_MATS + slot < p.batch;
  const uint mat = live ? c.grp * SVD_MATS + slot : p.batch - 1;  // a spare slot repeats the last matrix, and stores nothing
  svd_memory m;
  m.partial = partial;
  m.turns = turns;
  m.mail = mail;

  svd_pair d;
  const gk_i64 a0 = (gk_i64)mat * p.rows * p.cols;
  real largest = 0.0f, wrong = 0.0f;
  d.mx[1] = real(pair);
  d.my[1] = real(pair + SVD_PAIRS);
  G_UNROLL for (uint i = 0; i < SVD_R; ++i) {
    const uint row = chunk * SVD_R + i;
    d.x[i] = row < p.rows && pair < p.cols ? A[a0 + (gk_i64)row * p.row_stride + pair * p.col_stride] : real(0.0f);
    d.y[i] = row < p.rows && pair + SVD_PAIRS < p.cols
                 ? A[a0 + (gk_i64)row * p.row_stride + (pair + SVD_PAIRS) * p.col_stride] : real(0.0f);
    d.vx[i] = row == pair ? 1.0f : 0.0f;
    d.vy[i] = row == pair + SVD_PAIRS ? 1.0f : 0.0f;
    if (!svd_finite(d.x[i]) || !svd_finite(d.y[i])) wrong = 1.0f;
    largest = g_max(largest, g_max(g_abs(d.x[i]), g_abs(d.y[i])));
  }
  wrong = svd_largest(wrong, m, c);
  largest = svd_largest(largest, m, c);
  const svd_scales scale = svd_scale(wrong > 0.0f ? real(0.0f) : largest);
  G_UNROLL for (uint i = 0; i < SVD_R; ++i) {
    d.x[i] = wrong > 0.0f ? real(0.0f) : d.x[i] * scale.up * scale.more;
    d.y[i] = wrong > 0.0f ? real(0.0f) : d.y[i] * scale.up * scale.more;
  }

  const bool vectors = p.vectors != 0;
  bool turned = true;
  for (uint sweep = 0; sweep < p.most_sweeps; ++sweep) {
    turned = svd_sweep(d, svd_tolerance(p.rows, sweep), vectors, false, m, c);
#if SVD_WIDE
    tg_barrier();
#endif
    if (!gk_tg_any<SVD_NT>(turned, flags, c)) break;
  }

  // Order: singular values descend; columns beyond the matrix come last.
  TG(real) mine = squares + slot * SVD_COLS;
  if (chunk == 0) {
    mine[uint(d.mx[1])] = d.mx[1] < real(p.cols) ? d.mx[0] : real(-1.0f);
    mine[uint(d.my[1])] = d.my[1] < real(p.cols) ? d.my[0] : real(-1.0f);
  }
  const real stuck = svd_largest(turned ? 1.0f : 0.0f, m, c);
  tg_barrier();
  uint rank_x = 0, rank_y = 0, zero = 0;
  for (uint i = 0; i < SVD_COLS; ++i) {
    const real o = mine[i];
    rank_x += o > d.mx[0] || (o == d.mx[0] && real(i) < d.mx[1]) ? 1u : 0u;
    rank_y += o > d.my[0] || (o == d.my[0] && real(i) < d.my[1]) ? 1u : 0u;
    zero += o >= 0.0f && o <= SVD_TINY ? 1u : 0u;
  }
  const bool has_x = live && d.mx[1] < real(p.cols), has_y = live && d.my[1] < real(p.cols);
  const bool failed = wrong > 0.0f || stuck > 0.0f;
  const real length_x = g_sqrt(d.mx[0]), length_y = g_sqrt(d.my[0]);
  if (live && t == 0) info[mat] = wrong > 0.0f ? SVD_NOT_FINITE : (stuck > 0.0f ? SVD_NOT_CONVERGED : zero);
  if (chunk == 0) {
    const gk_i64 s0 = (gk_i64)mat * p.cols;
    if (has_x) S[s0 + rank_x] = failed ? g_nan() : length_x / scale.up / scale.more;
    if (has_y) S[s0 + rank_y] = failed ? g_nan() : length_y / scale.up / scale.more;
  }
  if (!vectors) return;
  G_UNROLL for (uint i = 0; i < SVD_R; ++i) {
    d.x[i] = d.mx[0] > SVD_TINY ? d.x[i] / length_x : real(0.0f);
    d.y[i] = d.my[0] > SVD_TINY ? d.y[i] / length_y : real(0.0f);
  }
  real sign_x, sign_y;
  if (p.swap != 0) {
    sign_x = svd_sign(d.vx, chunk, p.cols, partial, keys, c);
    sign_y = svd_sign(d.vy, chunk, p.cols, partial, keys, c);
  } else {
    sign_x = svd_sign(d.x, chunk, p.rows, partial, keys, c);
    sign_y = svd_sign(d.y, chunk, p.rows, partial, keys, c);
  }
  if (failed) sign_x = sign_y = g_nan();
  const gk_i64 u0 = (gk_i64)mat * p.rows * p.cols, v0 = (gk_i64)mat * p.cols * p.cols;
  G_UNROLL for (uint i = 0; i < SVD_R; ++i) {
    const uint row = chunk * SVD_R + i;
    if (row < p.rows) {
      if (has_x) U[u0 + (gk_i64)row * p.cols + rank_x] = d.x[i] * sign_x;
      if (has_y) U[u0 + (gk_i64)row * p.cols + rank_y] = d.y[i] * sign_y;
    }
    if (row < p.cols) {
      if (has_x) V[v0 + (gk_i64)row * p.cols + rank_x] = d.vx[i] * sign_x;
      if (has_y) V[v0 + (gk_i64)row * p.cols + rank_y] = d.vy[i] * sign_y;
    }
  }
}
