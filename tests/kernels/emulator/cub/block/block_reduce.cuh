// cub::BlockReduce of the emulator. Thread 0 alone gets the result; the others get garbage.
#pragma once
#include <cuda_runtime.h>

namespace cub {

template <class T, int THREADS>
class BlockReduce {
 public:
  struct TempStorage {
    T values[THREADS];
  };

  explicit BlockReduce(TempStorage& storage) : values(storage.values) {}

  template <class Op>
  T Reduce(T value, Op op, emulator::Place place = emulator::Place::current()) {
    if (emulator::device.count != THREADS) emulator::fail("the block is of another size", place);
    values[emulator::device.running->number] = value;
    __syncthreads(place);
    memset((void*)&value, 0xCD, sizeof value);
    if (emulator::device.running->number == 0)
      value = std::accumulate(values + 1, values + THREADS, values[0], op);
    return value;
  }

 private:
  T* values;
};

}  // namespace cub
