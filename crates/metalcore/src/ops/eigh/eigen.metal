// What the kernels of eigh share.
G_FN bool eigh_not_finite(real x) { return g_isnan(x) || g_abs(x) > GK_HUGE; }
// The entry (i, j) of the symmetric matrix whose named triangle is read.
G_FN real eigh_entry(DEV(const real) A, gk_i64 a0, uint i, uint j, PREF(eigh_params) p) {
  const bool swap = (i < j) != (p.upper != 0);
  return A[a0 + (gk_i64)(swap ? j : i) * p.n + (swap ? i : j)];
}
G_FN void eigh_scale_step(PRIVREF(real) m, PRIVREF(real) s, real f) {
  const real r = 1.0f / f;
  if (m >= f) { m *= r; s *= r; }
  if (m < r) { m *= f; s *= f; }
}
// A power of two that brings `largest` to between 1/4 and 4; 1 for 0.
G_FN real eigh_scale(real largest) {
  real s = 1.0f, m = largest;
  if (m == 0.0f) return s;
#if GK_F64
  eigh_scale_step(m, s, 1.3407807929942597e154);
  eigh_scale_step(m, s, 1.157920892373162e77);
  eigh_scale_step(m, s, 3.402823669209385e38);
#endif
  eigh_scale_step(m, s, 18446744073709551616.0f);
  eigh_scale_step(m, s, 4294967296.0f);
  eigh_scale_step(m, s, 65536.0f);
  eigh_scale_step(m, s, 256.0f);
  eigh_scale_step(m, s, 16.0f);
  eigh_scale_step(m, s, 4.0f);
  return s;
}
