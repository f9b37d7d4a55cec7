// U, S and V from orthogonal columns W and the rotations V: lengths, order, signs.
#define SVD_NT 1024
#define SVD_MOST 512
G_KERNEL(svd_finish, SVD_NT, IN(0, real, W), IN(1, real, X), IN(2, real, ids), IN(3, real, scales), IN(4, uint, flags),
         OUT(5, real, U), OUT(6, real, S), OUT(7, real, V), OUT(8, uint, info), PARAMS(9, svd_block_params, p)) {
  TG_ARRAY(real, squares, SVD_MOST);
  TG_ARRAY(real, numbers, SVD_MOST);
  TG_ARRAY(real, signs, SVD_MOST);
  TG_ARRAY(uint, ranks, SVD_MOST);
  const gk_ctx c = G_CTX();
  const uint mat = c.grp;
  const gk_i64 w0 = (gk_i64)mat * p.rows * p.width, x0 = (gk_i64)mat * p.cols * p.width, n0 = (gk_i64)mat * p.width;
  const gk_i64 u0 = (gk_i64)mat * p.rows * p.cols, v0 = (gk_i64)mat * p.cols * p.cols;
  const real up = scales[(gk_i64)mat * 3], more = scales[(gk_i64)mat * 3 + 1], wrong = scales[(gk_i64)mat * 3 + 2];
  const bool stuck = flags[(gk_i64)mat * (p.most_sweeps + 1) + p.most_sweeps] != 0, failed = wrong > 0.0f || stuck;
  for (uint col = c.tid; col < p.width; col += SVD_NT) {
    real sum = 0.0f;
    for (uint row = 0; row < p.rows; ++row) {
      const real x = W[w0 + (gk_i64)row * p.width + col];
      sum += x * x;
    }
    const real id = ids[n0 + col];
    numbers[col] = id;
    squares[col] = id < real(p.cols) ? sum : real(-1.0f);
  }
  tg_barrier();
  for (uint col = c.tid; col < p.width; col += SVD_NT) {
    const real square = squares[col], id = numbers[col];
    uint rank = 0, zero = 0;
    for (uint i = 0; i < p.width; ++i) {
      rank += squares[i] > square || (squares[i] == square && numbers[i] < id) ? 1u : 0u;
      zero += squares[i] >= 0.0f && squares[i] <= SVD_TINY ? 1u : 0u;
    }
    ranks[col] = rank;
    if (col == 0) info[mat] = wrong > 0.0f ? SVD_NOT_FINITE : (stuck ? SVD_NOT_CONVERGED : zero);
    real sign = 1.0f;
    if (id < real(p.cols)) {
      const real length = g_sqrt(square);
      S[(gk_i64)mat * p.cols + rank] = failed ? g_nan() : length / up / more;
      real size = -1.0f;
      if (p.vectors != 0) {
        for (uint row = 0; row < (p.swap != 0 ? p.cols : p.rows); ++row) {
          real u;
          if (p.swap != 0) u = X[x0 + (gk_i64)row * p.width + col];
          else u = square > SVD_TINY ? W[w0 + (gk_i64)row * p.width + col] / length : real(0.0f);
          if (g_abs(u) > size) {
            size = g_abs(u);
            sign = u < 0.0f ? -1.0f : 1.0f;
          }
        }
      }
    }
    signs[col] = failed ? g_nan() : sign;
  }
  tg_barrier();
  if (p.vectors == 0) return;
  for (uint e = c.tid; e < p.rows * p.width; e += SVD_NT) {
    const uint row = e / p.width, col = e % p.width;
    const real square = squares[col];
    const real u = square > SVD_TINY ? W[w0 + e] / g_sqrt(square) : real(0.0f);
    if (square >= 0.0f) U[u0 + (gk_i64)row * p.cols + ranks[col]] = u * signs[col];
  }
  for (uint e = c.tid; e < p.cols * p.width; e += SVD_NT) {
    const uint row = e / p.width, col = e % p.width;
    if (squares[col] >= 0.0f) V[v0 + (gk_i64)row * p.cols + ranks[col]] = X[x0 + e] * signs[col];
  }
}
