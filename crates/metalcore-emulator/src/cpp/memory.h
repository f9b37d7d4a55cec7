// Pointers that carry their address space and their object's bounds. Included by prelude.h, in a kernel library.
#pragma once
#include "abi.h"

namespace emu {

static const Runtime* runtime;

template <class T> struct plain { using type = T; };
template <class T> struct plain<const T> { using type = T; };
template <class T> using plain_t = typename plain<T>::type;

static inline void touch(const Object* o, ptrdiff_t i, Access a) {
  if (__builtin_expect((size_t)i >= o->count, 0)) runtime->out_of_bounds(o, i, a == Write ? "write" : "read");
  if (o->cells) runtime->access(o, (size_t)i, a);
}

// What p[i] is: a read where it is converted to T, a write where it is assigned to. It has no address.
template <class T, int SPACE> struct reference {
  using V = plain_t<T>;
  T* p;
  const Object* o;
  reference(T* pointer, const Object* object) : p(pointer), o(object) {}
  reference(const reference&) = default;
  ptrdiff_t index() const { return ((const char*)p - o->base) / (ptrdiff_t)sizeof(T); }
  operator V() const { touch(o, index(), Read); return *p; }
  V operator=(V v) { touch(o, index(), Write); *p = v; return v; }
  V operator=(const reference& other) { return *this = (V)other; }
#define EMU_COMPOUND(op) V operator op##=(V v) { return *this = (V)((V)*this op v); }
  EMU_COMPOUND(+) EMU_COMPOUND(-) EMU_COMPOUND(*) EMU_COMPOUND(/) EMU_COMPOUND(%)
  EMU_COMPOUND(|) EMU_COMPOUND(&) EMU_COMPOUND(^) EMU_COMPOUND(<<) EMU_COMPOUND(>>)
#undef EMU_COMPOUND
  V operator++() { return *this += V(1); }
  V operator--() { return *this -= V(1); }
  V operator++(int) { V v = *this; *this = (V)(v + V(1)); return v; }
  V operator--(int) { V v = *this; *this = (V)(v - V(1)); return v; }
  void operator&() const = delete;
};

template <class A, class B> struct same { static constexpr bool value = false; };
template <class A> struct same<A, A> { static constexpr bool value = true; };
template <bool, class T> struct only_if {};
template <class T> struct only_if<true, T> { using type = T; };

template <class T, int SPACE> struct pointer {
  T* p = nullptr;
  const Object* o = nullptr;
  pointer() {}
  pointer(T* address, const Object* object) : p(address), o(object) {}
  // pointer to T becomes pointer to const T
  template <class U, class = typename only_if<same<const U, T>::value, void>::type>
  pointer(const pointer<U, SPACE>& q) : p(q.p), o(q.o) {}
  reference<T, SPACE> operator[](ptrdiff_t i) const { return reference<T, SPACE>(p + i, o); }
  reference<T, SPACE> operator*() const { return reference<T, SPACE>(p, o); }
  pointer operator+(ptrdiff_t i) const { return pointer(p + i, o); }
  pointer operator-(ptrdiff_t i) const { return pointer(p - i, o); }
  pointer& operator+=(ptrdiff_t i) { p += i; return *this; }
  pointer& operator-=(ptrdiff_t i) { p -= i; return *this; }
  ptrdiff_t index() const { return ((const char*)p - o->base) / (ptrdiff_t)sizeof(T); }
};
template <class T> using device_pointer = pointer<T, DeviceSpace>;
template <class T> using threadgroup_pointer = pointer<T, ThreadgroupSpace>;

// ---- kernel parameters: pointers and blocks that know their index and what they are for
template <uint32_t INDEX, class T, ArgumentKind KIND> struct Buffer : device_pointer<T> {
  static constexpr ArgumentInfo info{INDEX, KIND, sizeof(T)};
  explicit Buffer(const Bound& b) : device_pointer<T>((T*)b.objects[INDEX].base, &b.objects[INDEX]) {}
};
template <uint32_t INDEX, class T> struct Block : T {
  static constexpr ArgumentInfo info{INDEX, Params, sizeof(T)};
  explicit Block(const Bound& b) { __builtin_memcpy((T*)this, b.arguments[INDEX].pointer, sizeof(T)); }
};

// ---- registration, when the library is loaded
static Kernel* kernels = nullptr;
template <class F, F* function> struct Thunk;
template <class... A, void (*function)(A...)> struct Thunk<void(A...), function> {
  static void call(const Bound& b) { function(A(b)...); }
  static constexpr ArgumentInfo arguments[] = {A::info...};
  static constexpr uint32_t count = sizeof...(A);
};
struct Registration {
  Kernel kernel;
  explicit Registration(const Kernel& k) : kernel(k) {
    kernel.next = kernels;
    kernels = &kernel;
  }
};

}  // namespace emu

extern "C" __attribute__((visibility("default"))) const emu::Kernel* metalcore_emulator_kernels(const emu::Runtime* r) {
  emu::runtime = r;
  return emu::kernels;
}
