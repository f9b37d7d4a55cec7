// Race detection: one cell per element remembers who wrote and who read it last, and between which barriers.
#pragma once
#include "abi.h"
#include <cstdio>

namespace emu {

// Who touches an element, and when. In threadgroup memory `group` is 1 for everybody: no other group sees it.
struct Touch {
  uint32_t group;   // number + 1; 0: nobody yet
  uint32_t thread;
  uint32_t epoch;       // barriers of the group that order this memory, so far
  uint32_t simd_epoch;  // barriers of the simd group: they order threadgroup memory only
};

struct Cell {
  Touch writer;
  Touch reader;  // the last
  Touch other;   // an earlier reader, as far from the last as there was one
};

// How far `before` is from `now` without a barrier between: 0 ordered, 1 another lane, 2 another simd group,
// 3 another group.
static inline int distance(const Touch& before, const Touch& now, int space) {
  if (!before.group) return 0;
  if (before.group != now.group) return 3;
  if (before.thread == now.thread || before.epoch != now.epoch) return 0;
  if (before.thread / 32 != now.thread / 32) return 2;
  return space == ThreadgroupSpace && before.simd_epoch != now.simd_epoch ? 0 : 1;
}

// Notes the touch. Where it is an error, writes what is wrong to `text` and returns false.
static inline bool note(Cell& c, const Object& o, size_t i, Access access, const Touch& now, char* text, size_t length) {
  const auto race = [&](const Touch& before, const char* did) {
    const char* does = access == Write ? "written" : "read";
    if (before.group != now.group)
      snprintf(text, length, "race: %s[%zu] was %s by group %u in this launch and is now %s", o.name, i, did,
               before.group - 1, does);
    else
      snprintf(text, length, "race: %s[%zu] was %s by thread %u and is now %s with no %sbarrier between", o.name, i, did,
               before.thread, does, o.space == ThreadgroupSpace ? "" : "device-memory ");
    return false;
  };
  if (distance(c.writer, now, o.space)) return race(c.writer, "written");
  if (access == Write) {
    if (distance(c.reader, now, o.space)) return race(c.reader, "read");
    if (distance(c.other, now, o.space)) return race(c.other, "read");
    c.writer = now;
    return true;
  }
  if (o.space == ThreadgroupSpace && !c.writer.group) {
    snprintf(text, length, "read of uninitialised threadgroup memory: %s[%zu]", o.name, i);
    return false;
  }
  if (distance(c.reader, now, o.space) >= distance(c.other, now, o.space)) c.other = c.reader;
  c.reader = now;
  return true;
}

}  // namespace emu
