// cub::BlockScan of the emulator. A thread's result is in its neighbour's place of the storage, so
// that a thread which uses the storage again without a barrier spoils it for those that are later.
#pragma once
#include <cuda_runtime.h>

namespace cub {

enum BlockScanAlgorithm { BLOCK_SCAN_RAKING, BLOCK_SCAN_WARP_SCANS };

template <class T, int THREADS, BlockScanAlgorithm = BLOCK_SCAN_RAKING>
class BlockScan {
 public:
  struct TempStorage {
    T values[THREADS];
  };

  explicit BlockScan(TempStorage& storage) : values(storage.values) {}

  template <class Op>
  void ExclusiveScan(T value, T& before, T first, Op op, T& all,
                     emulator::Place place = emulator::Place::current()) {
    unsigned own = emulator::device.running->number;
    if (emulator::device.count != THREADS) emulator::fail("the block is of another size", place);
    values[own] = value;
    __syncthreads(place);
    if (own == 0) std::partial_sum(values, values + THREADS, values, op);
    __syncthreads(place);
    before = own == 0 ? first : op(first, values[own - 1]);
    all = values[THREADS - 1];
  }

  template <class Op>
  void ExclusiveScan(T value, T& before, T first, Op op,
                     emulator::Place place = emulator::Place::current()) {
    T all;
    ExclusiveScan(value, before, first, op, all, place);
  }

  void ExclusiveSum(T value, T& before, emulator::Place place = emulator::Place::current()) {
    ExclusiveScan(value, before, T(0), std::plus<T>(), place);
  }

 private:
  T* values;
};

}  // namespace cub
