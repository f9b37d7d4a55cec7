// Elimination in registers: thread i holds row i, and at step k its register j holds column k + j, so that an update shifts
// as it subtracts. A step publishes the pivot's column before it is divided by the root of the pivot, so that one barrier
// serves a step.
//   CHOLESKY_N     rows there is room for, and threads that work on them
//   CHOLESKY_KEEP  1: the factor is left in threadgroup memory; 0: in device memory
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

// All of them. Row i of A, zero right of the diagonal, is in `a`; columns has room for 2 CHOLESKY_N.
G_FN void cholesky_rows(PRIV(real) a, TG(real) columns, TG(real) tile, DEV(real) L, PRIVREF(cholesky_place) m) {
  const uint quarter = CHOLESKY_N / 4;
  cholesky_steps<CHOLESKY_N>(a, 0, g_minu(m.n, quarter), columns, tile, L, m);
  cholesky_steps<3 * CHOLESKY_N / 4>(a, quarter, g_minu(m.n, 2 * quarter), columns, tile, L, m);
  cholesky_steps<CHOLESKY_N / 2>(a, 2 * quarter, g_minu(m.n, 3 * quarter), columns, tile, L, m);
  cholesky_steps<CHOLESKY_N / 4>(a, 3 * quarter, m.n, columns, tile, L, m);
}
