// The kernel vocabulary on Metal: Metal Shading Language 3.1 or later (bfloat). ASCII only.
// The words and what they promise are the same in cuda.h and in the emulator's prelude.
#include <metal_stdlib>
using namespace metal;
#define GK_METAL 1
#define GK_CUDA 0
#define GK_EMU 0
#ifndef GK_F64
#define GK_F64 0
#endif
#if GK_F64
#error "Metal has no float64"
#endif

// ---- qualifiers and pointers
#define G_FN static inline __attribute__((always_inline))
#define DEV(T) device T*
#define TG(T) threadgroup T*
#define PRIV(T) thread T*
#define PRIVREF(T) thread T&
#define PREF(T) constant T&
#define G_CONST constant constexpr
#define G_UNROLL _Pragma("clang loop unroll(full)")
typedef long gk_i64;

// ---- kernel signature
#define IN(i, T, n) device const T* n [[buffer(i)]]
#define OUT(i, T, n) device T* n [[buffer(i)]]
#define IO(i, T, n) device T* n [[buffer(i)]]
#define PARAMS(i, T, n) constant T& n [[buffer(i)]]
#define G_KERNEL(name, nthreads, ...)                                          \
  [[max_total_threads_per_threadgroup(nthreads)]] kernel void name(            \
      __VA_ARGS__, uint gk_g_ [[threadgroup_position_in_grid]],                \
      uint gk_t_ [[thread_index_in_threadgroup]],                              \
      uint gk_l_ [[thread_index_in_simdgroup]],                                \
      uint gk_s_ [[simdgroup_index_in_threadgroup]])
struct gk_ctx { uint grp; uint tid; uint lane; uint sg; };
#define G_CTX() gk_ctx{gk_g_, gk_t_, gk_l_, gk_s_}
#define TG_ARRAY(T, name, n) alignas(16) threadgroup T name[n]

// ---- barriers: Apple's compiler wants their flags as constants
#define tg_barrier() threadgroup_barrier(mem_flags::mem_threadgroup)
#define tg_barrier_dev() threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device)
#define sg_barrier() simdgroup_barrier(mem_flags::mem_threadgroup)

// ---- the compute type
typedef float real;
#define gk_lit(x) x##f
#define GK_UNIT 5.9604644775390625e-8f  /* unit roundoff */
#define GK_TINY 1.17549435082228751e-38f /* smallest normal number */
#define GK_HUGE 3.40282346638528860e+38f /* largest finite number */

// ---- simd-group operations: all 32 lanes take part
G_FN real sg_sum(real v) { return simd_sum(v); }
G_FN real sg_max(real v) { return simd_max(v); }
G_FN real sg_min(real v) { return simd_min(v); }
G_FN real sg_shfl(real v, uint lane) { return simd_shuffle(v, ushort(lane)); }
G_FN real sg_xor(real v, uint mask) { return simd_shuffle_xor(v, ushort(mask)); }
G_FN uint sg_sum(uint v) { return simd_sum(v); }
G_FN uint sg_max(uint v) { return simd_max(v); }
G_FN uint sg_min(uint v) { return simd_min(v); }
G_FN uint sg_shfl(uint v, uint lane) { return simd_shuffle(v, ushort(lane)); }
G_FN uint sg_xor(uint v, uint mask) { return simd_shuffle_xor(v, ushort(mask)); }
G_FN bool sg_any(bool v) { return simd_any(v); }
G_FN bool sg_all(bool v) { return simd_all(v); }

// ---- maths
G_FN real g_sqrt(real x) { return precise::sqrt(x); }
G_FN real g_rsqrt(real x) { return 1.0f / precise::sqrt(x); }
G_FN real g_rsqrt_near(real x) { const real y = rsqrt(x); return y + y * (0.5f - 0.5f * x * y * y); }
G_FN real g_recip(real x) { return 1.0f / x; }
G_FN real g_exp(real x) { return precise::exp(x); }
G_FN real g_exp2(real x) { return fast::exp2(x); }  // 2^x within 2^-22, relative; subnormal results may be 0
G_FN real g_log(real x) { return precise::log(x); }
G_FN real g_floor(real x) { return floor(x); }
G_FN real g_abs(real x) { return fabs(x); }
G_FN real g_max(real a, real b) { return fmax(a, b); }
G_FN real g_min(real a, real b) { return fmin(a, b); }
G_FN real g_fma(real a, real b, real c) { return fma(a, b, c); }
G_FN real g_copysign(real a, real b) { return copysign(a, b); }
G_FN uint g_minu(uint a, uint b) { return min(a, b); }
G_FN uint g_maxu(uint a, uint b) { return max(a, b); }
G_FN real g_inf() { return as_type<float>(0x7f800000u); }
G_FN real g_nan() { return as_type<float>(0x7fc00000u); }
// By its bits: fast maths may assume that no value is a NaN.
G_FN bool g_isnan(real x) { return (as_type<uint>(x) & 0x7fffffffu) > 0x7f800000u; }

// ---- storage types: convert only through these
G_FN real gk_real(float x) { return x; }
G_FN real gk_real(half x) { return float(x); }
G_FN real gk_real(bfloat x) { return float(x); }
template <typename T> G_FN T gk_to(real x) { return T(x); }

// ---- four reals, eight reals
typedef float4 v4;
struct v8 { v4 lo; v4 hi; };
G_FN real v4_dot(v4 a, v4 b) { return dot(a, b); }
// Words of 8 and 16 bytes.
G_FN uint2 gk_uint2(uint a, uint b) { return uint2(a, b); }
G_FN uint4 gk_uint4(uint a, uint b, uint c, uint d) { return uint4(a, b, c, d); }
// 4 consecutive elements, at an address aligned to 4 of them
template <typename T> G_FN v4 gk_ld4(device const T* p, gk_i64 i) { return v4(*(device const vec<T, 4>*)(p + i)); }
template <typename T> G_FN void gk_st4(device T* p, gk_i64 i, v4 v) { *(device vec<T, 4>*)(p + i) = vec<T, 4>(v); }
// 8 consecutive elements, at an address aligned to 16 bytes
template <typename T> G_FN v8 gk_ld8(device const T* p, gk_i64 i) { return v8{gk_ld4(p, i), gk_ld4(p, i + 4)}; }
template <typename T> G_FN void gk_st8(device T* p, gk_i64 i, v8 v) {
  gk_st4(p, i, v.lo);
  gk_st4(p, i + 4, v.hi);
}
// 8 elements as they lie in memory, to hold in registers; gk_keep makes the compiler convert them anew at each use
template <typename T> struct gk_raw8 { vec<T, 4> lo; vec<T, 4> hi; };
template <typename T> G_FN gk_raw8<T> gk_ld_raw8(device const T* p, gk_i64 i) {
  return gk_raw8<T>{*(device const vec<T, 4>*)(p + i), *(device const vec<T, 4>*)(p + i + 4)};
}
template <typename T> G_FN v8 gk_unpack8(gk_raw8<T> v) { return v8{v4(v.lo), v4(v.hi)}; }
template <typename T> G_FN void gk_keep(thread gk_raw8<T>& v) { (void)v; }
// the same for data used once, which need not stay in a cache
template <typename T> G_FN gk_raw8<T> gk_ld_raw8_once(device const T* p, gk_i64 i) { return gk_ld_raw8(p, i); }
template <typename T> G_FN v4 gk_ld4_once(device const T* p, gk_i64 i) { return gk_ld4(p, i); }
template <typename T> G_FN v8 gk_ld8_once(device const T* p, gk_i64 i) { return gk_ld8(p, i); }
template <typename T> G_FN void gk_st4_once(device T* p, gk_i64 i, v4 v) { gk_st4(p, i, v); }
template <typename T> G_FN void gk_st8_once(device T* p, gk_i64 i, v8 v) { gk_st8(p, i, v); }
// 4 reals of a threadgroup array; i is a multiple of 4
G_FN v4 gk_tg_ld4(threadgroup const real* p, uint i) { return *(threadgroup const v4*)(p + i); }
G_FN void gk_tg_st4(threadgroup real* p, uint i, v4 v) { *(threadgroup v4*)(p + i) = v; }

// ---- relaxed atomics in device memory
G_FN uint ga_add(device uint* p, gk_i64 i, uint v) {
  return atomic_fetch_add_explicit((device atomic_uint*)(p + i), v, memory_order_relaxed);
}
G_FN void ga_add(device real* p, gk_i64 i, real v) {  // Metal 3
  atomic_fetch_add_explicit((device atomic_float*)(p + i), v, memory_order_relaxed);
}
// A store that may meet others of the same value.
template <typename T> G_FN void ga_put(device T* p, gk_i64 i, T v) { p[i] = v; }
