// H = I - tau v v', v = (1, x_tail scale), H x = (beta, 0), as LAPACK larfg: beta = -sign(alpha) |x|; a tail of zeros
// leaves x alone (tau 0). Sums of squares are formed on x s, s a power of two that is 1 unless a square could overflow
// or vanish: the result has the same bits wherever both are possible.
#if GK_F64
#define QR_TINY 1e-200
#define QR_HUGE 1e200
#define QR_SMALL 4.909093465297727e-91   // 2^-300
#define QR_LARGE 2.037035976334486e90    // 2^300
#define QR_UP 4.149515568880993e180      // 2^600
#define QR_DOWN 2.409919865102884e-181   // 2^-600
#else
#define QR_TINY 1e-24f
#define QR_HUGE 1e30f
#define QR_SMALL 9.094947017729282e-13f  // 2^-40
#define QR_LARGE 1099511627776.0f        // 2^40
#define QR_UP 1237940039285380274899124224.0f  // 2^90
#define QR_DOWN 8.470329472543003e-22f   // 2^-70
#endif
struct qr_reflector { real beta; real tau; real s; real scale; };

// Whether the sum of squares of the tail, ss, and alpha ask for s != 1 (or are NaN).
G_FN bool qr_unsafe(real ss, real alpha) { return !(ss > QR_TINY && ss + alpha * alpha < QR_HUGE); }
G_FN real qr_scale(real largest) { return largest > QR_LARGE ? QR_DOWN : (largest < QR_SMALL ? QR_UP : 1.0f); }
// From alpha and the sum of squares of the tail times s.
G_FN qr_reflector qr_make(real alpha, real ss, real s, bool zero_tail) {
  const real x = alpha * s;
  const real b = -g_copysign(g_sqrt(x * x + ss), x);
  qr_reflector h;
  h.beta = zero_tail ? alpha : b / s;
  h.tau = zero_tail ? 0.0f : (b - x) / b;
  h.s = s;
  h.scale = zero_tail ? 0.0f : 1.0f / (x - b);
  return h;
}

// A column in registers: it belongs to QR_LANES neighbouring threads (a power of 2 up to 32), which hold QR_R of its rows
// each (a multiple of 4). Rows beyond the matrix are zeros, which reflections leave alone.
G_FN real qr_lane_sum(real v) {
  G_UNROLL for (uint m = 1; m < QR_LANES; m *= 2) v += sg_xor(v, m);
  return v;
}
G_FN real qr_lane_max(real v) {
  G_UNROLL for (uint m = 1; m < QR_LANES; m *= 2) v = g_max(v, sg_xor(v, m));
  return v;
}
// Row of register i in lane l of a column: chunks of four go round the lanes, so that reading v is free of bank conflicts.
#define QR_ROW(i, l) (((i) / 4) * (4 * QR_LANES) + 4 * (l) + (i) % 4)

// The reflector of column k, from the column's own threads; every thread of the simd group takes part.
G_FN qr_reflector qr_reflect(PRIV(real) a, uint k, uint l, gk_ctx c) {
  real alpha = 0.0f, ss = 0.0f;
  G_UNROLL for (uint i = 0; i < QR_R; ++i) {
    const uint row = QR_ROW(i, l);
    alpha = row == k ? a[i] : alpha;
    const real t = row > k ? a[i] : 0.0f;
    ss += t * t;
  }
  ss = qr_lane_sum(ss);
  alpha = sg_shfl(alpha, (c.lane & ~(QR_LANES - 1u)) | ((k / 4) & (QR_LANES - 1u)));
  real s = 1.0f, tail = 1.0f;
  if (sg_any(qr_unsafe(ss, alpha))) {
    tail = 0.0f;
    G_UNROLL for (uint i = 0; i < QR_R; ++i) tail = QR_ROW(i, l) > k ? g_max(tail, g_abs(a[i])) : tail;
    tail = qr_lane_max(tail);
    s = qr_scale(g_max(tail, g_abs(alpha)));
    tail = ss == 0.0f ? tail : 1.0f;  // a NaN is no zero
    ss = 0.0f;
    G_UNROLL for (uint i = 0; i < QR_R; ++i) {
      const real t = QR_ROW(i, l) > k ? a[i] * s : 0.0f;
      ss += t * t;
    }
    ss = qr_lane_sum(ss);
  }
  return qr_make(alpha, ss, s, tail == 0.0f);
}

// x -= tau (v' x) v where `mine`; every thread of the simd group takes part in the product, which is returned.
G_FN real qr_apply(PRIV(real) x, TG(const real) v, real tau, uint l, bool mine) {
  v4 u[QR_R / 4];
  real d0 = 0.0f, d1 = 0.0f;
  G_UNROLL for (uint i = 0; i < QR_R; i += 4) {
    u[i / 4] = gk_tg_ld4(v, QR_ROW(i, l));
    d0 += u[i / 4].x * x[i] + u[i / 4].y * x[i + 1];
    d1 += u[i / 4].z * x[i + 2] + u[i / 4].w * x[i + 3];
  }
  const real product = qr_lane_sum(d0 + d1), d = tau * product;
  if (mine) {
    G_UNROLL for (uint i = 0; i < QR_R; i += 4) {
      x[i] -= d * u[i / 4].x;
      x[i + 1] -= d * u[i / 4].y;
      x[i + 2] -= d * u[i / 4].z;
      x[i + 3] -= d * u[i / 4].w;
    }
  }
  return product;
}
// Makes column k its reflector's: beta on the diagonal, v below it.
G_FN void qr_become(PRIV(real) a, qr_reflector h, uint k, uint l) {
  G_UNROLL for (uint i = 0; i < QR_R; ++i) {
    const uint row = QR_ROW(i, l);
    a[i] = row > k ? a[i] * h.s * h.scale : (row == k ? h.beta : a[i]);
  }
}
// The reflector kept in column k: a below the diagonal, 1 on it.
G_FN void qr_publish(PRIV(real) a, TG(real) v, uint k, uint l) {
  G_UNROLL for (uint i = 0; i < QR_R; i += 4) {
    real u[4];
    G_UNROLL for (uint e = 0; e < 4; ++e) {
      const uint row = QR_ROW(i + e, l);
      u[e] = row > k ? a[i + e] : (row == k ? 1.0f : 0.0f);
    }
    gk_tg_st4(v, QR_ROW(i, l), v4(u[0], u[1], u[2], u[3]));
  }
}

