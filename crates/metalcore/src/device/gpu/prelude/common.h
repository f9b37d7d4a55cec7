// Shared by all targets, and written in the vocabulary itself: it follows the target's prelude.
// NT is the group's size, a multiple of 32; scratch has NT / 32 elements and may be used again right after.

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

// A float64 parameter: the sum of three floats, largest first.
struct gk_wide { float a; float b; float c; };
G_FN real gk_wide_real(gk_wide x) { return real(x.a) + (real(x.b) + real(x.c)); }
