// The kernel vocabulary on CUDA: C++17 through NVRTC without headers, sm_80 and later.
// The words and what they promise are the same in metal.h and in the emulator's prelude.
#define GK_METAL 0
#define GK_CUDA 1
#define GK_EMU 0
#ifndef GK_F64
#define GK_F64 0
#endif
// Groups that must fit one multiprocessor at once. Without this second launch bound ptxas may cap registers and spill.
#ifndef GK_MIN_GROUPS
#define GK_MIN_GROUPS 1
#endif
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;
typedef long long gk_i64;

// ---- qualifiers and pointers
#define G_FN static __device__ __forceinline__
#define DEV(T) T*
#define TG(T) T*
#define PRIV(T) T*
#define PRIVREF(T) T&
#define PREF(T) const T&
#define G_CONST static __device__ constexpr
#define G_UNROLL _Pragma("unroll")

// ---- kernel signature
#define IN(i, T, n) const T* __restrict__ n
#define OUT(i, T, n) T* __restrict__ n
#define IO(i, T, n) T* n
#define PARAMS(i, T, n) const __grid_constant__ T n
#define G_KERNEL(name, nthreads, ...) \
  extern "C" __global__ void __launch_bounds__(nthreads, GK_MIN_GROUPS) name(__VA_ARGS__)
struct gk_ctx { uint grp; uint tid; uint lane; uint sg; };
#define G_CTX() gk_ctx{blockIdx.x, threadIdx.x, threadIdx.x & 31u, threadIdx.x >> 5}
#define TG_ARRAY(T, name, n) __shared__ __align__(16) T name[n]

// ---- barriers
#define tg_barrier() __syncthreads()
#define tg_barrier_dev() __syncthreads()
#define sg_barrier() __syncwarp()

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
#define GK_LANES 0xffffffffu
#define GK_SG_REDUCE(T, name, combine)                                                                       \
  G_FN T name(T v) {                                                                                         \
    G_UNROLL for (int mask = 16; mask > 0; mask >>= 1) v = combine(v, __shfl_xor_sync(GK_LANES, v, mask));   \
    return v;                                                                                                \
  }
#define GK_SG_MOVE(T)                                                                               \
  G_FN T sg_shfl(T v, uint lane) { return __shfl_sync(GK_LANES, v, (int)lane); }                    \
  G_FN T sg_xor(T v, uint mask) { return __shfl_xor_sync(GK_LANES, v, (int)mask); }
G_FN float gk_add(float a, float b) { return a + b; }
GK_SG_REDUCE(float, sg_sum, gk_add)
GK_SG_REDUCE(float, sg_max, fmaxf)
GK_SG_REDUCE(float, sg_min, fminf)
GK_SG_MOVE(float)
#if GK_F64
G_FN double gk_add(double a, double b) { return a + b; }
GK_SG_REDUCE(double, sg_sum, gk_add)
GK_SG_REDUCE(double, sg_max, fmax)
GK_SG_REDUCE(double, sg_min, fmin)
GK_SG_MOVE(double)
#endif
G_FN uint sg_sum(uint v) { return __reduce_add_sync(GK_LANES, v); }
G_FN uint sg_max(uint v) { return __reduce_max_sync(GK_LANES, v); }
G_FN uint sg_min(uint v) { return __reduce_min_sync(GK_LANES, v); }
GK_SG_MOVE(uint)
G_FN bool sg_any(bool v) { return __any_sync(GK_LANES, v) != 0; }
G_FN bool sg_all(bool v) { return __all_sync(GK_LANES, v) != 0; }

// ---- maths: IEEE forms. Words of one argument take float and real; words of more take real, so that a
// float beside a double is promoted and not ambiguous.
G_FN float g_sqrt(float x) { return __fsqrt_rn(x); }
G_FN float g_rsqrt(float x) { return __fdiv_rn(1.0f, __fsqrt_rn(x)); }
G_FN float g_rsqrt_near(float x) { const float y = rsqrtf(x); return y + y * (0.5f - 0.5f * x * y * y); }
// 1 / x within 1 unit in the last place, for x and 1 / x of normal size
G_FN float g_recip(float x) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
G_FN float g_exp(float x) { return expf(x); }
// 2^x within 2^-22, relative; subnormal results are 0.
G_FN float g_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
G_FN float g_log(float x) { return logf(x); }
G_FN float g_floor(float x) { return floorf(x); }
G_FN float g_abs(float x) { return fabsf(x); }
G_FN bool g_isnan(float x) { return (__float_as_uint(x) & 0x7fffffffu) > 0x7f800000u; }
#if GK_F64
G_FN double g_sqrt(double x) { return __dsqrt_rn(x); }
G_FN double g_rsqrt(double x) { return __ddiv_rn(1.0, __dsqrt_rn(x)); }
G_FN double g_rsqrt_near(double x) { return g_rsqrt(x); }
G_FN double g_recip(double x) { return __drcp_rn(x); }
G_FN double g_exp(double x) { return exp(x); }
G_FN double g_exp2(double x) { return exp2(x); }
G_FN double g_log(double x) { return log(x); }
G_FN double g_floor(double x) { return floor(x); }
G_FN double g_abs(double x) { return fabs(x); }
G_FN bool g_isnan(double x) { return (__double_as_longlong(x) & 0x7fffffffffffffffll) > 0x7ff0000000000000ll; }
G_FN double g_max(double a, double b) { return fmax(a, b); }
G_FN double g_min(double a, double b) { return fmin(a, b); }
G_FN double g_fma(double a, double b, double c) { return fma(a, b, c); }
G_FN double g_copysign(double a, double b) { return copysign(a, b); }
#else
G_FN float g_max(float a, float b) { return fmaxf(a, b); }
G_FN float g_min(float a, float b) { return fminf(a, b); }
G_FN float g_fma(float a, float b, float c) { return fmaf(a, b, c); }
G_FN float g_copysign(float a, float b) { return copysignf(a, b); }
#endif
G_FN uint g_minu(uint a, uint b) { return a < b ? a : b; }
G_FN uint g_maxu(uint a, uint b) { return a > b ? a : b; }
G_FN real g_inf() { return __uint_as_float(0x7f800000u); }
G_FN real g_nan() { return __uint_as_float(0x7fc00000u); }

// ---- storage types: convert only through gk_real and gk_to, which rounds once, to nearest even
struct half { ushort bits; };
struct bfloat { ushort bits; };
G_FN real gk_real(float x) { return x; }
G_FN real gk_real(half x) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
}
G_FN real gk_real(bfloat x) { return __uint_as_float((uint)x.bits << 16); }
template <typename T> __device__ T gk_to(real x);
#if GK_F64
G_FN real gk_real(double x) { return x; }
template <> __device__ __forceinline__ double gk_to<double>(double x) { return x; }
template <> __device__ __forceinline__ float gk_to<float>(double x) { return __double2float_rn(x); }
template <> __device__ __forceinline__ half gk_to<half>(double x) {
  half h;
  asm("cvt.rn.f16.f64 %0, %1;" : "=h"(h.bits) : "d"(x));
  return h;
}
// By way of float rounded to odd, which keeps what decides the second rounding.
template <> __device__ __forceinline__ bfloat gk_to<bfloat>(double x) {
  float f = __double2float_rz(x);
  if ((double)f != x) f = __uint_as_float(__float_as_uint(f) | 1u);
  bfloat h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h.bits) : "f"(f));
  return h;
}
#else
template <> __device__ __forceinline__ float gk_to<float>(float x) { return x; }
template <> __device__ __forceinline__ half gk_to<half>(float x) {
  half h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
  return h;
}
template <> __device__ __forceinline__ bfloat gk_to<bfloat>(float x) {
  bfloat h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
  return h;
}
#endif

// ---- four reals, eight reals
struct __align__(16) v4 {
  real x, y, z, w;
  __device__ __forceinline__ v4() {}
  __device__ __forceinline__ explicit v4(real a) : x(a), y(a), z(a), w(a) {}
  __device__ __forceinline__ v4(real a, real b, real c, real d) : x(a), y(b), z(c), w(d) {}
};
struct v8 { v4 lo; v4 hi; };
G_FN v4 operator+(v4 a, v4 b) { return v4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }
G_FN v4 operator-(v4 a, v4 b) { return v4(a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w); }
G_FN v4 operator*(v4 a, v4 b) { return v4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w); }
G_FN v4 operator*(v4 a, real s) { return v4(a.x * s, a.y * s, a.z * s, a.w * s); }
G_FN real v4_dot(v4 a, v4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// Words of 8 and 16 bytes.
G_FN uint2 gk_uint2(uint a, uint b) { return make_uint2(a, b); }
G_FN uint4 gk_uint4(uint a, uint b, uint c, uint d) { return make_uint4(a, b, c, d); }

// N elements as they lie in memory, moved in accesses of up to 16 bytes
template <typename T, uint N> struct __align__(N * sizeof(T) < 16 ? N * sizeof(T) : 16) gk_pack { T e[N]; };
template <typename P> G_FN P gk_pack_once(const P* p) {  // evict first
  P r;
  if constexpr (sizeof(P) == 8) {
    const uint2 w = __ldcs(reinterpret_cast<const uint2*>(p));
    memcpy(&r, &w, 8);
  } else {
    G_UNROLL for (uint k = 0; k < sizeof(P) / 16; ++k) {
      const uint4 w = __ldcs(reinterpret_cast<const uint4*>(p) + k);
      memcpy(reinterpret_cast<char*>(&r) + 16 * k, &w, 16);
    }
  }
  return r;
}
template <typename P> G_FN void gk_pack_put_once(P* p, P v) {
  if constexpr (sizeof(P) == 8) {
    uint2 w;
    memcpy(&w, &v, 8);
    __stcs(reinterpret_cast<uint2*>(p), w);
  } else {
    G_UNROLL for (uint k = 0; k < sizeof(P) / 16; ++k) {
      uint4 w;
      memcpy(&w, reinterpret_cast<const char*>(&v) + 16 * k, 16);
      __stcs(reinterpret_cast<uint4*>(p) + k, w);
    }
  }
}
template <uint N, typename T> G_FN const gk_pack<T, N>* gk_at(const T* p, gk_i64 i) {
  return reinterpret_cast<const gk_pack<T, N>*>(p + i);
}
template <uint N, typename T> G_FN gk_pack<T, N>* gk_at(T* p, gk_i64 i) {
  return reinterpret_cast<gk_pack<T, N>*>(p + i);
}
template <uint AT, typename T, uint N> G_FN v4 gk_unpack(gk_pack<T, N> v) {
  return v4(gk_real(v.e[AT]), gk_real(v.e[AT + 1]), gk_real(v.e[AT + 2]), gk_real(v.e[AT + 3]));
}
#if !GK_F64
// by words: an element is half of one
template <uint AT, uint N> G_FN v4 gk_unpack(gk_pack<bfloat, N> v) {
  uint w[N / 2];
  memcpy(w, &v, sizeof(v));
  return v4(__uint_as_float(w[AT / 2] << 16), __uint_as_float(w[AT / 2] & 0xffff0000u),
            __uint_as_float(w[AT / 2 + 1] << 16), __uint_as_float(w[AT / 2 + 1] & 0xffff0000u));
}
#endif
#if GK_F64
template <typename T> G_FN void gk_pack2(T* e, real a, real b) {
  e[0] = gk_to<T>(a);
  e[1] = gk_to<T>(b);
}
#else
G_FN void gk_pack2(float* e, float a, float b) {
  e[0] = a;
  e[1] = b;
}
// two conversions in one instruction; the second operand is the low half
G_FN void gk_pack2(half* e, float a, float b) {
  uint w;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(b), "f"(a));
  memcpy(e, &w, 4);
}
G_FN void gk_pack2(bfloat* e, float a, float b) {
  uint w;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(w) : "f"(b), "f"(a));
  memcpy(e, &w, 4);
}
#endif
template <typename T> G_FN gk_pack<T, 4> gk_pack4(v4 v) {
  gk_pack<T, 4> r;
  gk_pack2(r.e, v.x, v.y);
  gk_pack2(r.e + 2, v.z, v.w);
  return r;
}
template <typename T> G_FN gk_pack<T, 8> gk_pack8(v8 v) {
  gk_pack<T, 8> r;
  gk_pack2(r.e, v.lo.x, v.lo.y);
  gk_pack2(r.e + 2, v.lo.z, v.lo.w);
  gk_pack2(r.e + 4, v.hi.x, v.hi.y);
  gk_pack2(r.e + 6, v.hi.z, v.hi.w);
  return r;
}
template <typename T> G_FN v8 gk_unpack8(gk_pack<T, 8> v) { return v8{gk_unpack<0>(v), gk_unpack<4>(v)}; }
// 4 consecutive elements, at an address aligned to 4 of them
template <typename T> G_FN v4 gk_ld4(const T* p, gk_i64 i) { return gk_unpack<0>(*gk_at<4>(p, i)); }
template <typename T> G_FN void gk_st4(T* p, gk_i64 i, v4 v) { *gk_at<4>(p, i) = gk_pack4<T>(v); }
// 8 consecutive elements, at an address aligned to 16 bytes
template <typename T> G_FN v8 gk_ld8(const T* p, gk_i64 i) { return gk_unpack8(*gk_at<8>(p, i)); }
template <typename T> G_FN void gk_st8(T* p, gk_i64 i, v8 v) { *gk_at<8>(p, i) = gk_pack8<T>(v); }
// 8 elements as they lie in memory, to hold in registers; gk_keep makes the compiler convert them anew at each use
template <typename T> using gk_raw8 = gk_pack<T, 8>;
template <typename T> G_FN gk_raw8<T> gk_ld_raw8(const T* p, gk_i64 i) { return *gk_at<8>(p, i); }
template <typename T> G_FN void gk_keep(gk_raw8<T>& v) {
  uint w[sizeof(v) / 4];
  memcpy(w, &v, sizeof(v));
  G_UNROLL for (uint k = 0; k < sizeof(v) / 4; ++k) asm volatile("" : "+r"(w[k]));
  memcpy(&v, w, sizeof(v));
}
// the same for data used once, which need not stay in a cache
template <typename T> G_FN gk_raw8<T> gk_ld_raw8_once(const T* p, gk_i64 i) { return gk_pack_once(gk_at<8>(p, i)); }
template <typename T> G_FN v4 gk_ld4_once(const T* p, gk_i64 i) { return gk_unpack<0>(gk_pack_once(gk_at<4>(p, i))); }
template <typename T> G_FN v8 gk_ld8_once(const T* p, gk_i64 i) { return gk_unpack8(gk_pack_once(gk_at<8>(p, i))); }
template <typename T> G_FN void gk_st4_once(T* p, gk_i64 i, v4 v) { gk_pack_put_once(gk_at<4>(p, i), gk_pack4<T>(v)); }
template <typename T> G_FN void gk_st8_once(T* p, gk_i64 i, v8 v) { gk_pack_put_once(gk_at<8>(p, i), gk_pack8<T>(v)); }
// 4 reals of a threadgroup array; i is a multiple of 4
G_FN v4 gk_tg_ld4(const real* p, uint i) { return gk_unpack<0>(*gk_at<4>(p, i)); }
G_FN void gk_tg_st4(real* p, uint i, v4 v) { *gk_at<4>(p, i) = gk_pack4<real>(v); }

// ---- relaxed atomics in device memory
G_FN uint ga_add(uint* p, gk_i64 i, uint v) { return atomicAdd(p + i, v); }
G_FN void ga_add(real* p, gk_i64 i, real v) { atomicAdd(p + i, v); }
// A store that may meet others of the same value.
template <typename T> G_FN void ga_put(T* p, gk_i64 i, T v) { p[i] = v; }
