// Kernels with one error each. `misuse NAME` runs one under the emulator and prints what it says.
#include <cuda_runtime.h>

#include <cstdio>
#include <map>

#include <cub/block/block_reduce.cuh>

namespace {

__global__ void barrier_for_half() {
  if (threadIdx.x < 16) __syncthreads();
}

__global__ void barrier_against_shuffle() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __shfl_xor_sync(~0u, 1, 1);
}

__global__ void shuffle_for_half() {
  if (threadIdx.x % 32 < 16) __shfl_xor_sync(~0u, 1, 1);
}

__global__ void shuffle_not_in_mask() { __shfl_xor_sync(1u, 1, 0); }

__global__ void block_of_another_size() {
  using Reduce = cub::BlockReduce<int, 128>;
  __shared__ Reduce::TempStorage storage;
  Reduce(storage).Reduce(1, std::plus<int>());
}

__global__ void nothing() {}

// Right as they are: each writes what a mistake there would change.

__global__ void unset(unsigned* out) {
  __shared__ unsigned value;
  out[blockIdx.x] = value;
  value = 5;
}

__global__ void neighbours(unsigned* out, bool with_barrier) {
  __shared__ unsigned values[64];
  values[threadIdx.x] = threadIdx.x;
  if (with_barrier) __syncthreads();
  out[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void beyond(unsigned* out, unsigned at) {
  __shared__ unsigned values[64], others[64];
  values[threadIdx.x] = others[threadIdx.x] = 1;
  __syncthreads();
  unsigned* volatile from = values;  // of a size that the compiler does not know
  out[threadIdx.x] = from[at];
}

__global__ void sums(unsigned* out) {
  unsigned sum = threadIdx.x;
  for (int offset = 16; offset; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
  out[threadIdx.x] = sum;
}

__global__ void ranks(unsigned* counter, unsigned* out) {
  unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
  out[blockIdx.x * blockDim.x * blockDim.y + thread] = atomicAdd(counter, 1u);
}

unsigned out[128], counter;

void print() {
  for (unsigned value : out) printf("%u ", value);
}

const std::map<std::string, void (*)()> ALL = {
    {"barrier_for_half", [] { launch(barrier_for_half, 1, 64, nullptr); }},
    {"barrier_against_shuffle", [] { launch(barrier_against_shuffle, 1, 64, nullptr); }},
    {"shuffle_for_half", [] { launch(shuffle_for_half, 1, 64, nullptr); }},
    {"shuffle_not_in_mask", [] { launch(shuffle_not_in_mask, 1, 64, nullptr); }},
    {"block_of_another_size", [] { launch(block_of_another_size, 1, 64, nullptr); }},
    {"many_threads", [] { launch(nothing, 1, dim3(32, 33), nullptr); }},
    {"tall_grid", [] { launch(nothing, dim3(1, 65536), 1, nullptr); }},
    {"unset", [] { launch(unset, 4, 1, nullptr, out); }},
    {"neighbours", [] { launch(neighbours, 1, 64, nullptr, out, true); }},
    {"race", [] { launch(neighbours, 1, 64, nullptr, out, false); }},
    {"within", [] { launch(beyond, 1, 64, nullptr, out, 63u); }},
    {"beyond", [] { launch(beyond, 1, 64, nullptr, out, 64u); }},
    {"sums", [] { launch(sums, 1, 64, nullptr, out); }},
    {"ranks", [] { launch(ranks, 4, dim3(4, 8), nullptr, &counter, out); }},
};

}  // namespace

int main(int, char** argv) {
  emulator_seed((uint32_t)std::stoul(argv[2]));
  auto turn = [&] {
    try {
      ALL.at(argv[1])();
    } catch (const std::exception& error) {
      puts(error.what());
      return false;
    }
    return true;
  };
  turn();
  counter = 0;
  launch(ranks, 4, dim3(4, 8), nullptr, &counter, out);
  if (counter != 128) puts("a launch left something behind");
  if (turn()) print();
}
