// Storage types, their conversions, and vectors of four and eight. Included by prelude.h.

// ---- storage types: convert only through gk_real and gk_to, which rounds once, to nearest even
struct half { ushort bits; };
struct bfloat { ushort bits; };

namespace emu {
static inline float from_half(half x) {
  const uint sign = (uint)(x.bits & 0x8000) << 16, exponent = (x.bits >> 10) & 31, mantissa = x.bits & 1023;
  if (exponent == 31) return bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  return bit_cast<float>(sign | bit_cast<uint>((float)mantissa * 0x1p-24f));
}
// The upper bits of `value`, rounded to nearest even at bit `shift`.
static inline uint round_at(uint value, uint shift) {
  return (value + (1u << (shift - 1)) - 1 + ((value >> shift) & 1)) >> shift;
}
static inline half to_half(float x) {
  const uint bits = bit_cast<uint>(x), sign = (bits >> 16) & 0x8000u, u = bits & 0x7fffffffu;
  if (u > 0x7f800000u) return half{(ushort)(sign | 0x7e00)};
  if (u >= 0x477ff000u) return half{(ushort)(sign | 0x7c00)};  // 65520 and above
  if (u >= 0x38800000u) return half{(ushort)(sign | round_at(u - 0x38000000u, 13))};
  const uint shift = 126 - (u >> 23);  // denormal: a multiple of 2^-24
  if (shift > 24) return half{(ushort)sign};
  return half{(ushort)(sign | round_at((u & 0x7fffffu) | 0x800000u, shift))};
}
static inline bfloat to_bfloat(float x) {
  const uint u = bit_cast<uint>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return bfloat{(ushort)((u >> 16) | 0x40)};
  return bfloat{(ushort)round_at(u, 16)};
}
}  // namespace emu

G_FN real gk_real(float x) { return x; }
static inline real gk_real(half x) { return ::emu::from_half(x); }
G_FN real gk_real(bfloat x) { return ::emu::bit_cast<float>((uint)x.bits << 16); }
template <typename T> T gk_to(real x);
#if GK_F64
G_FN real gk_real(double x) { return x; }
namespace emu {
// To float rounded to odd, which keeps what decides a second rounding to fewer bits.
static inline float round_to_odd(double x) {
  const float f = (float)x;
  if ((double)f == x || x != x) return f;
  uint bits = bit_cast<uint>(f);
  if (__builtin_fabs((double)f) > __builtin_fabs(x)) --bits;
  return bit_cast<float>(bits | 1u);
}
}  // namespace emu
template <> inline double gk_to<double>(double x) { return x; }
template <> inline float gk_to<float>(double x) { return (float)x; }
template <> inline half gk_to<half>(double x) { return ::emu::to_half(::emu::round_to_odd(x)); }
template <> inline bfloat gk_to<bfloat>(double x) { return ::emu::to_bfloat(::emu::round_to_odd(x)); }
#else
template <> inline float gk_to<float>(float x) { return x; }
template <> inline half gk_to<half>(float x) { return ::emu::to_half(x); }
template <> inline bfloat gk_to<bfloat>(float x) { return ::emu::to_bfloat(x); }
#endif

// ---- four reals, eight reals
struct v4 {
  real x, y, z, w;
  v4() {}
  explicit v4(real a) : x(a), y(a), z(a), w(a) {}
  v4(real a, real b, real c, real d) : x(a), y(b), z(c), w(d) {}
};
struct v8 { v4 lo; v4 hi; };
G_FN v4 operator+(v4 a, v4 b) { return v4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
G_FN v4 operator-(v4 a, v4 b) { return v4(a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w); }
G_FN v4 operator*(v4 a, v4 b) { return v4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
G_FN v4 operator*(v4 a, real s) { return v4(a.x * s, a.y * s, a.z * s, a.w * s); }
G_FN real v4_dot(v4 a, v4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

namespace emu {
// The start of a vector of `count` elements, whose address has to be a multiple of `alignment` bytes.
template <class T>
static inline device_pointer<T> vector_at(device_pointer<T> p, gk_i64 i, uint count, size_t alignment, Access a) {
  const device_pointer<T> q = p + i;
  if ((uintptr_t)q.p % alignment)
    runtime->fail("misaligned %u-wide %s: %s[%td], address not a multiple of %zu bytes", count, a == Write ? "write" : "read",
                  q.o->name, q.index(), alignment);
  return q;
}
template <class T, int SPACE> static inline v4 load4(pointer<T, SPACE> q) {
  const plain_t<T> a = q[0], b = q[1], c = q[2], d = q[3];
  return v4(gk_real(a), gk_real(b), gk_real(c), gk_real(d));
}
template <class T, int SPACE> static inline void store4(pointer<T, SPACE> q, v4 v) {
  q[0] = gk_to<T>(v.x);
  q[1] = gk_to<T>(v.y);
  q[2] = gk_to<T>(v.z);
  q[3] = gk_to<T>(v.w);
}
// i counts from a pointer into the array, the rule from the array's start, which is aligned.
static inline void check_multiple_of_4(const Object* o, ptrdiff_t index) {
  if (index % 4) runtime->fail("misaligned 4-wide access: %s[%td], not a multiple of 4", o->name, index);
}
}  // namespace emu
// 4 consecutive elements, at an address aligned to 4 of them
template <typename T> static inline v4 gk_ld4(DEV(T) p, gk_i64 i) {
  return ::emu::load4(::emu::vector_at(p, i, 4, 4 * sizeof(T), ::emu::Read));
}
template <typename T> static inline void gk_st4(DEV(T) p, gk_i64 i, v4 v) {
  ::emu::store4(::emu::vector_at(p, i, 4, 4 * sizeof(T), ::emu::Write), v);
}
// 8 consecutive elements, at an address aligned to 16 bytes
template <typename T> static inline v8 gk_ld8(DEV(T) p, gk_i64 i) {
  const DEV(T) q = ::emu::vector_at(p, i, 8, 16, ::emu::Read);
  return v8{::emu::load4(q), ::emu::load4(q + 4)};
}
template <typename T> static inline void gk_st8(DEV(T) p, gk_i64 i, v8 v) {
  const DEV(T) q = ::emu::vector_at(p, i, 8, 16, ::emu::Write);
  ::emu::store4(q, v.lo);
  ::emu::store4(q + 4, v.hi);
}
// 8 elements as they lie in memory
template <typename T> struct gk_raw8 { T e[8]; };
template <typename T> static inline gk_raw8<::emu::plain_t<T>> gk_ld_raw8(DEV(T) p, gk_i64 i) {
  const DEV(T) q = ::emu::vector_at(p, i, 8, 16, ::emu::Read);
  gk_raw8<::emu::plain_t<T>> v;
  for (int k = 0; k < 8; ++k) v.e[k] = q[k];
  return v;
}
template <typename T> static inline v8 gk_unpack8(gk_raw8<T> v) {
  return v8{v4(gk_real(v.e[0]), gk_real(v.e[1]), gk_real(v.e[2]), gk_real(v.e[3])),
            v4(gk_real(v.e[4]), gk_real(v.e[5]), gk_real(v.e[6]), gk_real(v.e[7]))};
}
template <typename T> static inline void gk_keep(gk_raw8<T>&) {}
// the same for data used once
template <typename T> static inline gk_raw8<::emu::plain_t<T>> gk_ld_raw8_once(DEV(T) p, gk_i64 i) {
  return gk_ld_raw8(p, i);
}
template <typename T> static inline v4 gk_ld4_once(DEV(T) p, gk_i64 i) { return gk_ld4(p, i); }
template <typename T> static inline v8 gk_ld8_once(DEV(T) p, gk_i64 i) { return gk_ld8(p, i); }
template <typename T> static inline void gk_st4_once(DEV(T) p, gk_i64 i, v4 v) { gk_st4(p, i, v); }
template <typename T> static inline void gk_st8_once(DEV(T) p, gk_i64 i, v8 v) { gk_st8(p, i, v); }
// 4 reals of a threadgroup array; i is a multiple of 4
static inline v4 gk_tg_ld4(TG(const real) p, uint i) {
  const TG(const real) q = p + i;
  ::emu::check_multiple_of_4(q.o, q.index());
  return ::emu::load4(q);
}
static inline void gk_tg_st4(TG(real) p, uint i, v4 v) {
  const TG(real) q = p + i;
  ::emu::check_multiple_of_4(q.o, q.index());
  ::emu::store4(q, v);
}
