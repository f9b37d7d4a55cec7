// One bag and one tile of columns a group: `slots` of threads take an entry each, 2^lane_bits threads the columns of a
// tile. A slot adds its entries in order, in blocks; slots are added as a tree. A bag with an index outside the weight is
// NaN. BAG_MAX 1: the largest element of each column and its entry, the first of equals; a NaN is larger than all.
#define BAG_AHEAD 4

#if BAG_MAX
G_FN bool bag_better(real x, uint at, real best, uint held) {
  if (at == BAG_NONE || held == BAG_NONE) return held == BAG_NONE;
  if (g_isnan(x) || g_isnan(best)) return g_isnan(x) && (!g_isnan(best) || at < held);
  return x > best || (x == best && at < held);
}
G_KERNEL(embedding_bag_max, ROW_THREADS, IN(0, ROW_T, weight), IN(1, uint, indices), IN(2, uint, offsets),
         IN(3, ROW_T, samples), OUT(4, ROW_T, y), OUT(5, real, scale), OUT(6, uint, largest),
         PARAMS(7, embedding_bag_params, p)) {
  TG_ARRAY(uint, places, ROW_THREADS * ROW_VEC);
#else
G_KERNEL(embedding_bag_fwd, ROW_THREADS, IN(0, ROW_T, weight), IN(1, uint, indices), IN(2, uint, offsets),
         IN(3, ROW_T, samples), OUT(4, ROW_T, y), OUT(5, real, scale), PARAMS(6, embedding_bag_params, p)) {
  TG_ARRAY(real, factors, ROW_THREADS);
#endif
  TG_ARRAY(uint, rows, ROW_THREADS);
  TG_ARRAY(real, parts, ROW_THREADS * ROW_VEC);
  TG_ARRAY(real, scratch, ROW_THREADS / 32);
  TG_ARRAY(uint, flags, ROW_THREADS / 32);
  const gk_ctx c = G_CTX();
  const uint bag = c.grp / p.tiles;
  const uint lanes = 1u << p.lane_bits;
  const uint slots = ROW_THREADS >> p.lane_bits;
  const uint slot = c.tid >> p.lane_bits;
  const uint column = (c.grp % p.tiles * lanes + (c.tid & (lanes - 1))) * ROW_VEC;
  const bool inside = column < p.cols;
  const uint begin = bag_begin(offsets, bag, p);
  const uint end = g_maxu(begin, bag_begin(offsets, bag + 1, p));
  real total[ROW_VEC];
  G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) total[i] = 0.0f;
#if BAG_MAX
  uint held[ROW_VEC];
  G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) held[i] = BAG_NONE;
#else
  real lost[ROW_VEC];
  G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) lost[i] = 0.0f;
#endif
  real counted = 0.0f;
  bool bad = false;
  for (uint first = begin; first < end; first += ROW_THREADS) {
    const uint n = g_minu(end - first, ROW_THREADS);
    if (c.tid < n) {
      uint row = bag_row(indices, first + c.tid, p);
      bad = bad || row == BAG_NONE;
      if (row == p.padding) row = BAG_NONE;
      if (row != BAG_NONE) counted += real(1.0f);
      rows[c.tid] = row;
#if !BAG_MAX
      factors[c.tid] = p.weighted != 0 ? gk_real(samples[first + c.tid]) : real(1.0f);
#endif
    }
    tg_barrier();
#if !BAG_MAX
    real sum[ROW_VEC];
    G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) sum[i] = 0.0f;
#endif
    for (uint entry = slot; entry < n; entry += BAG_AHEAD * slots) {
      row_chunk chunks[BAG_AHEAD];
      bool there[BAG_AHEAD];
      G_UNROLL for (uint k = 0; k < BAG_AHEAD; ++k) {
        const uint at = entry + k * slots;
        there[k] = false;
        if (inside && at < n) {
          const uint row = rows[at];
          there[k] = row != BAG_NONE;
          if (there[k]) row_hold(weight, gk_i64(row) * p.cols + column, chunks[k]);
        }
      }
      G_UNROLL for (uint k = 0; k < BAG_AHEAD; ++k) {
        if (there[k]) {
          const uint at = entry + k * slots;
          real x[ROW_VEC];
          row_open(chunks[k], x);
#if BAG_MAX
          G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) {
            if (bag_better(x[i], first + at, total[i], held[i])) {
              total[i] = x[i];
              held[i] = first + at;
            }
          }
#else
          G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) sum[i] = g_fma(x[i], factors[at], sum[i]);
#endif
        }
      }
    }
#if !BAG_MAX
    G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) bag_add(total[i], lost[i], sum[i]);
#endif
    tg_barrier();
  }
  bad = gk_tg_any<ROW_THREADS>(bad, flags, c);
  counted = gk_tg_sum<ROW_THREADS>(counted, scratch, c);
  G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) parts[i * ROW_THREADS + c.tid] = total[i];
#if BAG_MAX
  G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) places[i * ROW_THREADS + c.tid] = held[i];
#endif
  tg_barrier();
  for (uint rest = slots / 2; rest > 0; rest /= 2) {
    if (slot < rest) {
      G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) {
        const uint at = i * ROW_THREADS + c.tid;
        const uint other = at + rest * lanes;
#if BAG_MAX
        if (bag_better(parts[other], places[other], parts[at], places[at])) {
          parts[at] = parts[other];
          places[at] = places[other];
        }
#else
        parts[at] += parts[other];
#endif
      }
    }
    tg_barrier();
  }
  if (slot == 0 && inside) {
    const real count = p.mean != 0 && counted > real(0.0f) ? counted : real(1.0f);
    G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) {
      total[i] = bad ? g_nan() : parts[i * ROW_THREADS + c.tid] / count;
#if BAG_MAX
      largest[gk_i64(bag) * p.cols + column + i] = bad ? BAG_NONE : places[i * ROW_THREADS + c.tid];
#endif
    }
    row_store(y, gk_i64(bag) * p.cols + column, total);
  }
  // What a gradient of the bag is multiplied by; 0: it has none.
  if (c.grp % p.tiles == 0 && c.tid == 0) {
    scale[bag] = bad || counted == real(0.0f) ? real(0.0f) : p.mean != 0 ? real(1.0f) / counted : real(1.0f);
  }
}
