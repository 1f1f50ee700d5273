// The part of CUDA that kernels use, on the CPU. It stands before the real header in the search path.
//
// A thread is a fiber, and all fibers belong to one thread of the operating system. A fiber runs
// until it waits for others (a barrier, a warp operation) or returns; the order is random. Blocks
// run one after another, in random order too. What CUDA leaves undefined here is an exception.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "sanitizers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One for all blocks, as they run in turn. The section lets `poison` find all of them.
#define __shared__ static __attribute__((section("emulated_shared")))

extern char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

// As on a card; a test may set less, so that a few blocks go around.
static int64_t TALLEST = 65535;

namespace emulator {

using Place = std::source_location;

constexpr unsigned WARP = 32;
constexpr size_t STACK = 256 << 10;

struct Fiber {
  ucontext_t context;
  const void* bottom;  // of its stack, for the sanitizer
  size_t size;
  void* fake;
  void* tsan;
};

enum State { READY, AT_BARRIER, IN_WARP, RETURNED };

struct Thread : Fiber {
  std::unique_ptr<char[]> stack;
  unsigned number;
  State state;
  Place place;     // where it waits,
  unsigned lanes;  // in a warp for these lanes,
  uint64_t value;  // and what it gives to them
  unsigned met;    // how often it has met others
};

[[noreturn]] inline void fail(const std::string& what, const Place& place) {
  std::string file = place.file_name();
  throw std::runtime_error(file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line()) +
                           ": " + what);
}

// Runs the blocks of a launch. Fibers change in `stop`, `resume` and `main`.
struct Device {
  std::deque<Thread> threads;  // kept from launch to launch; a block uses the first `count`
  unsigned count = 0, at_barrier = 0;
  int64_t launches = 0;
  void* launched = nullptr;  // the last kernel
  std::unique_ptr<char[]> shared;  // what a launch asks for
  size_t shared_bytes = 0;
  std::vector<Thread*> ready;
  uint64_t given[1024];  // what each thread gave in the last operation of its warp
  Thread* running = nullptr;
  std::mutex one_at_a_time;
  Fiber scheduler;
  std::function<void()> kernel;
  std::exception_ptr failure;
  std::mt19937 random;
  sanitizers::Meeting blocks, barrier;
  unsigned turn = 0;  // of a block; it comes after all of the one before

  static void change(Fiber& from, Fiber& to) {
    __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.size);
    __tsan_switch_to_fiber(to.tsan, 1);  // 1: which orders nothing
    swapcontext(&from.context, &to.context);
    __sanitizer_finish_switch_fiber(from.fake, &to.bottom, &to.size);
  }

  // The running thread waits, or has returned. Back here, it may go on, or unwinds its stack.
  void stop(State state, const Place& place = {}) {
    running->state = state, running->place = place;
    change(*running, scheduler);
    if (failure) throw failure;
  }

  static void main();  // of every fiber

  Thread& thread(unsigned number) {
    if (number == threads.size()) {
      Thread& made = threads.emplace_back();
      made.number = number, made.size = STACK;
      made.stack = std::make_unique_for_overwrite<char[]>(STACK);
      made.bottom = made.stack.get();
      made.tsan = __tsan_create_fiber(0);
      getcontext(&made.context);
      made.context.uc_stack.ss_sp = made.stack.get(), made.context.uc_stack.ss_size = STACK;
      makecontext(&made.context, main, 0);
    }
    return threads[number];
  }

  void resume(Thread& next) {
    running = &next;
    unsigned n = next.number;
    threadIdx = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
    change(scheduler, next);
  }

  // Those from `begin` to `end` go on, in random order and before any other that is ready.
  void release(unsigned begin, unsigned end, unsigned lanes = ~0u) {
    size_t before = ready.size();
    for (unsigned n = begin; n < end; n++)
      if (lanes >> (n - begin) % WARP & 1) threads[n].state = READY, ready.push_back(&threads[n]);
    std::shuffle(ready.begin() + before, ready.end(), random);
  }

  // Whether all of these wait in one place of the source, for the same lanes.
  bool together(const Thread& as, unsigned begin, unsigned end, unsigned lanes = ~0u) {
    for (unsigned n = begin; n < end; n++)
      if (lanes >> (n - begin) % WARP & 1)
        if (n >= count || threads[n].state != as.state || threads[n].lanes != as.lanes ||
            threads[n].place.line() != as.place.line() ||
            threads[n].place.column() != as.place.column())
          return false;
    return true;
  }

  // After a thread has stopped: those that waited for nobody else go on.
  void meet(const Thread& last) {
    unsigned warp = last.number / WARP * WARP;
    if (last.state == AT_BARRIER && ++at_barrier == count && together(last, 0, count)) {
      at_barrier = 0;
      release(0, count);
    } else if (last.state == IN_WARP && together(last, warp, warp + WARP, last.lanes)) {
      for (unsigned n = warp; n < std::min(warp + WARP, count); n++) given[n] = threads[n].value;
      release(warp, warp + WARP, last.lanes);
    }
  }

  void run_block() {
    for (char* p = __start_emulated_shared; p < __stop_emulated_shared; p++) poison(p);
    memset(shared.get(), 0xCD, shared_bytes);
    at_barrier = 0;
    turn++;
    ready.clear();
    for (unsigned n = 0; n < count; n++) thread(n).lanes = thread(n).met = 0;
    release(0, count);
    while (!ready.empty() && !failure) {
      Thread* next = ready.back();
      ready.pop_back();
      resume(*next);
      meet(*next);
    }
    try {
      for (unsigned n = 0; n < count && !failure; n++)
        if (threads[n].state != RETURNED) stuck(threads[n]);
    } catch (...) {
      failure = std::current_exception();
    }
    if (!failure) return;
    for (unsigned n = 0; n < count; n++)
      if (threads[n].state != RETURNED) resume(threads[n]);  // to unwind
    blocks.leave(turn);
    std::rethrow_exception(std::exchange(failure, nullptr));
  }

  __attribute__((no_sanitize("address"))) static void poison(volatile char* p) { *p = (char)0xCD; }

  [[noreturn]] void stuck(const Thread& one) {
    unsigned warp = one.number / WARP * WARP, here = 0, returned = 0;
    bool all = one.state == AT_BARRIER;
    unsigned begin = all ? 0 : warp, end = all ? count : std::min(warp + WARP, count);
    for (unsigned n = begin; n < end; n++) {
      here += threads[n].state == one.state && threads[n].place.line() == one.place.line();
      returned += threads[n].state == RETURNED;
    }
    fail(std::to_string(here) + " of the " + std::to_string(end - begin) + " threads of a " +
             (all ? "block wait here" : "warp meet here") + " for others that never come: " +
             std::to_string(returned) + " have returned, " +
             std::to_string(end - begin - here - returned) + " wait elsewhere",
         one.place);
  }

  void run(dim3 grid, dim3 block, size_t bytes, std::function<void()> body) {
    std::lock_guard lock(one_at_a_time);
    shared.reset(new char[bytes]);  // of this size, so that the sanitizer sees its end
    shared_bytes = bytes;
    uint64_t size = (uint64_t)grid.x * grid.y * grid.z;
    uint64_t width = (uint64_t)block.x * block.y * block.z;
    auto text = [](dim3 d) {
      return std::to_string(d.x) + " x " + std::to_string(d.y) + " x " + std::to_string(d.z);
    };
    if (size == 0 || width == 0 || width > 1024 || block.z > 64 || grid.x > 0x7FFFFFFF ||
        grid.y > TALLEST || grid.z > 65535)
      throw std::runtime_error("no card launches " + text(grid) + " blocks of " + text(block) +
                               " threads");
    blocks.come(turn);
    sanitizers::Unseen unseen;
    scheduler.tsan = __tsan_get_current_fiber();
    gridDim = grid, blockDim = block, count = (unsigned)width, kernel = std::move(body);
    launches++;
    std::vector<uint64_t> order(size);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    for (uint64_t b : order) {
      blockIdx = {(unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y),
                  (unsigned)(b / grid.x / grid.y)};
      run_block();
    }
    blocks.leave(turn);
  }
};

static Device& device = *new Device;  // it outlives all that runs at the end of the process

inline void Device::main() {
  __sanitizer_finish_switch_fiber(nullptr, &device.scheduler.bottom, &device.scheduler.size);
  for (;;) {  // a turn for each block
    device.blocks.leave(device.turn - 1);
    try {
      if (!device.failure) device.kernel();
    } catch (...) {
      sanitizers::Unseen unseen;
      if (!device.failure) device.failure = std::current_exception();
    }
    device.blocks.come(device.turn);
    device.running->state = RETURNED;
    change(*device.running, device.scheduler);
  }
}

// All `lanes` of the warp give a value; returns that of lane `from`.
template <class T>
T exchange(unsigned lanes, T value, unsigned from, const Place& place) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  Thread& self = *device.running;
  if (!(lanes >> self.number % WARP & 1)) fail("a lane is not in its own mask", place);
  if (from >= WARP || !(lanes >> from & 1)) fail("a lane reads from one outside the mask", place);
  self.lanes = lanes;
  memcpy(&self.value, &value, sizeof value);
  device.stop(IN_WARP, place);
  self.lanes = 0;
  memcpy(&value, &device.given[self.number / WARP * WARP + from], sizeof value);
  return value;
}

}  // namespace emulator

// The order of threads and blocks from here on.
extern "C" __attribute__((visibility("default"))) void emulator_seed(uint32_t seed) { emulator::device.random.seed(seed); }

// --- what a kernel calls --------------------------------------------------------------------------

inline void __syncthreads(emulator::Place place = emulator::Place::current()) {
  unsigned number = emulator::device.running->met++;
  emulator::device.barrier.come(number);
  emulator::device.stop(emulator::AT_BARRIER, place);
  emulator::device.barrier.leave(number);
}

template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int bits,
                  emulator::Place place = emulator::Place::current()) {
  unsigned lane = emulator::device.running->number % emulator::WARP;
  return emulator::exchange(lanes, value, lane ^ bits, place);
}

// Of the types that CUDA's has, so that another does not compile here either.
template <class T>
  requires(std::is_same_v<T, int> || std::is_same_v<T, unsigned> ||
           std::is_same_v<T, unsigned long long> || std::is_same_v<T, float> ||
           std::is_same_v<T, double>)
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*at).fetch_add(value, std::memory_order_relaxed);
}

inline int atomicExch(int* at, int value) {
  return std::atomic_ref<int>(*at).exchange(value, std::memory_order_relaxed);
}

inline uint32_t* dynamic_shared() { return (uint32_t*)emulator::device.shared.get(); }

inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}

// --- what the host calls --------------------------------------------------------------------------

extern "C" __attribute__((visibility("default"))) void emulator_tallest(int64_t blocks) {
  TALLEST = blocks;
}
// How many launches there were; the kernel of the last one, and the threads of its blocks.
extern "C" __attribute__((visibility("default"))) int64_t emulator_launches() {
  return emulator::device.launches;
}
extern "C" __attribute__((visibility("default"))) int emulator_kernel() {
  return (int)(int64_t)emulator::device.launched;
}
extern "C" __attribute__((visibility("default"))) int emulator_threads() {
  return (int)emulator::device.count;
}

using cudaStream_t = struct CUstream_st*;
using cudaError_t = int;

// The shared memory that a block may have; a test may set less.
static int shared_limit = 227 << 10;
extern "C" __attribute__((visibility("default"))) void emulator_shared(int bytes) {
  shared_limit = bytes;
}

enum { cudaDevAttrMaxSharedMemoryPerBlockOptin };
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = shared_limit;
  return 0;
}

enum { cudaHostAllocPortable = 1, cudaHostAllocMapped = 2 };
inline cudaError_t cudaHostAlloc(void** at, size_t bytes, unsigned) {
  *at = ::operator new(bytes);
  return 0;
}

// A kernel without this attribute may have 48 KiB.
static std::map<void*, size_t> shared_allowed;
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), int, int bytes) {
  if (bytes < 0 || bytes > shared_limit)
    throw std::runtime_error("no block has " + std::to_string(bytes) + " bytes of shared memory");
  shared_allowed[(void*)kernel] = (size_t)bytes;
  return 0;
}

template <class... Params, class... Args>
void launch_with(size_t bytes, void (*kernel)(Params...), dim3 blocks, dim3 threads, cudaStream_t,
                 Args... args) {
  size_t allowed = shared_allowed.contains((void*)kernel) ? shared_allowed[(void*)kernel] : 48 << 10;
  if (bytes > allowed)
    throw std::runtime_error("the kernel may have " + std::to_string(allowed) +
                             " bytes of shared memory, not " + std::to_string(bytes));
  emulator::device.launched = (void*)kernel;
  emulator::device.run(blocks, threads, bytes, [&] { kernel(args...); });
}

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 blocks, dim3 threads, cudaStream_t stream,
            Args... args) {
  launch_with(0, kernel, blocks, threads, stream, args...);
}
