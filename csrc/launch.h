// How the operators start a CUDA kernel, how a kernel moves four elements, and how it reports an error.
#pragma once
#include "ops.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cuda_runtime.h>

#include <atomic>

namespace advprune {
namespace {

using torch::stable::accelerator::DeviceGuard;

constexpr int THREADS = 256;

#ifdef __CUDACC__  // for other compilers the emulator of the tests defines what is here
constexpr int64_t TALLEST = 65535;  // of a grid, in blocks

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 blocks, dim3 threads, cudaStream_t stream,
            Args... args) {
  kernel<<<blocks, threads, 0, stream>>>(args...);
}

template <class... Params, class... Args>
void launch_with(size_t bytes, void (*kernel)(Params...), dim3 blocks, dim3 threads,
                 cudaStream_t stream, Args... args) {
  kernel<<<blocks, threads, bytes, stream>>>(args...);
}

__device__ uint32_t* dynamic_shared() {  // those bytes
  extern __shared__ uint32_t room[];
  return room;
}
#endif

cudaStream_t stream_of(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return (cudaStream_t)stream;
}

// Four consecutive elements, moved in one access.
template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

// What a kernel finds wrong, in memory of the host that the device writes to: a trap would cost the
// process all that it has on the card. Nobody waits for the kernel, so a later call may raise it.
struct Report {
  const char *op, *what;
  int* flag = nullptr;

  Report(const char* op, const char* what) : op(op), what(what) {
    unsigned how = cudaHostAllocMapped | cudaHostAllocPortable;
    STD_CUDA_CHECK(cudaHostAlloc((void**)&flag, sizeof(int), how));
    *flag = 0;
  }

  void raise() const { check(std::atomic_ref<int>(*flag).exchange(0) == 0, op, what); }
};

}  // namespace
}  // namespace advprune
