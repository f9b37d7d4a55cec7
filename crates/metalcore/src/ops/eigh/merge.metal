// One merge: see conquer.metal. A group has one node, of up to 2 p.part rows, at most EIGH_S; EIGH_T threads.

// The sum and the product over `wide` neighbouring threads, a power of 2 up to 32.
G_FN real eigh_sum(real v, uint wide) {
  for (uint m = 1; m < wide; m *= 2) v += sg_xor(v, m);
  return v;
}
G_FN real eigh_product(real v, uint wide) {
  for (uint m = 1; m < wide; m *= 2) v *= sg_xor(v, m);
  return v;
}

// The secular function 1 / rho + sum z^2 / (d - x) at x = origin + mu, split at pole `split`; by `wide` threads.
struct eigh_secular { real f; real low; real high; real slope_low; real slope_high; };
G_FN eigh_secular eigh_evaluate(TG(const real) pole, TG(const real) z, uint count, uint split, real origin, real mu,
                                real rest, uint part, uint wide) {
  eigh_secular at;
  at.low = 0.0f;
  at.high = 0.0f;
  at.slope_low = 0.0f;
  at.slope_high = 0.0f;
  for (uint i = part; i < count; i += wide) {
    const real quotient = z[i] / ((pole[i] - origin) - mu);
    const real term = z[i] * quotient, slope = quotient * quotient;
    if (i <= split) {
      at.low += term;
      at.slope_low += slope;
    } else {
      at.high += term;
      at.slope_high += slope;
    }
  }
  at.low = eigh_sum(at.low, wide);
  at.high = eigh_sum(at.high, wide);
  at.slope_low = eigh_sum(at.slope_low, wide);
  at.slope_high = eigh_sum(at.slope_high, wide);
  at.f = rest + at.low + at.high;
  return at;
}

// Whether the rotation that makes z of d0 zero couples d0 and d1 by less than the tolerance.
G_FN bool eigh_are_near(real d0, real d1, real z0, real z1, real tolerance) {
  return g_abs((d1 - d0) * z0 * z1) <= tolerance * (z0 * z0 + z1 * z1);
}

struct eigh_root { real origin; real mu; };
// Root j: between poles j and j + 1, or above the last one. By the middle way of Li (LAWN 89) inside a bracket; the roots of
// a simd group go on until all are found.
G_FN eigh_root eigh_solve(TG(const real) pole, TG(const real) z, uint count, uint j, real rho, real norm, uint part,
                          uint wide) {
  const bool is_last = j + 1 == count;
  const real rest = 1.0f / rho;
  // The split is between the two poles whose distances the interpolation keeps.
  const uint split = is_last ? (j == 0 ? 0 : j - 1) : j, other = split + 1 < count ? split + 1 : split;
  eigh_root root;
  root.origin = pole[j];
  real lo = 0.0f, hi = is_last ? rho * norm : 0.5f * (pole[other] - pole[j]);
  real mu = is_last ? 0.5f * hi : hi;
  eigh_secular at = eigh_evaluate(pole, z, count, split, root.origin, mu, rest, part, wide);
  if (!is_last && at.f < 0.0f) {
    root.origin = pole[other];
    lo = -hi;
    mu = lo;
    hi = 0.0f;
  }
  bool done = false;
  for (uint step = 0; step < EIGH_STEPS; ++step) {
    real next = mu;
    if (!done) {
      const real size = rest + g_abs(at.low) + g_abs(at.high);
      done = g_abs(at.f) <= GK_UNIT * size;
    }
    if (!done) {
      if (at.f < 0.0f) lo = mu; else hi = mu;
      next = lo + 0.5f * (hi - lo);
      if (count > 1 && step % 8 != 7) {
        const real near = (pole[split] - root.origin) - mu, far = (pole[other] - root.origin) - mu;
        const real slope = at.slope_low + at.slope_high;
        real k = at.f - near * at.slope_low - far * at.slope_high;
        const real a = (near + far) * at.f - near * far * slope, b = near * far * at.f;
        const real radical = g_sqrt(g_abs(a * a - 4.0f * b * k));
        real eta;
        if (is_last) {
          k = g_abs(k);
          eta = a >= 0.0f ? (a + radical) / (2.0f * k) : 2.0f * b / (a - radical);
        } else {
          eta = a <= 0.0f ? (a - radical) / (2.0f * k) : 2.0f * b / (a + radical);
        }
        if (!(at.f * eta < 0.0f)) eta = -at.f / slope;
        const real guess = mu + eta;
        if (guess > lo && guess < hi) next = guess;
      }
      done = next == mu || !(next > lo && next < hi);
      if (done) next = mu;
    }
    if (sg_all(done)) break;
    mu = next;
    at = eigh_evaluate(pole, z, count, split, root.origin, mu, rest, part, wide);
  }
  root.mu = mu;
  return root;
}

G_KERNEL(eigh_merge, EIGH_T, IO(0, real, work), PARAMS(1, eigh_params, p)) {
  TG_ARRAY(real, d, EIGH_S);         // ascending
  TG_ARRAY(real, z, EIGH_S);
  TG_ARRAY(real, pole, EIGH_S);
  TG_ARRAY(real, weight, EIGH_S);
  TG_ARRAY(real, origin, EIGH_S);
  TG_ARRAY(real, mu, EIGH_S);
  TG_ARRAY(uint, from, EIGH_S);      // the row of each d
  TG_ARRAY(uint, kept, EIGH_S);      // places in d: what takes part from the front, the others from the back
  TG_ARRAY(uint, turned, 2 * EIGH_S);
  TG_ARRAY(uint, counts, 2);
  TG_ARRAY(real, scratch, EIGH_T / 32);
  TG_ARRAY(uint, votes, EIGH_T / 32);
  const gk_ctx c = G_CTX();
  const uint mat = c.grp / p.nodes, b = (c.grp - mat * p.nodes) * 2 * p.part, t = c.tid, ld = p.lda;
  const uint left = p.part, size = p.n - b < 2 * left ? p.n - b : 2 * left;
  const gk_i64 vectors = eigh_vector(mat, 0, p) + b;
  DEV(real) D = work + vectors;
  DEV(real) V = work + (eigh_q(mat, p.old, p) + (gk_i64)b * ld + b);
  if (size <= left) {  // nothing to merge with
    for (uint i = t; i < size; i += EIGH_T) D[EIGH_CODE * p.ldq + i] = real(EIGH_ALONE + i);
    if (t == 0) D[EIGH_COUNT * p.ldq] = 0.0f;
    return;
  }
  const real e = D[EIGH_E * p.ldq + left - 1], rho = 2.0f * g_abs(e);
  const real turn = e < 0.0f ? -1.0f : 1.0f;
  real most = 0.0f;
  for (uint i = t; i < size; i += EIGH_T) {
    pole[i] = D[i];
    const real x = (i < left ? V[i * ld + left - 1] : turn * V[i * ld + left]) * gk_lit(0.70710678118654752);
    weight[i] = x;
    most = g_max(most, g_abs(D[i]));
  }
  const real tolerance = 4.0f * GK_UNIT * gk_tg_max<EIGH_T>(most, scratch, c);
  tg_barrier_dev();
  // Both halves are ascending: the rank is the own place and how many of the other half come before.
  for (uint i = t; i < size; i += EIGH_T) {
    const bool is_left = i < left;
    const real x = pole[i];
    uint lo = is_left ? left : 0, hi = is_left ? size : left;
    const uint start = lo;
    while (lo < hi) {
      const uint mid = (lo + hi) / 2;
      if (is_left ? pole[mid] < x : pole[mid] <= x) lo = mid + 1; else hi = mid;
    }
    const uint rank = (is_left ? i : i - left) + (lo - start);
    d[rank] = x;
    z[rank] = weight[i];
    from[rank] = i;
  }
  tg_barrier();
  // Deflation (LAPACK laed2): a negligible z, or two d so near that a rotation makes one z zero. Where there are none of the
  // second kind, which is a chain, the rest is done side by side.
  for (uint i = t; i < size; i += EIGH_T) turned[i] = rho * g_abs(z[i]) <= tolerance ? 1u : 0u;
  tg_barrier();
  bool near = false;
  for (uint i = t; i < size; i += EIGH_T) {
    uint before = i;
    while (before > 0 && turned[before - 1] != 0) before -= 1;
    if (turned[i] == 0 && before > 0) near = near || eigh_are_near(d[before - 1], d[i], z[before - 1], z[i], tolerance);
  }
  near = gk_tg_any<EIGH_T>(near, votes, c);
  if (!near) {
    for (uint i = t; i < size; i += EIGH_T) {
      uint in = 0;
      for (uint k = 0; k < i; ++k) in += 1 - turned[k];
      if (turned[i] == 0) kept[in] = i; else kept[size - 1 - (i - in)] = i;
      if (i + 1 == size) {
        counts[0] = in + 1 - turned[i];
        counts[1] = 0;
      }
    }
  }
  if (near && t == 0) {
    uint in = 0, out = size, turns = 0, last = size;
    for (uint i = 0; i < size; ++i) {
      if (rho * g_abs(z[i]) <= tolerance) {
        out -= 1;
        kept[out] = i;
        continue;
      }
      if (last < size) {
        const real length = g_sqrt(z[i] * z[i] + z[last] * z[last]);
        const real cosine = z[i] / length, sine = -z[last] / length;
        if (eigh_are_near(d[last], d[i], z[last], z[i], tolerance)) {
          z[i] = length;
          z[last] = 0.0f;
          origin[turns] = cosine;
          mu[turns] = sine;
          turned[2 * turns] = from[last];
          turned[2 * turns + 1] = from[i];
          turns += 1;
          const real x = d[last] * cosine * cosine + d[i] * sine * sine;
          d[i] = d[last] * sine * sine + d[i] * cosine * cosine;
          d[last] = x;
          out -= 1;
          kept[out] = last;
        } else {
          kept[in] = last;
          in += 1;
        }
      }
      last = i;
    }
    if (last < size) {
      kept[in] = last;
      in += 1;
    }
    counts[0] = in;
    counts[1] = turns;
  }
  tg_barrier();
  const uint count = counts[0], turns = counts[1];
  for (uint column = t; column < size; column += EIGH_T) {
    for (uint r = 0; r < turns; ++r) {
      const uint x = turned[2 * r] * ld + column, y = turned[2 * r + 1] * ld + column;
      const real vx = V[x], vy = V[y];
      V[x] = origin[r] * vx + mu[r] * vy;
      V[y] = origin[r] * vy - mu[r] * vx;
    }
  }
  real norm = 0.0f;
  for (uint i = t; i < count; i += EIGH_T) {
    pole[i] = d[kept[i]];
    weight[i] = z[kept[i]];
    norm += weight[i] * weight[i];
  }
  tg_barrier();  // the rotations were read before origin and mu are written
  norm = gk_tg_sum<EIGH_T>(norm, scratch, c);
  // A root has `wide` threads.
  uint wide = 1;
  while (wide < 32 && 2 * wide * count <= EIGH_T) wide *= 2;
  const uint part = t % wide, slots = EIGH_T / wide;
  for (uint first = 0; first < count; first += slots) {
    const uint j = first + t / wide;
    const eigh_root root = eigh_solve(pole, weight, count, j < count ? j : count - 1, rho, norm, part, wide);
    if (j < count && part == 0) {
      origin[j] = root.origin;
      mu[j] = root.mu;
    }
  }
  tg_barrier();
  // The z of which the computed roots are the exact ones.
  for (uint first = 0; first < count; first += slots) {
    const uint i = first + t / wide, own = i < count ? i : count - 1;
    const real x = pole[own];
    real square = part == 0 ? ((origin[count - 1] - x) + mu[count - 1]) / rho : 1.0f;  // rho: no root of a scale
    for (uint j = part; j + 1 < count; j += wide) {
      square *= ((origin[j] - x) + mu[j]) / (pole[j < own ? j : j + 1] - x);
    }
    square = eigh_product(square, wide);
    if (i < count && part == 0) {
      z[i] = rho * g_copysign(g_sqrt(g_abs(square)), weight[i]);  // of the size of differences of d
      D[EIGH_POLE * p.ldq + i] = x;
      D[EIGH_ROW * p.ldq + i] = real(from[kept[i]]);
      D[EIGH_Z * p.ldq + i] = z[i];
    }
  }
  tg_barrier();
  // From here on `weight` has the new eigenvalues: roots, then what was left alone.
  for (uint i = count + t; i < size; i += EIGH_T) weight[i] = d[kept[i]];
  for (uint first = 0; first < count; first += slots) {
    const uint j = first + t / wide, own = j < count ? j : count - 1;
    real squares = 0.0f;
    for (uint i = part; i < count; i += wide) {
      const real x = z[i] / ((pole[i] - origin[own]) - mu[own]);
      squares += x * x;
    }
    squares = eigh_sum(squares, wide);
    if (j < count && part == 0) {
      weight[j] = origin[j] + mu[j];
      D[EIGH_ORIGIN * p.ldq + j] = origin[j];
      D[EIGH_MU * p.ldq + j] = mu[j];
      D[EIGH_INV * p.ldq + j] = 1.0f / g_sqrt(squares);
    }
  }
  tg_barrier_dev();
  for (uint j = t; j < size; j += EIGH_T) {
    const real x = weight[j];
    uint rank = 0;
    for (uint i = 0; i < size; ++i) {
      if (weight[i] < x || (weight[i] == x && i < j)) rank += 1;
    }
    D[rank] = x;
    D[EIGH_CODE * p.ldq + rank] = real(j < count ? j : EIGH_ALONE + from[kept[j]]);
  }
  if (t == 0) D[EIGH_COUNT * p.ldq] = real(count);
}
