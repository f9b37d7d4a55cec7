// The kernel vocabulary on the CPU. The words and what they promise are the same in metal.h and cuda.h.
// It follows the text's #define lines, of which GK_F64 matters here.
#include "memory.h"
#define GK_METAL 0
#define GK_CUDA 0
#define GK_EMU 1
#ifndef GK_F64
#define GK_F64 0
#endif
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef long long gk_i64;

// ---- qualifiers and pointers
#define G_FN static inline __attribute__((always_inline))
#define DEV(T) ::emu::device_pointer<T>
#define TG(T) ::emu::threadgroup_pointer<T>
#define PRIV(T) T*
#define PRIVREF(T) T&
#define PREF(T) const T&
#define G_CONST static constexpr
#define G_UNROLL

// ---- kernel signature
#define IN(i, T, n) ::emu::Buffer<i, const T, ::emu::In> n
#define OUT(i, T, n) ::emu::Buffer<i, T, ::emu::Out> n
#define IO(i, T, n) ::emu::Buffer<i, T, ::emu::InOut> n
#define PARAMS(i, T, n) const ::emu::Block<i, T> n
#define G_KERNEL(name, nthreads, ...) GK_EMU_KERNEL(name, nthreads, __VA_ARGS__)
#define GK_EMU_KERNEL(name, nthreads, ...)                                                                   \
  static void name(__VA_ARGS__);                                                                             \
  static ::emu::Registration gk_registration_##name(::emu::Kernel{                                           \
      #name, #__VA_ARGS__, ::emu::Thunk<decltype(name), &name>::arguments,                                   \
      &::emu::Thunk<decltype(name), &name>::call, nullptr, ::emu::Thunk<decltype(name), &name>::count,       \
      (nthreads), GK_F64});                                                                                  \
  static void name(__VA_ARGS__)
using gk_ctx = ::emu::Context;
#define G_CTX() ::emu::runtime->context()
#define TG_ARRAY(T, name, n)                                                                         \
  const ::emu::Object* gk_object_##name = ::emu::runtime->threadgroup_array((n), sizeof(T), #name);  \
  const ::emu::threadgroup_pointer<T> name((T*)gk_object_##name->base, gk_object_##name)

// ---- barriers. A default argument is evaluated at the call, so it knows the caller's line.
#define GK_SITE int line = __builtin_LINE(), const char* file = __builtin_FILE()
G_FN void tg_barrier(GK_SITE) { ::emu::runtime->barrier(false, {file, line}); }
G_FN void tg_barrier_dev(GK_SITE) { ::emu::runtime->barrier(true, {file, line}); }
G_FN void sg_barrier(GK_SITE) { ::emu::runtime->simd(nullptr, "sg_barrier", 0, 0, {file, line}); }

// ---- the compute type
#if GK_F64
typedef double real;
#define gk_lit(x) x
#define GK_UNIT 1.1102230246251565e-16
#define GK_TINY 2.2250738585072014e-308
#define GK_HUGE 1.7976931348623157e+308
#else
typedef float real;
#define gk_lit(x) x##f
#define GK_UNIT 5.9604644775390625e-8f   /* unit roundoff */
#define GK_TINY 1.17549435082228751e-38f /* smallest normal number */
#define GK_HUGE 3.40282346638528860e+38f /* largest finite number */
#endif

// ---- simd-group operations: all 32 lanes take part
namespace emu {
template <class To, class From> static inline To bit_cast(From v) {
  static_assert(sizeof(From) <= 8 && sizeof(To) <= 8, "");
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &v, sizeof v);
  To r;
  __builtin_memcpy(&r, &bits, sizeof r);
  return r;
}
template <class T> static inline T sum(T a, T b) { return a + b; }
// NaN is ignored, as by fmax and fmin.
template <class T> static inline T larger(T a, T b) { return a > b || b != b ? a : b; }
template <class T> static inline T smaller(T a, T b) { return a < b || b != b ? a : b; }
// In pairs, as CUDA's shuffles do, so that every lane has the same bits.
template <class T, T (*combine)(T, T)> void reduce(const uint64_t* values, const uint64_t*, uint64_t* results) {
  T a[32], b[32];
  for (int l = 0; l < 32; ++l) a[l] = bit_cast<T>(values[l]);
  for (int mask = 16; mask > 0; mask >>= 1) {
    for (int l = 0; l < 32; ++l) b[l] = combine(a[l], a[l ^ mask]);
    __builtin_memcpy(a, b, sizeof a);
  }
  for (int l = 0; l < 32; ++l) results[l] = bit_cast<uint64_t>(a[l]);
}
static inline void shuffle(const uint64_t* values, const uint64_t* lanes, uint64_t* results) {
  for (int l = 0; l < 32; ++l) {
    if (lanes[l] > 31) runtime->fail("sg_shfl: lane %llu", (unsigned long long)lanes[l]);
    results[l] = values[lanes[l]];
  }
}
static inline void exchange(const uint64_t* values, const uint64_t* masks, uint64_t* results) {
  for (int l = 0; l < 32; ++l) {
    if (masks[l] > 31) runtime->fail("sg_xor: mask %llu", (unsigned long long)masks[l]);
    results[l] = values[l ^ masks[l]];
  }
}
template <class T> static inline T simd(SimdFunction f, const char* name, T v, uint64_t aux, Site site) {
  return bit_cast<T>(runtime->simd(f, name, bit_cast<uint64_t>(v), aux, site));
}
}  // namespace emu
#define GK_SIMD_WORDS(T)                                                                                               \
  G_FN T sg_sum(T v, GK_SITE) { return ::emu::simd(&::emu::reduce<T, ::emu::sum<T>>, "sg_sum", v, 0, {file, line}); }     \
  G_FN T sg_max(T v, GK_SITE) { return ::emu::simd(&::emu::reduce<T, ::emu::larger<T>>, "sg_max", v, 0, {file, line}); }  \
  G_FN T sg_min(T v, GK_SITE) { return ::emu::simd(&::emu::reduce<T, ::emu::smaller<T>>, "sg_min", v, 0, {file, line}); } \
  G_FN T sg_shfl(T v, uint lane, GK_SITE) { return ::emu::simd(&::emu::shuffle, "sg_shfl", v, lane, {file, line}); }      \
  G_FN T sg_xor(T v, uint mask, GK_SITE) { return ::emu::simd(&::emu::exchange, "sg_xor", v, mask, {file, line}); }
GK_SIMD_WORDS(float)
GK_SIMD_WORDS(uint)
#if GK_F64
GK_SIMD_WORDS(double)
#endif
G_FN bool sg_any(bool v, GK_SITE) {
  return ::emu::simd(&::emu::reduce<uint, ::emu::larger<uint>>, "sg_any", v ? 1u : 0u, 0, {file, line}) != 0;
}
G_FN bool sg_all(bool v, GK_SITE) {
  return ::emu::simd(&::emu::reduce<uint, ::emu::smaller<uint>>, "sg_all", v ? 1u : 0u, 0, {file, line}) != 0;
}

// ---- maths. Words of one argument take float and real; words of more take real, so that a float beside a
// double is promoted and not ambiguous.
G_FN float g_sqrt(float x) { return __builtin_sqrtf(x); }
G_FN float g_rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
G_FN float g_rsqrt_near(float x) { const float y = g_rsqrt(x); return y + y * (0.5f - 0.5f * x * y * y); }
G_FN float g_recip(float x) { return 1.0f / x; }
G_FN float g_exp(float x) { return __builtin_expf(x); }
G_FN float g_exp2(float x) { return __builtin_exp2f(x); }
G_FN float g_log(float x) { return __builtin_logf(x); }
G_FN float g_floor(float x) { return __builtin_floorf(x); }
G_FN float g_abs(float x) { return __builtin_fabsf(x); }
G_FN bool g_isnan(float x) { return (::emu::bit_cast<uint>(x) & 0x7fffffffu) > 0x7f800000u; }
#if GK_F64
G_FN double g_sqrt(double x) { return __builtin_sqrt(x); }
G_FN double g_rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }
G_FN double g_rsqrt_near(double x) { return g_rsqrt(x); }
G_FN double g_recip(double x) { return 1.0 / x; }
G_FN double g_exp(double x) { return __builtin_exp(x); }
G_FN double g_exp2(double x) { return __builtin_exp2(x); }
G_FN double g_log(double x) { return __builtin_log(x); }
G_FN double g_floor(double x) { return __builtin_floor(x); }
G_FN double g_abs(double x) { return __builtin_fabs(x); }
G_FN bool g_isnan(double x) { return (::emu::bit_cast<uint64_t>(x) & 0x7fffffffffffffffu) > 0x7ff0000000000000u; }
G_FN double g_fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
G_FN double g_copysign(double a, double b) { return __builtin_copysign(a, b); }
#else
G_FN float g_fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
G_FN float g_copysign(float a, float b) { return __builtin_copysignf(a, b); }
#endif
G_FN real g_max(real a, real b) { return ::emu::larger(a, b); }
G_FN real g_min(real a, real b) { return ::emu::smaller(a, b); }
G_FN uint g_minu(uint a, uint b) { return a < b ? a : b; }
G_FN uint g_maxu(uint a, uint b) { return a > b ? a : b; }
G_FN real g_inf() { return __builtin_inff(); }
G_FN real g_nan() { return __builtin_nanf(""); }

// Words of 8 and 16 bytes.
struct alignas(8) uint2 { uint x, y; };
struct alignas(16) uint4 { uint x, y, z, w; };
G_FN uint2 gk_uint2(uint a, uint b) { return uint2{a, b}; }
G_FN uint4 gk_uint4(uint a, uint b, uint c, uint d) { return uint4{a, b, c, d}; }

#include "storage.h"

// ---- relaxed atomics in device memory
static inline uint ga_add(DEV(uint) p, gk_i64 i, uint v) {
  DEV(uint) q = p + i;
  if ((size_t)q.index() >= q.o->count) ::emu::runtime->out_of_bounds(q.o, q.index(), "atomic");
  return __atomic_fetch_add(q.p, v, __ATOMIC_RELAXED);
}
static inline void ga_add(DEV(real) p, gk_i64 i, real v) {
  DEV(real) q = p + i;
  if ((size_t)q.index() >= q.o->count) ::emu::runtime->out_of_bounds(q.o, q.index(), "atomic");
  real before, after;
  __atomic_load(q.p, &before, __ATOMIC_RELAXED);
  do after = before + v;
  while (!__atomic_compare_exchange(q.p, &before, &after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}
// A store that may meet others of the same value.
template <class T> static inline void ga_put(DEV(T) p, gk_i64 i, T v) {
  DEV(T) q = p + i;
  if ((size_t)q.index() >= q.o->count) ::emu::runtime->out_of_bounds(q.o, q.index(), "write");
  __atomic_store(q.p, &v, __ATOMIC_RELAXED);
}
