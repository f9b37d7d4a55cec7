// Applies the reflectors of a panel to QR_WIDE columns a group: QR_FORM_Q 0: of A, the first reflector first; 1: of Q, the
// last one first. Sixteen threads share a row: each takes QR_TALL reflectors and QR_EACH columns, so that a value that is
// read serves several products (with all reflectors in a thread, reading V took as long again as the arithmetic).
#define QR_THREADS 256
#define QR_WIDE 16
#define QR_EACH 4
#define QR_TALL (QR_COLS / 4)
#define QR_STREAMS (QR_THREADS / 16)
#define QR_SG (QR_THREADS / 32)
#define QR_AHEAD 4  // rows that a thread has under way: they come from the second-level cache, and groups are few

#if QR_FORM_Q
// Q starts as the identity, of which only what reflectors have reached is in memory.
#define QR_FRESH(row, col) (p.last != 0 || (row) < next || (col) < next)
#define QR_READ(row, col) (QR_FRESH(row, col) ? ((row) == (col) ? real(1.0f) : real(0.0f)) : Q[x0 + (gk_i64)(row) * wide + (col)])
#else
#define QR_READ(row, col) (p.first == 0 ? A[x0 + (gk_i64)(row) * wide + (col)] : W[x0 + (gk_i64)(row) * wide + (col)])
#endif
// The reflectors' entries of a row, of the last row beyond it.
#if QR_TALL % 4 == 0
#define QR_READ_V(v, row)                                                                            \
  G_UNROLL for (uint j = 0; j < QR_TALL; j += 4) {                                                   \
    const v4 u = gk_ld4(V, v0 + (gk_i64)g_minu(row, p.rows - 1) * QR_COLS + j);                      \
    v[j] = u.x, v[j + 1] = u.y, v[j + 2] = u.z, v[j + 3] = u.w;                                      \
  }
#else
#define QR_READ_V(v, row) \
  G_UNROLL for (uint j = 0; j < QR_TALL; ++j) v[j] = V[v0 + (gk_i64)g_minu(row, p.rows - 1) * QR_COLS + j];
#endif

#if QR_FORM_Q
G_KERNEL(qr_update, QR_THREADS, IN(0, real, V), IN(1, real, gram), IO(2, real, Q), PARAMS(3, qr_blocked_params, p)) {
#else
G_KERNEL(qr_update, QR_THREADS, IN(0, real, V), IN(1, real, gram), IN(2, real, A), IO(3, real, W), IO(4, real, R),
         PARAMS(5, qr_blocked_params, p)) {
#endif
  TG_ARRAY(real, sums, QR_SG * QR_COLS * QR_WIDE);
  TG_ARRAY(real, products, QR_COLS * QR_COLS);
  const gk_ctx c = G_CTX();
  const uint mat = c.grp / p.blocks, share = c.tid % 16, stream = c.tid / 16;
  const uint tall = share / 4 * QR_TALL, each = share % 4 * QR_EACH, next = p.first + p.width;
#if QR_FORM_Q
  const uint wide = p.q_cols, col = p.first + (c.grp % p.blocks) * QR_WIDE + each;
#else
  const uint wide = p.cols, col = next + (c.grp % p.blocks) * QR_WIDE + each;
#endif
  const gk_i64 x0 = (gk_i64)mat * p.rows * wide, v0 = qr_v_at(mat, 0, p) + tall, g0 = qr_gram_at(mat, p);
  for (uint e = c.tid; e < QR_COLS * QR_COLS; e += QR_THREADS) products[e] = gram[g0 + e];

  real z[QR_TALL * QR_EACH], v[QR_AHEAD][QR_TALL];
  G_UNROLL for (uint n = 0; n < QR_TALL * QR_EACH; ++n) z[n] = 0.0f;
  for (uint base = p.first + stream; base < p.rows; base += QR_AHEAD * QR_STREAMS) {
    real x[QR_AHEAD][QR_EACH];
    G_UNROLL for (uint a = 0; a < QR_AHEAD; ++a) {
      const uint row = base + a * QR_STREAMS;
      G_UNROLL for (uint e = 0; e < QR_EACH; ++e) {
        x[a][e] = 0.0f;
        if (row < p.rows && col + e < wide) x[a][e] = QR_READ(row, col + e);
      }
      QR_READ_V(v[a], row)
    }
    G_UNROLL for (uint a = 0; a < QR_AHEAD; ++a) {
      G_UNROLL for (uint n = 0; n < QR_TALL * QR_EACH; ++n) z[n] += v[a][n / QR_EACH] * x[a][n % QR_EACH];
    }
  }
  G_UNROLL for (uint n = 0; n < QR_TALL * QR_EACH; ++n) {
    const real s = z[n] + sg_xor(z[n], 16);
    if (c.lane < 16) sums[(c.sg * QR_COLS + tall + n / QR_EACH) * QR_WIDE + each + n % QR_EACH] = s;
  }
  tg_barrier();
  for (uint e = c.tid; e < QR_COLS * QR_WIDE; e += QR_THREADS) {
    real s = sums[e];
    G_UNROLL for (uint g = 1; g < QR_SG; ++g) s += sums[g * (QR_COLS * QR_WIDE) + e];
    sums[e] = s;  // read and written by this thread alone
  }
  tg_barrier();

  if (c.tid < QR_WIDE) {
    real y[QR_COLS];
    G_UNROLL for (uint j = 0; j < QR_COLS; ++j) y[j] = sums[j * QR_WIDE + c.tid];
    G_UNROLL for (uint n = 0; n < QR_COLS; ++n) {
      const uint k = QR_FORM_Q ? QR_COLS - 1 - n : n;
      y[k] *= products[k * QR_COLS + k];
      G_UNROLL for (uint j = 0; j < QR_COLS; ++j) {
        if (QR_FORM_Q ? j < k : j > k) y[j] -= products[k * QR_COLS + j] * y[k];
      }
    }
    G_UNROLL for (uint j = 0; j < QR_COLS; ++j) sums[j * QR_WIDE + c.tid] = y[j];
  }
  tg_barrier_dev();  // what was read by four threads is written by one of them

  G_UNROLL for (uint n = 0; n < QR_TALL * QR_EACH; ++n) z[n] = sums[(tall + n / QR_EACH) * QR_WIDE + each + n % QR_EACH];
  // As many turns for every thread: simd groups add up. Of the four threads of the same columns each stores one.
  const uint turns = (p.rows - p.first + QR_AHEAD * QR_STREAMS - 1) / (QR_AHEAD * QR_STREAMS), own = share / 4;
  for (uint n = 0; n < turns; ++n) {
    const uint base = p.first + stream + n * (QR_AHEAD * QR_STREAMS);
    real y[QR_AHEAD];
    G_UNROLL for (uint a = 0; a < QR_AHEAD; ++a) {
      const uint row = base + a * QR_STREAMS;
      y[a] = 0.0f;
      if (row < p.rows && col + own < wide) y[a] = QR_READ(row, col + own);
      QR_READ_V(v[a], row)
    }
    G_UNROLL for (uint a = 0; a < QR_AHEAD; ++a) {
      const uint row = base + a * QR_STREAMS;
      real d[QR_EACH];
      G_UNROLL for (uint e = 0; e < QR_EACH; ++e) d[e] = 0.0f;
      G_UNROLL for (uint i = 0; i < QR_TALL * QR_EACH; ++i) d[i % QR_EACH] += v[a][i / QR_EACH] * z[i];
      G_UNROLL for (uint e = 0; e < QR_EACH; ++e) {
        d[e] += sg_xor(d[e], 4);
        d[e] += sg_xor(d[e], 8);
      }
      y[a] -= own < 2 ? (own == 0 ? d[0] : d[1]) : (own == 2 ? d[2] : d[3]);
      if (row < p.rows && col + own < wide) {
#if QR_FORM_Q
        Q[x0 + (gk_i64)row * wide + col + own] = y[a];
#else
        if (row < next) {
          R[((gk_i64)mat * p.r_rows + row) * wide + col + own] = y[a];
        } else {
          W[x0 + (gk_i64)row * wide + col + own] = y[a];
        }
#endif
      }
    }
  }
}
