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
