// The rotation that makes [[a, g/2], [g/2, b]] diagonal, for d = b - a and g that is not 0, t its tangent: the entries
// become a - t g/2 and b + t g/2. In Rutishauser's form x -= s (y + tau x), y += s (x - tau y), whose rounding errors do not
// drift: those of the cosine count by a sixth at most. Two reciprocal roots, one after the other, are all that is slow.
struct gk_turn { real s; real tau; real t; };
G_FN gk_turn gk_turn_of(real d, real g) {
  // Where squares vanish the angle is not exact; the next sweep sees it.
  const real r = g_rsqrt_near(g_max(d * d + g * g, GK_TINY));
  const real square = 0.5f + 0.5f * g_abs(d) * r, root = g_rsqrt_near(square), x = 1.0f + square * root;
  real y = 1.0857864f - 0.2928932f * x;  // 1 / x for x from 1.7 to 2
  y = y * (2.0f - x * y);
  y = y * (2.0f - x * y);
  y = y * (2.0f - x * y);
  gk_turn turn;
  turn.s = g_copysign(0.5f, d) * (g * r) * root;
  turn.t = turn.s * root;
  turn.tau = turn.s * y;
  return turn;
}
