// How ops_cuda.cu starts a kernel.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>

#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cuda_runtime.h>

namespace advprune {
namespace {

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

cudaStream_t stream_of(const torch::stable::Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return (cudaStream_t)stream;
}

}  // namespace
}  // namespace advprune
