// One-sided Jacobi (Hestenes): the columns of W are rotated in pairs until all are orthogonal, and V with them.
// A pair of columns belongs to SVD_CHUNKS threads, which hold SVD_R of its rows each, of W and of V; neighbouring threads
// hold neighbouring pairs. Sweeps follow a hypercube: the second columns of SVD_PAIRS pairs visit all first columns, one bit of the
// pair's number changing from round to round (Gray code), so that half of the columns stay and half move by one
// exchange between lanes; then first columns meet among themselves, and second ones, in groups of half the size.
//   SVD_PAIRS   pairs of columns, a power of 2 from 4 to 64
//   SVD_CHUNKS  threads of a pair, a power of 2
//   SVD_R       rows of a thread, a multiple of 4
//   SVD_MATS    matrices per threadgroup (1 unless a matrix takes less than a simd group)
#define SVD_COLS (2 * SVD_PAIRS)
#define SVD_TPM (SVD_PAIRS * SVD_CHUNKS)
#define SVD_NT (SVD_TPM * SVD_MATS)
#define SVD_WIDE (SVD_TPM > 32)              // sums go through threadgroup memory
#define SVD_SHARED (SVD_TPM < 32 ? SVD_TPM : 32)
#define SVD_PARTS (SVD_PAIRS < 32 ? SVD_NT / 32 : SVD_CHUNKS)  // partial sums of a column
#define SVD_PARTIAL (SVD_WIDE ? SVD_PARTS * SVD_PAIRS : 1)
#define SVD_LEADERS (SVD_PARTS > 8)          // one thread of a pair adds up and finds the angle
#define SVD_HEADS (SVD_PAIRS < 32 ? 32 : SVD_PAIRS)
#define SVD_MAIL (SVD_PAIRS > 32 ? 4 * SVD_NT : 1)

// A rotation: x' = x - s (y + tau x), y' = y + s (x - tau y) (Rutishauser), |x'|^2 = |x|^2 - shift.
struct svd_turn { real s; real tau; real shift; };
// Threadgroup memory of the group.
struct svd_memory { TG(real) partial; TG(real) turns; TG(real) mail; };

G_FN svd_turn svd_angle(real a, real b, real g, real tol) {
  svd_turn r;
  r.s = r.tau = r.shift = 0.0f;
  if (a > SVD_TINY && b > SVD_TINY && g * g > tol * tol * a * b) {
    const gk_turn turn = gk_turn_of(b - a, g + g);
    r.s = turn.s;
    r.tau = turn.tau;
    r.shift = turn.t * g;
  }
  return r;
}
// Cosines up to here count as zero. Columns of a condition near 1 / u come to rest at the tolerance, all alike, so that U is
// as far from orthonormal; what rounding keeps from coming down is let be in the end.
G_FN real svd_tolerance(uint rows, uint sweep) {
  return (sweep < 24 ? 1.0f : 4.0f) * (1.0f + 0.125f * g_sqrt(real(rows))) * GK_UNIT;
}

// Over the threads of a pair that are in the same simd group.
G_FN real svd_near(real v) {
  G_UNROLL for (uint m = SVD_PAIRS; m < SVD_SHARED; m *= 2) v += sg_xor(v, m);
  return v;
}
G_FN uint svd_slot(gk_ctx c) { return SVD_PAIRS < 32 ? c.sg * SVD_PAIRS + c.lane : c.tid; }
// The sum over the threads of a pair. `side` alternates from call to call.
G_FN real svd_sum(real v, svd_memory m, uint side, gk_ctx c) {
  v = svd_near(v);
#if SVD_WIDE
  TG(real) partial = m.partial + side * SVD_PARTIAL;
  if (c.lane < SVD_PAIRS) partial[svd_slot(c)] = v;
  tg_barrier();
  v = 0.0f;
  G_UNROLL for (uint i = 0; i < SVD_PARTS; ++i) v += partial[i * SVD_PAIRS + c.tid % SVD_PAIRS];
#endif
  return v;
}
// The largest over the threads of a matrix; a barrier comes before other use of the memory.
G_FN real svd_largest(real v, svd_memory m, gk_ctx c) {
  G_UNROLL for (uint k = 1; k < SVD_SHARED; k *= 2) v = g_max(v, sg_xor(v, k));
#if SVD_WIDE
  tg_barrier();
  if (c.lane == 0) m.partial[c.sg] = v;
  tg_barrier();
  G_UNROLL for (uint i = 0; i < SVD_NT / 32; ++i) v = g_max(v, m.partial[i]);
  tg_barrier();
#endif
  return v;
}

// Values of the pair whose number differs by `mask`.
template <uint N> G_FN void svd_move(PRIV(real) v, uint mask, svd_memory m, gk_ctx c) {
#if SVD_PAIRS > 32
  if (mask >= 32) {
    G_UNROLL for (uint i = 0; i < N; i += 4) {
      tg_barrier();
      G_UNROLL for (uint e = i; e < i + 4 && e < N; ++e) m.mail[(e - i) * SVD_NT + c.tid] = v[e];
      tg_barrier();
      G_UNROLL for (uint e = i; e < i + 4 && e < N; ++e) v[e] = m.mail[(e - i) * SVD_NT + (c.tid ^ mask)];
    }
    return;
  }
#endif
  G_UNROLL for (uint e = 0; e < N; ++e) v[e] = sg_xor(v[e], mask);
}
template <uint N> G_FN void svd_regroup(PRIV(real) x, PRIV(real) y, uint mask, bool low, svd_memory m, gk_ctx c) {
  real sent[N];
  G_UNROLL for (uint e = 0; e < N; ++e) sent[e] = low ? y[e] : x[e];
  svd_move<N>(sent, mask, m, c);
  G_UNROLL for (uint e = 0; e < N; ++e) {
    x[e] = low ? x[e] : sent[e];
    y[e] = low ? sent[e] : y[e];
  }
}

// A thread's part of both columns of its pair.
struct svd_pair {
  real x[SVD_R]; real y[SVD_R];      // of W
  real vx[SVD_R]; real vy[SVD_R];    // of V
  real mx[2]; real my[2];            // squared norms; numbers in the matrix
};

G_FN void svd_norms(PRIVREF(svd_pair) d, svd_memory m, gk_ctx c) {
  real a = 0.0f, b = 0.0f;
  G_UNROLL for (uint i = 0; i < SVD_R; ++i) {
    a += d.x[i] * d.x[i];
    b += d.y[i] * d.y[i];
  }
  d.mx[0] = svd_sum(a, m, 0, c);
  d.my[0] = svd_sum(b, m, 1, c);
#if SVD_WIDE
  tg_barrier();
#endif
}

// Rotates every pair once. Whether this thread's was not orthogonal.
G_FN bool svd_round(PRIVREF(svd_pair) d, real tol, bool vectors, svd_memory m, uint side, gk_ctx c) {
  real g0 = 0.0f, g1 = 0.0f;
  G_UNROLL for (uint i = 0; i < SVD_R; i += 2) {
    g0 += d.x[i] * d.y[i];
    g1 += d.x[i + 1] * d.y[i + 1];
  }
#if SVD_LEADERS
  const real near = svd_near(g0 + g1);
  const uint pair = c.tid % SVD_PAIRS;
  if (c.lane < SVD_PAIRS) m.partial[svd_slot(c)] = near;
  tg_barrier();
  if (c.tid < SVD_HEADS) {
    real g = 0.0f;
    G_UNROLL for (uint i = 0; i < SVD_PARTS * SVD_PAIRS; i += SVD_HEADS) g += m.partial[i + c.tid];
    const svd_turn r = svd_angle(d.mx[0], d.my[0], svd_near(g), tol);
    if (c.tid < SVD_PAIRS) {
      m.turns[pair] = r.s;
      m.turns[SVD_PAIRS + pair] = r.tau;
      m.turns[2 * SVD_PAIRS + pair] = r.shift;
    }
  }
  tg_barrier();
  svd_turn r;
  r.s = m.turns[pair];
  r.tau = m.turns[SVD_PAIRS + pair];
  r.shift = m.turns[2 * SVD_PAIRS + pair];
#else
  const svd_turn r = svd_angle(d.mx[0], d.my[0], svd_sum(g0 + g1, m, side, c), tol);
#endif
  const bool turned = r.s != 0.0f;
  if (sg_any(turned)) {
    // Rounding leaves a norm positive: its column is measured anew before the next sweep.
    d.mx[0] = turned ? g_max(d.mx[0] - r.shift, d.mx[0] * GK_UNIT) : d.mx[0];
    d.my[0] = turned ? g_max(d.my[0] + r.shift, d.my[0] * GK_UNIT) : d.my[0];
    G_UNROLL for (uint i = 0; i < SVD_R; ++i) {
      const real x = d.x[i], y = d.y[i];
      d.x[i] = x - r.s * (y + r.tau * x);
      d.y[i] = y + r.s * (x - r.tau * y);
    }
    if (vectors) {
      G_UNROLL for (uint i = 0; i < SVD_R; ++i) {
        const real x = d.vx[i], y = d.vy[i];
        d.vx[i] = x - r.s * (y + r.tau * x);
        d.vy[i] = y + r.s * (x - r.tau * y);
      }
    }
  }
  return turned;
}

// All pairs of columns once; of first and second columns alone where `across`. Whether a pair of this thread was rotated.
G_FN bool svd_sweep(PRIVREF(svd_pair) d, real tol, bool vectors, bool across, svd_memory m, gk_ctx c) {
  const uint pair = c.tid % SVD_PAIRS;
  bool turned = false;
  uint side = 0;
  svd_norms(d, m, c);
  for (uint span = SVD_PAIRS; span > 0; span /= 2) {
    for (uint r = 1; r <= span; ++r) {
      if (svd_round(d, tol, vectors, m, side, c)) turned = true;
      side = 1 - side;
      const uint mask = r & (0u - r);
      if (r < span) {
        svd_move<SVD_R>(d.y, mask, m, c);
        if (vectors) svd_move<SVD_R>(d.vy, mask, m, c);
        svd_move<2>(d.my, mask, m, c);
      }
    }
    if (across) break;
    if (span > 1) {
      const uint mask = span / 2;
      const bool low = (pair & mask) == 0;
      svd_regroup<SVD_R>(d.x, d.y, mask, low, m, c);
      if (vectors) svd_regroup<SVD_R>(d.vx, d.vy, mask, low, m, c);
      svd_regroup<2>(d.mx, d.my, mask, low, m, c);
    }
  }
  return turned;
}
