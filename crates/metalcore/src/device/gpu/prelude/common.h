// Shared by all targets, and written in the vocabulary itself: it follows the target's prelude.
// NT is the group's size, a multiple of 32; scratch has NT / 32 elements and may be used again right after.

// A vector of eight to and from an array, and a held chunk opened to one.
G_FN void v8_spread(v8 a, PRIV(real) x) {
  x[0] = a.lo.x; x[1] = a.lo.y; x[2] = a.lo.z; x[3] = a.lo.w;
  x[4] = a.hi.x; x[5] = a.hi.y; x[6] = a.hi.z; x[7] = a.hi.w;
}
G_FN v8 v8_of(PRIV(real) x) {
  v8 a;
  a.lo = v4(x[0], x[1], x[2], x[3]);
  a.hi = v4(x[4], x[5], x[6], x[7]);
  return a;
}
template <typename T> G_FN void gk_open8(PRIVREF(gk_raw8<T>) c, PRIV(real) x) {
  gk_keep(c);
  v8_spread(gk_unpack8(c), x);
}

// The sum over the group, the same in every thread and in every run.
template <uint NT> G_FN real gk_tg_sum(real v, TG(real) scratch, gk_ctx c) {
  v = sg_sum(v);
  if (NT > 32) {
    if (c.lane == 0) scratch[c.sg] = v;
    tg_barrier();
    v = real(0.0f);
    G_UNROLL for (uint i = 0; i < NT / 32; ++i) v += scratch[i];
    tg_barrier();
  }
  return v;
}

// The largest over the group. NaN is ignored, as by g_max.
template <uint NT> G_FN real gk_tg_max(real v, TG(real) scratch, gk_ctx c) {
  v = sg_max(v);
  if (NT > 32) {
    if (c.lane == 0) scratch[c.sg] = v;
    tg_barrier();
    v = scratch[0];
    G_UNROLL for (uint i = 1; i < NT / 32; ++i) v = g_max(v, scratch[i]);
    tg_barrier();
  }
  return v;
}

// Whether v holds in any thread of the group.
template <uint NT> G_FN bool gk_tg_any(bool v, TG(uint) scratch, gk_ctx c) {
  bool any = sg_any(v);
  if (NT > 32) {
    if (c.lane == 0) scratch[c.sg] = any ? 1u : 0u;
    tg_barrier();
    uint found = 0;
    G_UNROLL for (uint i = 0; i < NT / 32; ++i) found |= scratch[i];
    tg_barrier();
    any = found != 0;
  }
  return any;
}

// A 64-bit size in a parameter block.
struct gk_size { uint lo; uint hi; };
G_FN gk_i64 gk_size_i64(gk_size s) { return (gk_i64(s.hi) << 32) | gk_i64(s.lo); }

// A float64 parameter: the sum of three floats, largest first.
struct gk_wide { float a; float b; float c; };
G_FN real gk_wide_real(gk_wide x) { return real(x.a) + (real(x.b) + real(x.c)); }
