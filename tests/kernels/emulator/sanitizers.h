// What the compiler's sanitizers have to know of fibers; nothing where they are off.
#pragma once
#include <cstddef>

#ifdef __SANITIZE_THREAD__  // it takes fibers for threads, and reports what no meeting orders
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreReadsBegin(const char*, int), AnnotateIgnoreReadsEnd(const char*, int),
    AnnotateIgnoreWritesBegin(const char*, int), AnnotateIgnoreWritesEnd(const char*, int);
#else
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
inline void AnnotateIgnoreReadsBegin(const char*, int) {}
inline void AnnotateIgnoreReadsEnd(const char*, int) {}
inline void AnnotateIgnoreWritesBegin(const char*, int) {}
inline void AnnotateIgnoreWritesEnd(const char*, int) {}
#endif

#ifdef __SANITIZE_ADDRESS__  // it has to know the stack
#include <sanitizer/common_interface_defs.h>
#else
extern "C" inline void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
extern "C" inline void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
#endif

namespace sanitizers {

// To the thread sanitizer: those who leave see what those who came have written. The next meeting
// has another mark, as one may come there before another has left here.
struct Meeting {
  char marks[2];

  void come(unsigned number) { __tsan_release(&marks[number % 2]); }
  void leave(unsigned number) { __tsan_acquire(&marks[number % 2]); }
};

// What the device does itself is no business of the thread sanitizer.
struct Unseen {
  Unseen() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  ~Unseen() { AnnotateIgnoreReadsEnd("", 0), AnnotateIgnoreWritesEnd("", 0); }
};

}  // namespace sanitizers
