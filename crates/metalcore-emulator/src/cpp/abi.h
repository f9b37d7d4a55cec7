// What a kernel library, the runtime and the Rust side (ffi.rs) share. C++17 without headers of the C++ library,
// so that a kernel compiles quickly.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace emu {

enum Space { DeviceSpace = 1, ThreadgroupSpace = 3 };
enum Access { Read = 0, Write = 1 };

// A device buffer or a threadgroup array, with its bounds. `cells` is null where races are not looked for.
struct Cell;
struct Object {
  char* base;
  size_t count;  // elements
  size_t element_bytes;
  Cell* cells;
  const char* name;
  int space;
  const char* overlapped_by;  // an argument that shares its memory; `count` is then 0, so that every access asks
};

// Where in the kernel's text something happens.
struct Site {
  const char* file;
  int line;
};

struct Context {
  uint32_t grp, tid, lane, sg;
};

// A simd-group operation: from one value and one auxiliary number per lane to one result per lane.
using SimdFunction = void (*)(const uint64_t* values, const uint64_t* aux, uint64_t* results);

// What the runtime offers a kernel.
struct Runtime {
  void (*fail)(const char* format, ...);  // does not return
  void (*out_of_bounds)(const Object*, ptrdiff_t index, const char* what);  // does not return
  void (*access)(const Object*, size_t index, Access);  // looks for races and uninitialised reads
  Context (*context)();
  void (*barrier)(bool device_memory, Site);
  uint64_t (*simd)(SimdFunction, const char* name, uint64_t value, uint64_t aux, Site);  // null function: a barrier
  const Object* (*threadgroup_array)(size_t count, size_t element_bytes, const char* name);
};

// ---- kernels and launches
enum ArgumentKind : uint32_t { In = 0, Out = 1, InOut = 2, Params = 3 };
struct ArgumentInfo {
  uint32_t index;
  ArgumentKind kind;
  uint64_t element_bytes;  // of the whole block for Params
};
struct Argument {
  void* pointer;
  uint64_t bytes;
  const char* name;
};
struct Bound {  // the arguments of a launch, as a kernel sees them
  const Argument* arguments;
  const Object* objects;
};
struct Kernel {
  const char* name;
  const char* signature;  // the text of its parameter list, which has their names
  const ArgumentInfo* arguments;
  void (*call)(const Bound&);
  Kernel* next;
  uint32_t argument_count;
  uint32_t threads;
  uint32_t float64;
};

enum Schedule : uint32_t { Forward = 0, Reverse = 1, Random = 2 };
struct Options {
  uint64_t seed;
  uint32_t schedule;
  uint32_t workers;
  uint32_t check_threadgroup;
  uint32_t check_device;
  uint32_t threadgroup_limit;  // bytes
  uint32_t flush_denormals;
};
struct Stats {
  uint64_t switches, barriers, simd_operations, threadgroup_bytes;
};

}  // namespace emu
