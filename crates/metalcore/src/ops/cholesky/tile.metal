// Batched Cholesky with a matrix in registers: thread i of a matrix holds row i, and at step k its register j holds column
// k + j, so that an update shifts as it subtracts. Steps divide the pivot's column by the square root of the pivot; the
// column before that division is published, so that one barrier serves a step. Specialised by text:
//   CHOLESKY_N     rows a matrix has room for, and threads that work on it
//   CHOLESKY_MATS  matrices per threadgroup (1 unless a matrix takes at most one simd group)
//   CHOLESKY_KEEP  1: the matrix passes through threadgroup memory, so that device memory is read and written by rows
#define CHOLESKY_PITCH (CHOLESKY_N + 1)
#if CHOLESKY_N <= 32
#define cholesky_sync() sg_barrier()
#else
#define cholesky_sync() tg_barrier()
#endif
struct cholesky_place { uint i; uint n; uint bad; bool upper; gk_i64 at; };

// The steps from..to - 1, at most CHOLESKY_N - W before the last column: W columns are left.
template <uint W>
G_FN void cholesky_steps(PRIV(real) a, uint from, uint to, TG(real) columns, TG(real) tile, DEV(real) L,
                         PRIVREF(cholesky_place) m) {
  for (uint k = from; k < to; ++k) {
    TG(real) column = columns + (k & 1u) * CHOLESKY_N;
    column[m.i >= k ? m.i - k : m.i + CHOLESKY_N - k] = a[0];
    cholesky_sync();
    const real d = column[0], root = g_sqrt(d), inverse = real(1.0f) / root, l = a[0] * inverse, w = l * inverse;
    if (!(d > 0.0f) && m.bad == 0) m.bad = k + 1;
    const real value = m.i > k ? l : (m.i == k ? root : real(0.0f));
#if CHOLESKY_KEEP
    tile[m.i * CHOLESKY_PITCH + k] = value;
#else
    if (m.i < m.n) L[m.at + (m.upper ? (gk_i64)k * m.n + m.i : (gk_i64)m.i * m.n + k)] = value;
#endif
    G_UNROLL for (uint j = 0; j < W; j += 4) {
      const v4 u = gk_tg_ld4(column, j);
      if (j > 0) a[j - 1] = g_fma(-w, u.x, a[j]);
      a[j] = g_fma(-w, u.y, a[j + 1]);
      a[j + 1] = g_fma(-w, u.z, a[j + 2]);
      a[j + 2] = g_fma(-w, u.w, a[j + 3]);
    }
  }
}

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
  G_UNROLL for (uint j = 0; j < CHOLESKY_N; ++j) {
    a[j] = 0.0f;
    if (j <= i && i < n) a[j] = A[m.at + (m.upper ? (gk_i64)j * n + i : (gk_i64)i * n + j)];
  }
#endif
  const uint quarter = CHOLESKY_N / 4;
  cholesky_steps<CHOLESKY_N>(a, 0, g_minu(n, quarter), column, tile, L, m);
  cholesky_steps<3 * CHOLESKY_N / 4>(a, quarter, g_minu(n, 2 * quarter), column, tile, L, m);
  cholesky_steps<CHOLESKY_N / 2>(a, 2 * quarter, g_minu(n, 3 * quarter), column, tile, L, m);
  cholesky_steps<CHOLESKY_N / 4>(a, 3 * quarter, n, column, tile, L, m);
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
