// The radix selection on CUDA: one launch, or a few passes. Mirrors select_kept_cpu.cpp.
#pragma once
#include "launch.h"

#include <algorithm>

namespace advprune {
namespace {

// Scores whose keys fit the shared memory of one block take one launch of ALONE threads, others
// a few passes over memory. SPARE is more than such a block has of shared memory beside the keys.
constexpr int ALONE = 1024, SPARE = 4096, ITEMS = 16, CHUNK = THREADS * ITEMS;
constexpr int BINS = 2048, PASSES = 3;  // two histograms fit in shared memory

struct Scores {
  const float* score;
  int64_t n;
  double centre;
  bool centred;

  __device__ uint32_t key(int64_t i) const { return score_key(score[i], centred, centre); }
};

template <class T, int SIZE>
using Scan = cub::BlockScan<T, SIZE, cub::BLOCK_SCAN_WARP_SCANS>;  // it needs little shared memory

__device__ void count(uint32_t key, const Seeks& seeks, Digit digit, uint32_t* counts) {
  uint32_t prefix = digit.before(key), low = seeks.side[0].prefix, high = seeks.side[1].prefix;
  if (prefix == low) atomicAdd(&counts[digit.of(key)], 1u);
  if (prefix == high && high != low) atomicAdd(&counts[BINS + digit.of(key)], 1u);
}

// The next digit of one side, by a whole block. `to` is not `from`, so nobody waits to write it.
template <int SIZE, class Count>
__device__ void advance(const Seeks& from, Seeks& to, int side, const Count* counts, Digit digit) {
  __shared__ typename Scan<int64_t, SIZE>::TempStorage storage;
  constexpr int OWN = BINS / SIZE;
  Seek seek = from.side[side];
  if (from.side[0].prefix != from.side[1].prefix) counts += side * BINS;
  int64_t own[OWN], sum = 0, below;
  for (int i = 0; i < OWN; i++) sum += own[i] = (int64_t)counts[threadIdx.x * OWN + i];
  Scan<int64_t, SIZE>(storage).ExclusiveSum(sum, below);
  for (int i = 0; i < OWN; below += own[i++])
    if (seek.rank >= below && seek.rank < below + own[i])
      to.side[side] = seek.next(digit, threadIdx.x * OWN + i, below, own[i]);
}

// Each thread has a run of keys, from id `first` on; the runs of a block follow one another.
template <int SIZE>
__device__ void write_ids(const uint32_t* keys, int64_t first, int count, const Cut& cut,
                          const Tally& before_block, int64_t* ids) {
  __shared__ typename Scan<Tally, SIZE>::TempStorage storage;
  Tally before;
  Scan<Tally, SIZE>(storage).ExclusiveScan(tally_of(keys, count, cut), before, Tally{0, 0, 0}, Add());
  before = Add()(before_block, before);
  int64_t place = before.in + min(before.low, cut.keep_low) + min(before.high, cut.keep_high);
  for (int i = 0; i < count; i++) {
    Side where = side(keys[i], cut);
    bool stays = where == IN || (where == TIE_LOW && before.low++ < cut.keep_low) ||
                 (where == TIE_HIGH && before.high++ < cut.keep_high);
    if (stays) ids[place++] = first + i;
  }
}

__global__ void __launch_bounds__(ALONE)
    select_kernel(Scores s, Seeks start, int64_t kept, int64_t* ids, int64_t* bad) {
  __shared__ Seeks seeks[PASSES + 1];
  __shared__ unsigned non_finite;
  uint32_t *counts = dynamic_shared(), *keys = counts + 2 * BINS;
  int n = (int)s.n;
  if (threadIdx.x == 0) seeks[0] = start, non_finite = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += ALONE) {
    keys[i] = s.key(i);
    if (!finite_key(keys[i])) atomicAdd(&non_finite, 1u);
  }
  __syncthreads();
  if (threadIdx.x == 0) *bad = non_finite;
  if (kept == 0) return;  // what is not finite has been counted
  for (int pass = 0; pass < PASSES; pass++) {
    for (int bin = threadIdx.x; bin < 2 * BINS; bin += ALONE) counts[bin] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += ALONE) count(keys[i], seeks[pass], digit_of(pass), counts);
    for (int s = 0; s < 2; s++) {
      __syncthreads();
      advance<ALONE>(seeks[pass], seeks[pass + 1], s, counts, digit_of(pass));
    }
    __syncthreads();
  }
  Cut cut = make_cut(seeks[PASSES].side[0], seeks[PASSES].side[1]);
  int run = (n + ALONE - 1) / ALONE | 1;  // odd, so that a warp reads from 32 banks
  int first = min((int)threadIdx.x * run, n);
  write_ids<ALONE>(keys + first, first, min(run, n - first), cut, Tally{0, 0, 0}, ids);
}

__global__ void begin_kernel(Seeks* seeks, Seeks start) { seeks[0] = start; }

__global__ void histogram_kernel(Scores s, const Seeks* seeks, int pass,
                                 unsigned long long* counts, unsigned long long* bad) {
  __shared__ uint32_t local[2 * BINS];
  for (int bin = threadIdx.x; bin < 2 * BINS; bin += blockDim.x) local[bin] = 0;
  __syncthreads();
  Seeks now = seeks[pass];
  unsigned long long non_finite = 0;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < s.n;
       i += (int64_t)gridDim.x * blockDim.x) {
    uint32_t key = s.key(i);
    if (pass == 0) non_finite += !finite_key(key);
    count(key, now, digit_of(pass), local);
  }
  if (non_finite) atomicAdd(bad, non_finite);
  __syncthreads();
  for (int bin = threadIdx.x; bin < 2 * BINS; bin += blockDim.x)
    if (local[bin]) atomicAdd(&counts[bin], (unsigned long long)local[bin]);
}

__global__ void advance_kernel(Seeks* seeks, int pass, const unsigned long long* counts) {
  advance<THREADS>(seeks[pass], seeks[pass + 1], blockIdx.x, counts, digit_of(pass));
}

// The block's chunk of keys, read together. A thread's run is ITEMS long and one bank further on.
struct Run {
  int64_t first;
  int count;
  const uint32_t* keys;
};

__device__ Run run_of(const Scores& s) {
  __shared__ uint32_t keys[CHUNK + THREADS];
  int64_t chunk = (int64_t)blockIdx.x * CHUNK, first = chunk + threadIdx.x * ITEMS;
  for (int i = threadIdx.x; i < CHUNK && chunk + i < s.n; i += THREADS)
    keys[i + i / ITEMS] = s.key(chunk + i);
  __syncthreads();
  int64_t count = max(min(s.n - first, (int64_t)ITEMS), (int64_t)0);
  return {first, (int)count, keys + threadIdx.x * (ITEMS + 1)};
}

__global__ void tally_kernel(Scores s, const Seeks* found, Tally* tallies) {
  using Reduce = cub::BlockReduce<Tally, THREADS>;
  __shared__ typename Reduce::TempStorage storage;
  Run run = run_of(s);
  Cut cut = make_cut(found->side[0], found->side[1]);
  Tally sum = Reduce(storage).Reduce(tally_of(run.keys, run.count, cut), Add());
  if (threadIdx.x == 0) tallies[blockIdx.x] = sum;
}

// In place: what comes before each chunk. One block walks over all chunks.
__global__ void scan_kernel(Tally* tallies, int64_t chunks) {
  __shared__ typename Scan<Tally, THREADS>::TempStorage storage;
  Tally before{0, 0, 0};
  for (int64_t first = 0; first < chunks; first += THREADS) {
    int64_t chunk = first + threadIdx.x;
    Tally own = chunk < chunks ? tallies[chunk] : Tally{0, 0, 0}, exclusive, all;
    Scan<Tally, THREADS>(storage).ExclusiveScan(own, exclusive, Tally{0, 0, 0}, Add(), all);
    if (chunk < chunks) tallies[chunk] = Add()(before, exclusive);
    before = Add()(before, all);
    __syncthreads();
  }
}

__global__ void write_kernel(Scores s, const Seeks* found, const Tally* tallies, int64_t* ids) {
  Run run = run_of(s);
  Cut cut = make_cut(found->side[0], found->side[1]);
  write_ids<THREADS>(run.keys, run.first, run.count, cut, tallies[blockIdx.x], ids);
}

std::tuple<Tensor, Tensor> select_kept(const Tensor& scores, int64_t low, int64_t high,
                                       std::optional<double> centre) {
  int64_t n = scores.numel(), kept = n - low - high;
  check_arguments(low >= 0 && high >= 0 && kept >= 0 &&
                      is_vector(scores, ScalarType::Float, n, scores),
                  "select_kept");
  DeviceGuard guard(scores.get_device_index());
  cudaStream_t stream = stream_of(scores);
  Tensor ids = new_empty(scores, {kept}, ScalarType::Long);
  int64_t* to = ids.mutable_data_ptr<int64_t>();
  Scores s{scores.const_data_ptr<float>(), n, centre.value_or(0), centre.has_value()};
  Seeks start{{{0, low, 0}, {0, n - high - 1, 0}}};

  int most = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                        scores.get_device_index()));
  if (int64_t bytes = (2 * BINS + n) * sizeof(uint32_t); bytes + SPARE <= most) {
    Tensor bad = new_empty(scores, {}, ScalarType::Long);
    STD_CUDA_CHECK(cudaFuncSetAttribute(select_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        most - SPARE));
    launch_with(bytes, select_kernel, 1, ALONE, stream, s, start, kept, to,
                bad.mutable_data_ptr<int64_t>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return {ids, bad};
  }
  int64_t chunks = (n + CHUNK - 1) / CHUNK;
  Tensor bad = new_zeros(scores, {}, ScalarType::Long);
  Tensor counts = new_zeros(scores, {PASSES * 2 * BINS}, ScalarType::Long);
  Tensor sought = new_empty(scores, {(PASSES + 1) * (int64_t)sizeof(Seeks) / 8}, ScalarType::Long);
  Tensor tallies = new_empty(scores, {3 * chunks}, ScalarType::Long);
  auto* count = (unsigned long long*)counts.mutable_data_ptr();
  auto* seeks = (Seeks*)sought.mutable_data_ptr();
  auto* tally = (Tally*)tallies.mutable_data_ptr();
  unsigned wide = (unsigned)std::min<int64_t>(chunks, 2048);

  launch(begin_kernel, 1, 1, stream, seeks, start);
  for (int pass = 0; pass < PASSES; pass++, count += 2 * BINS) {
    launch(histogram_kernel, wide, THREADS, stream, s, seeks, pass, count,
           (unsigned long long*)bad.mutable_data_ptr());
    if (kept == 0) break;  // what is not finite has been counted
    launch(advance_kernel, 2, THREADS, stream, seeks, pass, count);
  }
  if (kept > 0) {
    launch(tally_kernel, (unsigned)chunks, THREADS, stream, s, seeks + PASSES, tally);
    launch(scan_kernel, 1, THREADS, stream, tally, chunks);
    launch(write_kernel, (unsigned)chunks, THREADS, stream, s, seeks + PASSES, tally, to);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {ids, bad};
}

}  // namespace
}  // namespace advprune
