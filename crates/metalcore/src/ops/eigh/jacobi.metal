// Two-sided cyclic Jacobi (Golub & Van Loan 8.5.3): in a round the pairs of a tournament are rotated, which are disjoint,
// so that the 2 x 2 blocks of A between two pairs are independent of each other. Rotations have Rutishauser's form,
// x -= s (y + tau x), y += s (x - tau y), whose rounding errors do not drift, and A's diagonal is updated by t a_pq.
// Specialised by text:
//   EIGH_N        rows that a matrix has room for, even
//   EIGH_T        threads of a matrix, 32 unless a group has one
//   EIGH_MATS     matrices of a group
//   EIGH_A_NEAR EIGH_Q_NEAR   1: in threadgroup memory, 0: in device memory, `work`
#define EIGH_LDA (EIGH_N + 1)
#define EIGH_LDQ ((EIGH_N + 3) / 4 * 4 + 4)
#if EIGH_A_NEAR && EIGH_Q_NEAR
#if EIGH_T == 32
#define eigh_sync() sg_barrier()
#else
#define eigh_sync() tg_barrier()
#endif
#else
#define eigh_sync() tg_barrier_dev()
#endif
#if EIGH_A_NEAR
#define EIGH_A_MEMORY TG(real)
#else
#define EIGH_A_MEMORY DEV(real)
#endif
#if EIGH_Q_NEAR
#define EIGH_Q_MEMORY TG(real)
#define eigh_ld4 gk_tg_ld4
#define eigh_st4 gk_tg_st4
#else
#define EIGH_Q_MEMORY DEV(real)
#define eigh_ld4 gk_ld4
#define eigh_st4 gk_st4
#endif
struct eigh_pair { uint p; uint q; };
// Pair i of round r of a tournament of 2 m: every two meet once in 2 m - 1 rounds.
G_FN eigh_pair eigh_meet(uint i, uint r, uint m) {
  const uint last = 2 * m - 1;
  uint a = r + i, b = r + last - i;
  if (a >= last) a -= last;
  if (b >= last) b -= last;
  if (i == 0) b = last;
  eigh_pair pair;
  pair.p = a < b ? a : b;
  pair.q = a < b ? b : a;
  return pair;
}
// Block b of the pairs (i, j), i > j.
G_FN eigh_pair eigh_block(uint b) {
  uint i = uint((1.0f + g_sqrt(8.0f * real(b) + 1.0f)) * 0.5f);
  if (i * (i - 1) / 2 > b) i -= 1;
  if (i * (i + 1) / 2 <= b) i += 1;
  eigh_pair pair;
  pair.p = i;
  pair.q = b - i * (i - 1) / 2;
  return pair;
}
// Place of the entry (i, j) in the lower triangle.
G_FN uint eigh_at(uint i, uint j, uint lda) { return i > j ? i * lda + j : j * lda + i; }

G_KERNEL(eigh_jacobi, EIGH_T * EIGH_MATS, IN(0, real, A0), OUT(1, real, L), OUT(2, real, Q), OUT(3, int, info),
         IO(4, real, work), PARAMS(5, eigh_params, p)) {
#if EIGH_A_NEAR
  TG_ARRAY(real, near_a, EIGH_MATS * EIGH_N * EIGH_LDA);
#endif
#if EIGH_Q_NEAR
  TG_ARRAY(real, near_q, EIGH_MATS * EIGH_N * EIGH_LDQ);
#endif
  TG_ARRAY(real, rotations, EIGH_MATS * 2 * EIGH_N);   // s and tau of each pair, of two rounds
  TG_ARRAY(real, scratch, EIGH_T / 32);
  TG_ARRAY(uint, votes, EIGH_T / 32);
  TG_ARRAY(uint, places, EIGH_MATS * EIGH_N);
  const gk_ctx c = G_CTX();
  const uint slot = EIGH_MATS == 1 ? 0 : c.sg, t = EIGH_MATS == 1 ? c.tid : c.lane;
  const uint mat = c.grp * EIGH_MATS + slot;
  if (EIGH_MATS > 1 && mat >= p.batch) return;
  const uint n = p.n, m = (n + 1) / 2, even = 2 * m;
#if EIGH_A_NEAR
  const uint lda = EIGH_LDA;
  TG(real) A = near_a + slot * (EIGH_N * EIGH_LDA);
#else
  const uint lda = p.lda;
  DEV(real) A = work + (gk_i64)mat * p.stride;
#endif
#if EIGH_Q_NEAR
  const uint ldq = EIGH_LDQ;
  TG(real) V = near_q + slot * (EIGH_N * EIGH_LDQ);   // Q', a row for each eigenvector
#else
  const uint ldq = p.ldq;
  DEV(real) V = work + ((gk_i64)mat * p.stride + p.v0);
#endif
  TG(real) pairs = rotations + slot * (2 * EIGH_N);
  TG(uint) place = places + slot * EIGH_N;

  const gk_i64 a0 = (gk_i64)mat * n * n;
  real largest = 0.0f;
  bool bad = false;
  for (uint e = t; e < even * even; e += EIGH_T) {
    const uint i = e / even, j = e - i * even;
    if (i < j) continue;
    const real x = i < n ? eigh_entry(A0, a0, i, j, p) : 0.0f;
    bad = bad || eigh_not_finite(x);
    largest = g_max(largest, g_abs(x));
    A[i * lda + j] = x;
  }
  largest = gk_tg_max<EIGH_T>(largest, scratch, c);
  bad = gk_tg_any<EIGH_T>(bad, votes, c);
  const real scale = bad ? 0.0f : eigh_scale(largest);
  eigh_sync();
  for (uint e = t; e < even * even; e += EIGH_T) {
    const uint i = e / even, j = e - i * even;
    if (i >= j) A[i * lda + j] = bad ? 0.0f : A[i * lda + j] * scale;
  }
  const uint quads = g_maxu((n + 3) / 4, 1);
  if (p.vectors != 0) {
    for (uint e = t; e < even * ldq; e += EIGH_T) {
      const uint i = e / ldq, j = e - i * ldq;
      V[e] = i == j ? 1.0f : 0.0f;
    }
  }
  eigh_sync();

  // Entries below `least` are within the error of the result, and those below `nothing` are not rotated.
  const real least = 0.25f * GK_UNIT * (largest * scale), nothing = 0.03125f * GK_UNIT * (largest * scale);
  const uint blocks = m * (m - 1) / 2;
  const eigh_pair own = eigh_block(t < blocks ? t : 0);
  const uint own_i = t / quads, own_k = 4 * (t - own_i * quads);
  const uint t_row = t / 8, t_col = t % 8, rows_by = EIGH_T / 8;
  bool done = bad;
  uint parity = 0;
  for (uint sweep = 0; sweep < EIGH_SWEEPS && !done; ++sweep) {
    real most = 0.0f;
    for (uint i = t_row; i < n; i += rows_by) {
      for (uint j = t_col; j < i; j += 8) most = g_max(most, g_abs(A[i * lda + j]));
    }
    most = gk_tg_max<EIGH_T>(most, scratch, c);
    eigh_sync();
    done = most <= least;
    if (done) break;
    // One round more: the rotations of a round reach V in the next.
    for (uint r = 0; r < even; ++r) {
      TG(real) now = pairs + parity * EIGH_N;
      TG(real) before = pairs + (1 - parity) * EIGH_N;
      if (r + 1 < even) {
        for (uint i = t; i < m; i += EIGH_T) {
          const eigh_pair x = eigh_meet(i, r, m);
          const real app = A[x.p * lda + x.p], aqq = A[x.q * lda + x.q], apq = A[x.q * lda + x.p];
          real s = 0.0f, tau = 0.0f;
          if (g_abs(apq) > nothing) {
            const gk_turn turn = gk_turn_of(aqq - app, apq + apq);
            s = turn.s;
            tau = turn.tau;
            A[x.p * lda + x.p] = app - turn.t * apq;
            A[x.q * lda + x.q] = aqq + turn.t * apq;
            A[x.q * lda + x.p] = 0.0f;
          }
          now[2 * i] = s;
          now[2 * i + 1] = tau;
        }
      }
      if (r > 0 && p.vectors != 0) {
        uint i = own_i, k = own_k;
        for (uint e = t; e < m * quads; e += EIGH_T) {
          if (e != t) {
            i = e / quads;
            k = 4 * (e - i * quads);
          }
          const real s = before[2 * i], tau = before[2 * i + 1];
          if (s == 0.0f) continue;
          const eigh_pair pair = eigh_meet(i, r - 1, m);
          const v4 x = eigh_ld4(V, pair.p * ldq + k), y = eigh_ld4(V, pair.q * ldq + k);
          eigh_st4(V, pair.p * ldq + k,
                   v4(x.x - s * (y.x + tau * x.x), x.y - s * (y.y + tau * x.y), x.z - s * (y.z + tau * x.z),
                      x.w - s * (y.w + tau * x.w)));
          eigh_st4(V, pair.q * ldq + k,
                   v4(y.x + s * (x.x - tau * y.x), y.y + s * (x.y - tau * y.y), y.z + s * (x.z - tau * y.z),
                      y.w + s * (x.w - tau * y.w)));
        }
      }
      eigh_sync();
      if (r + 1 < even) {
        eigh_pair ij = own;
        for (uint b = t; b < blocks; b += EIGH_T) {
          if (b != t) ij = eigh_block(b);
          const real si = now[2 * ij.p], ti = now[2 * ij.p + 1], sj = now[2 * ij.q], tj = now[2 * ij.q + 1];
          if (si == 0.0f && sj == 0.0f) continue;
          const eigh_pair x = eigh_meet(ij.p, r, m), y = eigh_meet(ij.q, r, m);
          const uint pp = eigh_at(x.p, y.p, lda), pq = eigh_at(x.p, y.q, lda);
          const uint qp = eigh_at(x.q, y.p, lda), qq = eigh_at(x.q, y.q, lda);
          const real app = A[pp], apq = A[pq], aqp = A[qp], aqq = A[qq];
          const real bpp = app - sj * (apq + tj * app), bpq = apq + sj * (app - tj * apq);
          const real bqp = aqp - sj * (aqq + tj * aqp), bqq = aqq + sj * (aqp - tj * aqq);
          A[pp] = bpp - si * (bqp + ti * bpp);
          A[qp] = bqp + si * (bpp - ti * bqp);
          A[pq] = bpq - si * (bqq + ti * bpq);
          A[qq] = bqq + si * (bpq - ti * bqq);
        }
        parity = 1 - parity;
      }
      eigh_sync();
    }
  }
  const bool failed = bad || !done;
  if (t == 0) info[mat] = bad ? -1 : (done ? 0 : 1);

  // Ascending, by counting.
  const real unscale = bad ? 1.0f : 1.0f / scale;
  for (uint j = t; j < n; j += EIGH_T) {
    const real d = A[j * lda + j];
    uint rank = 0;
    for (uint i = 0; i < n; ++i) {
      const real other = A[i * lda + i];
      if (other < d || (other == d && i < j)) rank += 1;
    }
    L[(gk_i64)mat * n + rank] = failed ? g_nan() : d * unscale;
    place[rank] = j;
  }
  if (p.vectors == 0) return;
  eigh_sync();
  // The sign of a column makes its largest entry, the first of equals, positive.
  for (uint column = EIGH_T == 32 ? 0 : c.sg; column < n; column += EIGH_T / 32) {
    const uint from = place[column] * ldq;
    real size = 0.0f, signed_size = 0.0f;
    uint row = n;
    for (uint i = c.lane; i < n; i += 32) {
      const real x = V[from + i];
      if (g_abs(x) > size) {
        size = g_abs(x);
        signed_size = x;
        row = i;
      }
    }
    const real top = sg_max(size);
    const uint first = sg_min(size == top ? row : n);
    const bool negative = sg_any(row == first && signed_size < 0.0f);
    if (c.lane == 0) pairs[column] = failed ? g_nan() : (negative ? -1.0f : 1.0f);
  }
  eigh_sync();
  for (uint e = t; e < n * n; e += EIGH_T) {
    const uint i = e / n, j = e - i * n;
    Q[a0 + e] = V[place[j] * ldq + i] * pairs[j];
  }
}
