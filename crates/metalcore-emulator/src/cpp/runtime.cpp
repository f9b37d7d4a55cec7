// The emulator's runtime: every thread of a group is a fiber on one host thread, and barriers and simd-group
// operations are where fibers wait for each other. Groups run one after the other, or over several host threads.
#include "abi.h"
#include "fiber.h"
#include "shadow.h"
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace emu {
namespace {

constexpr uint32_t MAX_THREADS = 1024;
constexpr uint32_t MAX_ARRAYS = 64;
constexpr uint32_t MAX_ARGUMENTS = 31;
constexpr size_t ARENA_BYTES = 256 * 1024;

enum class State : uint8_t { Ready, AtBarrier, InSimd, Done };
struct Fiber {
  void* sp;
  State state;
  uint32_t arrays;  // threadgroup arrays declared so far
  Site site;        // where it waits, and in what
  const char* operation;
};
struct SimdGroup {
  uint32_t arrived, epoch;
  Site site;
  const char* operation;
  SimdFunction function;
  uint64_t values[32], aux[32], results[32];
};

struct CellDeleter {
  void operator()(Cell* c) const { std::free(c); }
};
using Cells = std::unique_ptr<Cell[], CellDeleter>;
Cells new_cells(size_t count) { return Cells(static_cast<Cell*>(std::calloc(count ? count : 1, sizeof(Cell)))); }

// One host thread's state. Kept between launches for its stacks and its arena.
struct Worker {
  const Kernel* kernel = nullptr;
  Bound bound{};
  Options options{};
  uint32_t threads = 0, group = 0, current = 0;
  std::string error;
  Stats stats{};

  std::vector<Fiber> fibers;
  Stacks stacks;
  void* scheduler_sp = nullptr;
  std::vector<uint32_t> ring;  // ready fibers, from head
  size_t head = 0, ready = 0;
  uint64_t random = 1;

  SimdGroup simd[MAX_THREADS / 32];
  uint32_t done = 0, at_barrier = 0, epoch = 1, device_epoch = 1;
  Site barrier_site{};

  alignas(64) char arena[ARENA_BYTES];
  size_t arena_used = 0, cells_used = 0;
  Cells cells = new_cells(ARENA_BYTES);
  Object arrays[MAX_ARRAYS];
  uint32_t array_count = 0;

  size_t wrap(size_t i) const { return i >= ring.size() ? i - ring.size() : i; }
  void push(uint32_t i) {
    ring[wrap(head + ready++)] = i;
    fibers[i].state = State::Ready;
  }
  void push_front(uint32_t i) {
    head = wrap(head + ring.size() - 1);
    ring[head] = i;
    ++ready;
    fibers[i].state = State::Ready;
  }
  uint32_t pop() {
    if (options.schedule == Random) {
      random ^= random << 13;
      random ^= random >> 7;
      random ^= random << 17;
      std::swap(ring[head], ring[wrap(head + (random >> 32) % ready)]);
    }
    const uint32_t i = ring[head];
    head = wrap(head + 1);
    --ready;
    return i;
  }
  // The j-th thread in the schedule's order.
  uint32_t in_order(uint32_t j, uint32_t count) const { return options.schedule == Reverse ? count - 1 - j : j; }
};
thread_local Worker* worker = nullptr;

// ---- fibers

// Leaves the running fiber for the next ready one, or for the scheduler where none is.
void leave(Worker* w) {
  void** save = &w->fibers[w->current].sp;
  ++w->stats.switches;
  if (!w->ready) return metalcore_emulator_switch(save, w->scheduler_sp);
  const uint32_t next = w->pop();
  if (next == w->current) return;
  w->current = next;
  metalcore_emulator_switch(save, w->fibers[next].sp);
}
void wait(Worker* w, State state, const char* operation, Site site) {
  Fiber& me = w->fibers[w->current];
  me.state = state;
  me.operation = operation;
  me.site = site;
  leave(w);
}
void fiber_main() {
  Worker* w = worker;
  w->kernel->call(w->bound);
  w->fibers[w->current].state = State::Done;
  ++w->done;
  leave(w);
  std::abort();  // nobody resumes a finished fiber
}

// Ends the group: the scheduler sees the error and resumes no fiber. The stacks are dropped as they are, which
// is sound because kernels own nothing.
[[noreturn]] void fail_with(const char* text) {
  Worker* w = worker;
  char where[256];
  snprintf(where, sizeof where, "%s: group %u thread %u: ", w->kernel->name, w->group, w->current);
  w->error = std::string(where) + text;
  metalcore_emulator_switch(&w->fibers[w->current].sp, w->scheduler_sp);
  std::abort();
}
void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fail_with(text);
}

// ---- what kernels call

void out_of_bounds(const Object* o, ptrdiff_t i, const char* what) {
  if (o->overlapped_by)
    fail("%s of %s[%td], whose memory is %s's too: only IO arguments may overlap", what, o->name, i, o->overlapped_by);
  fail("out-of-bounds %s: %s[%td] of %zu elements of %zu bytes", what, o->name, i, o->count, o->element_bytes);
}
void access(const Object* o, size_t i, Access a) {
  Worker* w = worker;
  const bool local = o->space == ThreadgroupSpace;
  const Touch now{local ? 1 : w->group + 1, w->current, local ? w->epoch : w->device_epoch,
                  local ? w->simd[w->current / 32].epoch : 0};
  char text[512];
  if (!note(o->cells[i], *o, i, a, now, text, sizeof text)) fail_with(text);
}
Context context() {
  Worker* w = worker;
  return {w->group, w->current, w->current & 31u, w->current >> 5};
}
bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file)); }

void barrier(bool device_memory, Site site) {
  Worker* w = worker;
  if (w->at_barrier++ == 0)
    w->barrier_site = site;
  else if (!same(w->barrier_site, site))
    fail("divergent barrier: %s:%d, while another thread waits at %s:%d", site.file, site.line, w->barrier_site.file,
         w->barrier_site.line);
  if (w->at_barrier < w->threads) return wait(w, State::AtBarrier, "tg_barrier", site);
  w->at_barrier = 0;
  ++w->epoch;
  if (device_memory) ++w->device_epoch;
  ++w->stats.barriers;
  for (uint32_t j = 0; j < w->threads; ++j) w->push(w->in_order(j, w->threads));
  leave(w);
}

uint64_t simd(SimdFunction function, const char* name, uint64_t value, uint64_t aux, Site site) {
  Worker* w = worker;
  const uint32_t thread = w->current, lane = thread & 31;
  SimdGroup& g = w->simd[thread >> 5];
  if (g.arrived++ == 0) {
    g.site = site;
    g.operation = name;
    g.function = function;
  } else if (g.function != function || !same(g.site, site)) {
    fail("divergent simd-group operation: %s at %s:%d, while another lane waits in %s at %s:%d", name, site.file, site.line,
         g.operation, g.site.file, g.site.line);
  }
  g.values[lane] = value;
  g.aux[lane] = aux;
  if (g.arrived < 32) {
    wait(w, State::InSimd, name, site);
    return g.results[lane];
  }
  g.arrived = 0;
  ++w->stats.simd_operations;
  if (function)
    function(g.values, g.aux, g.results);
  else
    ++g.epoch;
  const uint64_t result = g.results[lane];
  // This simd group goes on before the others, whose stacks are cold; its last lane without a switch.
  for (uint32_t j = 0; j < 32; ++j) {
    const uint32_t i = (thread & ~31u) + w->in_order(31 - j, 32);
    if (i != thread) w->push_front(i);
  }
  if (w->options.schedule == Random) {
    w->push(thread);
    leave(w);
  }
  return result;
}

// The calling thread's next threadgroup array: made by the first thread to get there, looked up by the others.
const Object* threadgroup_array(size_t count, size_t element_bytes, const char* name) {
  Worker* w = worker;
  const uint32_t k = w->fibers[w->current].arrays++;
  if (k == w->array_count) {
    if (k == MAX_ARRAYS) fail("more than %u threadgroup arrays", MAX_ARRAYS);
    const size_t at = (w->arena_used + 15) & ~size_t(15), end = at + count * element_bytes;
    if (end > w->options.threadgroup_limit)
      fail("threadgroup memory: %zu bytes with %s, limit %u", end, name, w->options.threadgroup_limit);
    w->arena_used = end;
    if (end > w->stats.threadgroup_bytes) w->stats.threadgroup_bytes = end;
    std::memset(w->arena + at, 0xff, count * element_bytes);  // NaN in every float format
    Cell* cells = nullptr;
    if (w->options.check_threadgroup) {
      cells = w->cells.get() + w->cells_used;
      w->cells_used += count;
      std::memset(static_cast<void*>(cells), 0, count * sizeof(Cell));
    }
    w->arrays[k] = Object{w->arena + at, count, element_bytes, cells, name, ThreadgroupSpace, nullptr};
    ++w->array_count;
  }
  const Object& o = w->arrays[k];
  if (o.count != count || o.element_bytes != element_bytes || std::strcmp(o.name, name))
    fail("threads declare different threadgroup arrays: %s, %s", o.name, name);
  return &o;
}

const Runtime RUNTIME{fail, out_of_bounds, access, context, barrier, simd, threadgroup_array};

// ---- groups

// What the threads of a stuck group wait for.
std::string deadlock(const Worker* w) {
  std::string text = std::string(w->kernel->name) + ": group " + std::to_string(w->group) + ": divergent barrier (deadlock):";
  int shown = 0, last_line = -1;
  for (uint32_t i = 0; i < w->threads && shown < 4; ++i) {
    const Fiber& f = w->fibers[i];
    const int line = f.state == State::Done ? 0 : f.site.line;
    if (line == last_line) continue;
    last_line = line;
    ++shown;
    const std::string thread = " thread " + std::to_string(i);
    if (f.state == State::Done)
      text += thread + " has returned;";
    else
      text += thread + " waits in " + f.operation + " at " + f.site.file + ":" + std::to_string(line) + ";";
  }
  return text;
}

void run_group(Worker* w, uint32_t group) {
  w->group = group;
  w->head = w->ready = 0;
  w->done = w->at_barrier = 0;
  w->epoch = w->device_epoch = 1;
  w->array_count = 0;
  w->arena_used = w->cells_used = 0;
  for (uint32_t s = 0; s < w->threads / 32; ++s) {
    w->simd[s].arrived = 0;
    w->simd[s].epoch = 1;
  }
  for (uint32_t i = 0; i < w->threads; ++i) {
    w->fibers[i].arrays = 0;
    w->fibers[i].sp = new_stack(w->stacks.top(i), fiber_main);
  }
  for (uint32_t j = 0; j < w->threads; ++j) w->push(w->in_order(j, w->threads));
  w->current = w->pop();
  metalcore_emulator_switch(&w->scheduler_sp, w->fibers[w->current].sp);
  if (w->error.empty() && w->done != w->threads) w->error = deadlock(w);
}

// Flushes denormals on this host thread for the time of a launch.
class FlushDenormals {
 public:
  explicit FlushDenormals(bool flush) {
#if defined(__x86_64__)
    saved_ = _mm_getcsr();
    if (flush) _mm_setcsr(static_cast<uint32_t>(saved_) | 0x8040);
#else
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    if (flush) asm volatile("msr fpcr, %0" ::"r"(saved_ | (uint64_t(1) << 24)));
#endif
  }
  ~FlushDenormals() {
#if defined(__x86_64__)
    _mm_setcsr(static_cast<uint32_t>(saved_));
#else
    asm volatile("msr fpcr, %0" ::"r"(saved_));
#endif
  }

 private:
  uint64_t saved_;
};

// Workers that no launch uses now.
std::mutex idle_lock;
std::vector<std::unique_ptr<Worker>> idle;
std::unique_ptr<Worker> take_worker() {
  const std::lock_guard<std::mutex> guard(idle_lock);
  if (idle.empty()) return std::make_unique<Worker>();
  auto w = std::move(idle.back());
  idle.pop_back();
  return w;
}
void put_back(std::unique_ptr<Worker> w) {
  const std::lock_guard<std::mutex> guard(idle_lock);
  idle.push_back(std::move(w));
}

struct Launch {
  const Kernel* kernel;
  const Options& options;
  uint32_t groups;
  const Argument* arguments;
  std::vector<Object> objects;
  std::vector<Cells> cells;
  std::atomic<uint32_t> next{0};
  std::atomic<bool> stop{false};

  // Checks the arguments and fills the outputs with NaN. Returns what is wrong, or nothing.
  std::string bind(bool races);
  // An argument that shares memory with argument i although one of the two may assume that none does, or null.
  const char* overlapping(uint32_t i) const;
  void run(Worker* w);
};

bool overlap(const Argument& a, const Argument& b) {
  const auto *x = static_cast<const char*>(a.pointer), *y = static_cast<const char*>(b.pointer);
  return a.bytes && b.bytes && x < y + b.bytes && y < x + a.bytes;
}

const char* Launch::overlapping(uint32_t i) const {
  const ArgumentKind kind = kernel->arguments[i].kind;
  if (kind == InOut) return nullptr;  // the other one is refused
  for (uint32_t j = 0; j < kernel->argument_count; ++j) {
    const ArgumentKind other = kernel->arguments[j].kind;
    if (j == i || other == Params || (kind == In && other == In)) continue;
    if (overlap(arguments[i], arguments[j])) return arguments[j].name;
  }
  return nullptr;
}

std::string Launch::bind(bool races) {
  const uint32_t count = kernel->argument_count;
  objects.resize(count);
  cells.resize(count);
  for (uint32_t i = 0; i < count; ++i) {
    const ArgumentInfo& info = kernel->arguments[i];
    const Argument& a = arguments[i];
    const std::string name = a.name;
    if (info.index != i)
      return name + " is argument " + std::to_string(i) + " and declared with index " + std::to_string(info.index);
    if (info.kind == Params) {
      if (a.bytes == info.element_bytes) continue;
      return "parameter block " + name + " of " + std::to_string(a.bytes) + " bytes, kernel expects " +
             std::to_string(info.element_bytes);
    }
    // the largest power of two in its size is as much as an element can ask for
    if (reinterpret_cast<uintptr_t>(a.pointer) % (info.element_bytes & -info.element_bytes))
      return name + " is not aligned to its element";
    const char* shares = overlapping(i);  // no error where the kernel leaves the argument alone
    const size_t elements = shares ? 0 : a.bytes / info.element_bytes;
    if (info.kind == Out && elements) std::memset(a.pointer, 0xff, a.bytes);
    if (races && info.kind != In) cells[i] = new_cells(elements);
    objects[i] = Object{static_cast<char*>(a.pointer), elements, info.element_bytes, cells[i].get(), a.name,
                        DeviceSpace, shares};
  }
  return {};
}

void Launch::run(Worker* w) {
  worker = w;
  w->kernel = kernel;
  w->options = options;
  w->bound = Bound{arguments, objects.data()};
  w->threads = kernel->threads;
  w->error.clear();
  w->stats = Stats{};
  w->random = 0x9e3779b97f4a7c15ull ^ (options.seed << 1);
  w->fibers.resize(kernel->threads);
  w->ring.resize(kernel->threads);
  if (w->stacks.reserve(kernel->threads)) {
    const FlushDenormals flush(options.flush_denormals && !kernel->float64);
    for (uint32_t i; !stop && (i = next++) < groups;) {
      run_group(w, options.schedule == Reverse ? groups - 1 - i : i);
      if (!w->error.empty()) stop = true;
    }
  } else {
    w->error = "no memory for the threads' stacks";
  }
  worker = nullptr;
}

std::string refuse(const Kernel* k, uint32_t threads, uint32_t argument_count, const Options& o) {
  if (k->argument_count > MAX_ARGUMENTS)
    return "kernel with " + std::to_string(k->argument_count) + " arguments: at most " + std::to_string(MAX_ARGUMENTS);
  if (argument_count != k->argument_count)
    return std::to_string(argument_count) + " arguments, kernel takes " + std::to_string(k->argument_count);
  if (!threads || threads > MAX_THREADS || threads % 32)
    return "group size " + std::to_string(threads) + ": not a multiple of 32 up to " + std::to_string(MAX_THREADS);
  if (threads != k->threads)
    return "group size " + std::to_string(threads) + ", kernel declares " + std::to_string(k->threads);
  if (o.threadgroup_limit > ARENA_BYTES) return "threadgroup limit above " + std::to_string(ARENA_BYTES) + " bytes";
  return {};
}

std::string launch(const Kernel* k, uint32_t groups, uint32_t threads, uint32_t argument_count, const Argument* arguments,
                   const Options& options, Stats& stats) {
  std::string wrong = refuse(k, threads, argument_count, options);
  if (!wrong.empty()) return std::string(k->name) + ": " + wrong;
  const uint32_t wanted = options.workers < groups ? options.workers : groups;
  const uint32_t count = wanted ? wanted : 1;
  Launch launch{k, options, groups, arguments, {}, {}};
  // Cells of device memory are not locked: they need one worker.
  wrong = launch.bind(options.check_device && count == 1);
  if (!wrong.empty()) return std::string(k->name) + ": " + wrong;
  std::vector<std::unique_ptr<Worker>> workers;
  for (uint32_t i = 0; i < count; ++i) workers.push_back(take_worker());
  std::vector<std::thread> others;
  for (uint32_t i = 1; i < count; ++i) others.emplace_back([&launch, w = workers[i].get()] { launch.run(w); });
  launch.run(workers[0].get());
  for (auto& t : others) t.join();
  std::string error;
  for (auto& w : workers) {
    stats.switches += w->stats.switches;
    stats.barriers += w->stats.barriers;
    stats.simd_operations += w->stats.simd_operations;
    if (w->stats.threadgroup_bytes > stats.threadgroup_bytes) stats.threadgroup_bytes = w->stats.threadgroup_bytes;
    if (error.empty()) error = w->error;
    put_back(std::move(w));
  }
  return error;
}

}  // namespace
}  // namespace emu

#define EMU_EXPORT extern "C" __attribute__((visibility("default")))
EMU_EXPORT const emu::Runtime* metalcore_emulator_runtime() { return &emu::RUNTIME; }
// Runs the groups. Returns 0, or 1 with the first error in `error`.
EMU_EXPORT int metalcore_emulator_launch(const emu::Kernel* kernel, uint32_t groups, uint32_t threads, uint32_t argument_count,
                                         const emu::Argument* arguments, const emu::Options* options, emu::Stats* stats,
                                         char* error, size_t error_length) {
  const std::string text = emu::launch(kernel, groups, threads, argument_count, arguments, *options, *stats);
  if (text.empty()) return 0;
  snprintf(error, error_length, "%s", text.c_str());
  return 1;
}
