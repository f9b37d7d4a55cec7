// T = H A H by Householder reflections (LAPACK sytd2), one group for each matrix, A in `work`. The rank-2 update of a step is
// made together with the product of the next one: a step reads and writes the rest of A once.
// Specialised by text: EIGH_T threads, EIGH_S rows at most.
G_KERNEL(eigh_tridiagonal, EIGH_T, IN(0, real, A0), OUT(1, int, info), IO(2, real, work), PARAMS(3, eigh_params, p)) {
  TG_ARRAY(real, v, EIGH_S);
  TG_ARRAY(real, w, EIGH_S);
  TG_ARRAY(real, u, EIGH_S);
  TG_ARRAY(real, y, EIGH_S);
  TG_ARRAY(real, diagonal, EIGH_S);
  TG_ARRAY(real, beside, EIGH_S + 1);
  TG_ARRAY(real, scratch, EIGH_T / 32);
  TG_ARRAY(uint, votes, EIGH_T / 32);
  const gk_ctx c = G_CTX();
  const uint mat = c.grp, t = c.tid, n = p.n, ld = p.lda;
  const gk_i64 a0 = (gk_i64)mat * n * n, base = (gk_i64)mat * p.stride;
  DEV(real) A = work + base;
  DEV(real) V = work + eigh_q(mat, 0, p);
  DEV(real) W = work + eigh_q(mat, 1, p);

  real largest = 0.0f;
  bool bad = false;
  for (uint i = c.sg; i < n; i += EIGH_T / 32) {
    for (uint j = c.lane; j < n; j += 32) {
      const real x = eigh_entry(A0, a0, i, j, p);
      bad = bad || eigh_not_finite(x);
      largest = g_max(largest, g_abs(x));
    }
  }
  largest = gk_tg_max<EIGH_T>(largest, scratch, c);
  bad = gk_tg_any<EIGH_T>(bad, votes, c);
  const real scale = bad ? 1.0f : eigh_scale(largest);
  for (uint i = c.sg; i < n; i += EIGH_T / 32) {
    for (uint j = c.lane; j < ld; j += 32) {
      A[i * ld + j] = bad || j >= n ? 0.0f : eigh_entry(A0, a0, i, j, p) * scale;
      V[i * ld + j] = i == j ? 1.0f : 0.0f;
      W[i * ld + j] = 0.0f;  // merges read between the blocks that they have written
    }
  }
  for (uint i = t; i < EIGH_S; i += EIGH_T) {
    v[i] = 0.0f;
    w[i] = 0.0f;
    u[i] = 0.0f;
    y[i] = 0.0f;
    beside[i] = 0.0f;
  }
  if (t == 0) {
    beside[EIGH_S] = 0.0f;  // read for the last row where n is EIGH_S
    info[mat] = bad ? -1 : 0;
    work[eigh_vector(mat, EIGH_SCALE, p)] = 1.0f / scale;
    work[eigh_vector(mat, EIGH_SCALE, p) + 1] = bad ? 1.0f : 0.0f;
  }
  tg_barrier_dev();

  for (uint k = 0; k < n; ++k) {
    // Row k, which is column k, with the update that is due.
    const real vk = v[k], wk = w[k];
    real squares = 0.0f;
    for (uint i = k + t; i < n; i += EIGH_T) {
      const real x = A[k * ld + i] - v[i] * wk - w[i] * vk;
      y[i] = x;
      if (i > k + 1) squares += x * x;
    }
    squares = gk_tg_sum<EIGH_T>(squares, scratch, c);  // its barriers let all see y
    if (t == 0) diagonal[k] = y[k];
    if (k + 2 >= n) {
      if (t == 0 && k + 1 < n) beside[k + 1] = y[k + 1];
      tg_barrier();
      continue;
    }
    const real alpha = y[k + 1];
    const bool none = squares < EIGH_TINY_SQUARE;
    const real beta = none ? alpha : -g_copysign(g_sqrt(alpha * alpha + squares), alpha);
    const real tau = none ? 0.0f : (beta - alpha) / beta;
    const real inverse = none ? 0.0f : 1.0f / (alpha - beta);
    for (uint i = k + t; i < n; i += EIGH_T) {  // each thread what it read
      const real x = i == k ? 0.0f : (i == k + 1 ? 1.0f : y[i] * inverse);
      u[i] = x;
      A[k * ld + i] = x;
    }
    if (t == 0) {
      beside[k + 1] = beta;
      work[eigh_vector(mat, EIGH_TAU, p) + k] = tau;
    }
    tg_barrier();
    // Four rows of a simd group at a time, four columns of a thread. u is 0 up to column k, and what is before a row's
    // part is a reflector, which must stay.
    const uint first = (k + 1) / 4 * 4;
    for (uint i = k + 1 + 4 * c.sg; i < n; i += EIGH_T / 8) {
      real sums[4];
      G_UNROLL for (uint r = 0; r < 4; ++r) sums[r] = 0.0f;
      for (uint j = first + 4 * c.lane; j < n; j += 128) {
        const v4 vj = gk_tg_ld4(v, j), wj = gk_tg_ld4(w, j), uj = gk_tg_ld4(u, j);
        v4 a[4];
        G_UNROLL for (uint r = 0; r < 4; ++r) {
          if (i + r < n) a[r] = gk_ld4(A, (i + r) * ld + j);
        }
        G_UNROLL for (uint r = 0; r < 4; ++r) {
          if (i + r < n) {
            const real vi = v[i + r], wi = w[i + r];
            a[r].x = g_fma(-wi, vj.x, g_fma(-vi, wj.x, a[r].x));
            a[r].y = g_fma(-wi, vj.y, g_fma(-vi, wj.y, a[r].y));
            a[r].z = g_fma(-wi, vj.z, g_fma(-vi, wj.z, a[r].z));
            a[r].w = g_fma(-wi, vj.w, g_fma(-vi, wj.w, a[r].w));
            gk_st4(A, (i + r) * ld + j, a[r]);
            sums[r] += a[r].x * uj.x + a[r].y * uj.y + (a[r].z * uj.z + a[r].w * uj.w);
          }
        }
      }
      G_UNROLL for (uint r = 0; r < 4; ++r) {
        const real sum = sg_sum(sums[r]);
        if (c.lane == 0 && i + r < n) y[i + r] = tau * sum;
      }
    }
    tg_barrier_dev();
    real product = 0.0f;
    for (uint i = k + 1 + t; i < n; i += EIGH_T) product += y[i] * u[i];
    product = gk_tg_sum<EIGH_T>(product, scratch, c);
    const real factor = 0.5f * tau * product;
    for (uint i = k + 1 + t; i < n; i += EIGH_T) {
      v[i] = u[i];
      w[i] = y[i] - factor * u[i];
    }
    if (t == 0) u[k + 1] = 0.0f;
    tg_barrier();
  }
  // Torn apart at every off-diagonal: |e| is taken from the diagonal on either side.
  for (uint i = t; i < n; i += EIGH_T) {
    work[eigh_vector(mat, EIGH_D, p) + i] = diagonal[i] - g_abs(beside[i]) - g_abs(beside[i + 1]);
    work[eigh_vector(mat, EIGH_E, p) + i] = beside[i + 1];
  }
}
