// The stack switch under the emulator's threads, and the memory of their stacks.
#pragma once
#include <cstdint>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

// Saves the callee-saved registers on the running stack, stores its top in *save, and goes on with the stack `load`.
extern "C" void metalcore_emulator_switch(void** save, void* load);
#if defined(__APPLE__)
#define EMU_SWITCH "_metalcore_emulator_switch"
#else
#define EMU_SWITCH "metalcore_emulator_switch"
#endif

namespace emu {
#if defined(__x86_64__)
// A jump, not a return: the processor's return-address prediction would be wrong at every switch.
asm(".text\n.globl " EMU_SWITCH "\n" EMU_SWITCH ":\n"
    " pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
    " movq %rsp,(%rdi)\n movq %rsi,%rsp\n"
    " popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n popq %rcx\n jmp *%rcx\n");
static inline void* new_stack(char* top, void (*entry)()) {
  void** sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
  *--sp = nullptr;  // rsp % 16 == 8 at the entry, as after a call
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  return sp;
}
#elif defined(__aarch64__)
asm(".text\n.globl " EMU_SWITCH "\n.p2align 2\n" EMU_SWITCH ":\n"
    " sub sp, sp, #160\n"
    " stp x19,x20,[sp,#0]\n stp x21,x22,[sp,#16]\n stp x23,x24,[sp,#32]\n stp x25,x26,[sp,#48]\n"
    " stp x27,x28,[sp,#64]\n stp x29,x30,[sp,#80]\n stp d8,d9,[sp,#96]\n stp d10,d11,[sp,#112]\n"
    " stp d12,d13,[sp,#128]\n stp d14,d15,[sp,#144]\n"
    " mov x9, sp\n str x9,[x0]\n mov sp, x1\n"
    " ldp x19,x20,[sp,#0]\n ldp x21,x22,[sp,#16]\n ldp x23,x24,[sp,#32]\n ldp x25,x26,[sp,#48]\n"
    " ldp x27,x28,[sp,#64]\n ldp x29,x30,[sp,#80]\n ldp d8,d9,[sp,#96]\n ldp d10,d11,[sp,#112]\n"
    " ldp d12,d13,[sp,#128]\n ldp d14,d15,[sp,#144]\n add sp, sp, #160\n ret\n");
static inline void* new_stack(char* top, void (*entry)()) {
  void** sp = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t(15));
  sp -= 20;
  std::memset(sp, 0, 160);
  sp[11] = reinterpret_cast<void*>(entry);  // x30
  return sp;
}
#else
#error "the emulator runs on x86-64 and aarch64"
#endif

// Stacks for one group's threads, kept for the next group. Below each is a page that may not be touched.
class Stacks {
 public:
  static constexpr size_t BYTES = 64 * 1024;
  ~Stacks() { release(); }
  bool reserve(uint32_t count) {
    if (count <= count_) return true;
    release();
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    stride_ = BYTES + page;
    void* p = mmap(nullptr, stride_ * count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return false;
    base_ = static_cast<char*>(p);
    count_ = count;
    for (uint32_t i = 0; i < count; ++i) mprotect(base_ + i * stride_, page, PROT_NONE);
    return true;
  }
  // Tops are spread over the cache sets: at equal offsets they would evict each other.
  char* top(uint32_t i) const { return base_ + (i + 1) * stride_ - (i * 9 % 64) * 64; }

 private:
  void release() {
    if (base_) munmap(base_, stride_ * count_);
    base_ = nullptr;
    count_ = 0;
  }
  char* base_ = nullptr;
  size_t stride_ = 0;
  uint32_t count_ = 0;
};
}  // namespace emu
