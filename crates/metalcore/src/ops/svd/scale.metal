#if GK_F64
#define SVD_TINY 3.606632272572553e-130       // 2^-430: columns whose squares add up to no more are zero
#define SVD_FULL 4.149515568880993e180       // 2^600
#else
#define SVD_TINY 2.2737367544323206e-13f       // 2^-42
#define SVD_FULL 1208925819614629174706176.0f  // 2^80
#endif
// In place of a number of zero singular values.
#define SVD_NOT_FINITE 0xffffffffu
#define SVD_NOT_CONVERGED 0xfffffffeu

// Powers of two: a matrix times both has its largest entry in [2^24, 2^25), so that products of four entries neither
// overflow nor vanish. Two, since one may be beyond the range of the type.
struct svd_scales { real up; real more; };
G_FN svd_scales svd_scale(real largest) {
  svd_scales s;
  s.up = s.more = 1.0f;
  if (!(largest > 0.0f)) return s;
  while (largest < 512.0f) {
    largest *= 65536.0f;
    if (s.up < SVD_FULL) s.up *= 65536.0f;
    else s.more *= 65536.0f;
  }
  while (largest >= 1099511627776.0f) {  // 2^40
    largest *= 1.52587890625e-5f;
    s.up *= 1.52587890625e-5f;
  }
  while (largest < 16777216.0f) {  // 2^24
    largest *= 2.0f;
    s.up *= 2.0f;
  }
  while (largest >= 33554432.0f) {
    largest *= 0.5f;
    s.up *= 0.5f;
  }
  return s;
}
G_FN bool svd_finite(real x) { return !g_isnan(x) && g_abs(x) <= GK_HUGE; }
