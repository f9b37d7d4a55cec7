// Batched Cholesky with a matrix in registers, a row a thread (steps.metal). Specialised by text:
//   CHOLESKY_MATS  matrices per threadgroup (1 unless a matrix takes at most one simd group)
//   CHOLESKY_KEEP  1: the matrix passes through threadgroup memory, so that device memory is read and written by rows
G_KERNEL(cholesky_tile, CHOLESKY_N * CHOLESKY_MATS, IN(0, real, A), OUT(1, real, L), OUT(2, int, info),
         PARAMS(3, cholesky_params, p)) {
  TG_ARRAY(real, columns, CHOLESKY_MATS * 2 * CHOLESKY_N);
  TG_ARRAY(real, tiles, CHOLESKY_KEEP ? CHOLESKY_MATS * CHOLESKY_N * CHOLESKY_PITCH : 1);
  const gk_ctx c = G_CTX();
  const uint slot = c.tid / CHOLESKY_N, n = p.n, i = c.tid % CHOLESKY_N;
  const bool live = c.grp * CHOLESKY_MATS + slot < p.batch;
  const uint mat = live ? c.grp * CHOLESKY_MATS + slot : p.batch - 1;  // a spare slot repeats the last, and stores nothing
  cholesky_place m;
  m.i = i, m.n = n, m.bad = 0, m.upper = p.upper != 0, m.at = (gk_i64)mat * n * n;
  TG(real) column = columns + slot * (2 * CHOLESKY_N);
  TG(real) tile = tiles + (CHOLESKY_KEEP ? slot * (CHOLESKY_N * CHOLESKY_PITCH) : 0);
  real a[CHOLESKY_N];
#if CHOLESKY_KEEP
  G_UNROLL for (uint row = 0; row < CHOLESKY_N; ++row) {
    tile[row * CHOLESKY_PITCH + i] = row < n && i < n ? A[m.at + (gk_i64)row * n + i] : real(0.0f);
  }
  cholesky_sync();
  G_UNROLL for (uint j = 0; j < CHOLESKY_N; ++j) {
    const real x = m.upper ? tile[j * CHOLESKY_PITCH + i] : tile[i * CHOLESKY_PITCH + j];
    a[j] = j <= i ? x : real(0.0f);
  }
  cholesky_sync();
#else
  const uint right = m.upper ? n : 1;
  gk_i64 next = m.at + (m.upper ? i : i * n);  // one address, moved on: as many as columns would take registers
  G_UNROLL for (uint j = 0; j < CHOLESKY_N; ++j) {
    a[j] = 0.0f;
    if (j <= i && i < n) a[j] = A[next];
    next += right;
  }
#endif
  cholesky_rows(a, column, tile, L, m);
  if (live && i == 0) info[mat] = int(m.bad);
#if CHOLESKY_KEEP
  cholesky_sync();
  if (live && i < n) {
    for (uint row = 0; row < n; ++row) {
      L[m.at + (gk_i64)row * n + i] = m.upper ? tile[i * CHOLESKY_PITCH + row] : tile[row * CHOLESKY_PITCH + i];
    }
  }
#endif
}
