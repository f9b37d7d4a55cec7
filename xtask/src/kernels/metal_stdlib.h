// Stand-in for Apple's <metal_stdlib>: declarations only, from the Metal Shading Language specification, of what
// kernels may use. clang reads it as C++ for OpenCL 2021, without float64 and without program-scope variables.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define atomic_uint msl_atomic_uint
#define atomic_int msl_atomic_int
#define atomic_float msl_atomic_float
#define device __global
#define threadgroup __local
#define thread __private
// The check reads these numbers from the syntax tree.
#define buffer(index) clang::annotate("buffer", index)
#define max_total_threads_per_threadgroup(threads) clang::annotate("threads", threads)
// Keywords of Metal that clang does not know: as a name, each is a syntax error that says so.
#define vertex "vertex is a Metal keyword"
#define fragment "fragment is a Metal keyword"
#define object "object is a Metal keyword"
#define mesh "mesh is a Metal keyword"
#define intersection "intersection is a Metal keyword"
#define visible "visible is a Metal keyword"
#define stitchable "stitchable is a Metal keyword"
#define ray_data "ray_data is a Metal keyword"
#define object_data "object_data is a Metal keyword"
#define threadgroup_imageblock "threadgroup_imageblock is a Metal keyword"
typedef unsigned char uchar; typedef unsigned short ushort; typedef unsigned int uint; typedef unsigned long ulong;
typedef __SIZE_TYPE__ size_t;
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
struct bfloat;
namespace metal {
// no swizzles: the other targets have none. Conversions between element types are explicit, as in Metal.
template <typename T, int N> struct vec;
#define MSL_OPS(N) \
  vec() = default; vec(T); template <typename U> explicit vec(vec<U, N>); \
  vec operator+(vec) const; vec operator-(vec) const; vec operator*(vec) const; vec operator/(vec) const; vec operator-() const; \
  vec operator*(T) const; vec operator/(T) const; vec operator+(T) const; vec operator-(T) const; friend vec operator*(T, vec); \
  void operator+=(vec); void operator-=(vec); void operator*=(vec); void operator*=(T); T operator[](uint) const;
template <typename T> struct vec<T, 2> { T x, y; vec(T, T); MSL_OPS(2) };
template <typename T> struct vec<T, 3> { T x, y, z; vec(T, T, T); MSL_OPS(3) };
template <typename T> struct vec<T, 4> { T x, y, z, w; vec(T, T, T, T); MSL_OPS(4) };
}
#define MSL_V(T) typedef metal::vec<T, 2> T##2; typedef metal::vec<T, 3> T##3; typedef metal::vec<T, 4> T##4;
MSL_V(float) MSL_V(half) MSL_V(int) MSL_V(uint) MSL_V(short) MSL_V(ushort) MSL_V(bfloat)
// bfloat: no implicit conversion from float or half (Apple: "cannot initialize a variable of type 'bfloat' with an
// rvalue of type 'float'"), none to half; to float is taken as explicit too.
struct bfloat {
  ushort bits_;
  bfloat() = default;
  explicit bfloat(float);
  explicit bfloat(int);
  explicit operator float() const;
};
namespace metal {
template <typename A, typename B> struct is_same { static constant constexpr bool value = false; };
template <typename A> struct is_same<A, A> { static constant constexpr bool value = true; };
// math: one overload per type, so that mixed arguments are ambiguous as they are in Metal
#define MSL_F1(n) float n(float); half n(half); float4 n(float4);
#define MSL_F2(n) float n(float, float); half n(half, half); float4 n(float4, float4);
#define MSL_F3(n) float n(float, float, float); half n(half, half, half);
#define MSL_MATH \
  MSL_F1(sqrt) MSL_F1(rsqrt) MSL_F1(fabs) MSL_F1(exp) MSL_F1(exp2) MSL_F1(log) MSL_F1(log2) MSL_F1(sin) MSL_F1(cos) MSL_F1(tan) \
  MSL_F1(tanh) MSL_F1(floor) MSL_F1(ceil) MSL_F1(rint) MSL_F1(round) MSL_F1(trunc) MSL_F2(pow) MSL_F2(fmax) MSL_F2(fmin) MSL_F2(fmod) \
  MSL_F2(atan2)
MSL_MATH
MSL_F1(sign) MSL_F1(fract) MSL_F1(saturate) MSL_F2(copysign) MSL_F2(step) MSL_F3(fma) MSL_F3(mix) MSL_F3(clamp) MSL_F3(smoothstep) MSL_F2(max) MSL_F2(min)
float abs(float); half abs(half); int abs(int);
int max(int, int); uint max(uint, uint); int min(int, int); uint min(uint, uint); int clamp(int, int, int); uint clamp(uint, uint, uint);
uint popcount(uint); uint clz(uint); uint ctz(uint); uint rotate(uint, uint); uint mulhi(uint, uint); int mulhi(int, int);
bool isnan(float); bool isinf(float); bool isfinite(float); bool isnan(half);
float dot(float4, float4); float dot(float3, float3); float dot(float2, float2); half dot(half4, half4);
float length(float4); float distance(float4, float4); float4 normalize(float4);
float select(float, float, bool);
namespace precise { MSL_MATH }
namespace fast { MSL_MATH }
// 4-byte and 2-byte types only: no 64-bit, no bfloat
#define MSL_SG(T) T simd_sum(T); T simd_product(T); T simd_max(T); T simd_min(T); T simd_shuffle(T, ushort); T simd_shuffle_xor(T, ushort); \
  T simd_shuffle_down(T, ushort); T simd_shuffle_up(T, ushort); T simd_broadcast(T, ushort); T simd_broadcast_first(T); T simd_prefix_inclusive_sum(T); T simd_prefix_exclusive_sum(T);
MSL_SG(float) MSL_SG(half) MSL_SG(int) MSL_SG(uint)
template <typename T> T simd_sum(T) = delete; template <typename T> T simd_max(T) = delete; template <typename T> T simd_min(T) = delete;
template <typename T> T simd_shuffle(T, ushort) = delete; template <typename T> T simd_shuffle_xor(T, ushort) = delete;
bool simd_any(bool); bool simd_all(bool);
enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
template <mem_flags F> void msl_tg_barrier_(); template <mem_flags F> void msl_sg_barrier_();
#define threadgroup_barrier(...) msl_tg_barrier_<(__VA_ARGS__)>()
#define simdgroup_barrier(...) msl_sg_barrier_<(__VA_ARGS__)>()
enum memory_order { memory_order_relaxed };
struct atomic_uint { uint v_; }; struct atomic_int { int v_; }; struct atomic_float { float v_; };
#define MSL_AT(S, A, T) T atomic_fetch_add_explicit(S A*, T, memory_order); T atomic_load_explicit(const S A*, memory_order); void atomic_store_explicit(S A*, T, memory_order); \
  T atomic_fetch_max_explicit(S A*, T, memory_order); T atomic_exchange_explicit(S A*, T, memory_order);
MSL_AT(device, atomic_uint, uint) MSL_AT(threadgroup, atomic_uint, uint) MSL_AT(device, atomic_int, int) MSL_AT(threadgroup, atomic_int, int)
float atomic_fetch_add_explicit(device atomic_float*, float, memory_order);
template <typename T, typename U> T as_type(U);
}  // namespace metal
