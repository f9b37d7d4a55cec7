// f(x + b) and its gradients. A simd group owns 32 chunks of columns, whose bias it holds, and every p.slots-th row:
// group g has tile g % p.tiles of the columns and row slots from (g / p.tiles) * ACT_SLOTS on.
#define ACT_SLOTS (ACT_THREADS / 32)
#define ACT_WIDTH (32 * ACT_VEC)

// A chunk until it is used: 16-bit elements as they lie in memory, for half the registers.
#if ACT_VEC == 8
#define ACT_CHUNK(T) gk_raw8<T>
template <typename T> G_FN void act_hold(DEV(const T) p, gk_i64 i, PRIVREF(gk_raw8<T>) c) { c = gk_ld_raw8(p, i); }
template <typename T> G_FN void act_open(PRIVREF(gk_raw8<T>) c, PRIV(real) x) { gk_open8(c, x); }
#else
struct act_one { real e; };
#define ACT_CHUNK(T) act_one
template <typename T> G_FN void act_hold(DEV(const T) p, gk_i64 i, PRIVREF(act_one) c) { c.e = gk_real(p[i]); }
G_FN void act_open(PRIVREF(act_one) c, PRIV(real) x) { x[0] = c.e; }
#endif

#if ACT_BACKWARD
// dx of a simd group's rows and columns from `col` on; sum += what is summed of it.
template <uint F>
G_FN void act_bias_rows(DEV(const ACT_T) dy, DEV(const ACT_T) x, DEV(const ACT_B) b, DEV(ACT_T) dx, PRIV(real) sum,
                        PREF(bias_activation_params) p, uint col, uint slot) {
  ACT_CHUNK(ACT_B) bias;
  act_hold(b, col, bias);
  for (uint row = slot; row < p.rows; row += p.slots) {
    const gk_i64 first = (gk_i64)row * p.cols + col;
    ACT_CHUNK(ACT_T) dv, hv;
    act_hold(dy, first, dv);
    act_hold(x, first, hv);
    real d[ACT_VEC], h[ACT_VEC];
    act_open(hv, h);
    act_open(bias, d);
    G_UNROLL for (uint e = 0; e < ACT_VEC; ++e) {
      real value;
      h[e] = act_slope<F>(h[e] + d[e], value);
    }
    act_open(dv, d);
    G_UNROLL for (uint e = 0; e < ACT_VEC; ++e) {
      sum[e] = g_fma(d[e], h[e], sum[e]);
      d[e] *= h[e];
    }
    act_store(dx, first, p.cols - col, d);
  }
}

// parts[block, :] is the block's share of db.
G_KERNEL(bias_activation_bwd, ACT_THREADS, IN(0, ACT_T, dy), IN(1, ACT_T, x), IN(2, ACT_B, b), OUT(3, ACT_T, dx),
         OUT(4, real, parts), PARAMS(5, bias_activation_params, p)) {
  TG_ARRAY(real, sums, ACT_SLOTS * ACT_WIDTH);
  const gk_ctx c = G_CTX();
  const uint tile = c.grp % p.tiles, block = c.grp / p.tiles;
  const uint col = tile * ACT_WIDTH + c.lane * ACT_VEC;
  real sum[ACT_VEC];
  G_UNROLL for (uint e = 0; e < ACT_VEC; ++e) sum[e] = 0.0f;
  if (col < p.cols) ACT_CALL(p.function, act_bias_rows, dy, x, b, dx, sum, p, col, block * ACT_SLOTS + c.sg);
  G_UNROLL for (uint e = 0; e < ACT_VEC; ++e) sums[c.sg * ACT_WIDTH + c.lane * ACT_VEC + e] = sum[e];
  tg_barrier();
  if (c.tid < ACT_WIDTH && tile * ACT_WIDTH + c.tid < p.cols) {
    real total = 0.0f;
    G_UNROLL for (uint s = 0; s < ACT_SLOTS; ++s) total += sums[s * ACT_WIDTH + c.tid];
    parts[(gk_i64)block * p.cols + tile * ACT_WIDTH + c.tid] = total;
  }
}
#else
template <uint F>
G_FN void act_bias_rows(DEV(const ACT_T) x, DEV(const ACT_B) b, DEV(ACT_T) y, PREF(bias_activation_params) p, uint col,
                        uint slot) {
  ACT_CHUNK(ACT_B) bias;
  act_hold(b, col, bias);
  for (uint row = slot; row < p.rows; row += p.slots) {
    const gk_i64 first = (gk_i64)row * p.cols + col;
    ACT_CHUNK(ACT_T) hv;
    act_hold(x, first, hv);
    real a[ACT_VEC], h[ACT_VEC];
    act_open(hv, h);
    act_open(bias, a);
    G_UNROLL for (uint e = 0; e < ACT_VEC; ++e) h[e] = act_value<F>(h[e] + a[e]);
    act_store(y, first, p.cols - col, h);
  }
}

G_KERNEL(bias_activation_fwd, ACT_THREADS, IN(0, ACT_T, x), IN(1, ACT_B, b), OUT(2, ACT_T, y),
         PARAMS(3, bias_activation_params, p)) {
  const gk_ctx c = G_CTX();
  const uint tile = c.grp % p.tiles, block = c.grp / p.tiles;
  const uint col = tile * ACT_WIDTH + c.lane * ACT_VEC;
  if (col < p.cols) ACT_CALL(p.function, act_bias_rows, x, b, y, p, col, block * ACT_SLOTS + c.sg);
}
#endif
