// csrc/ops_cuda.cu as it stands, for tensors on the CPU: the operators advprune_emulated::*.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>

// There is no device to choose, one stream, and a launch that fails throws.
struct NoGuard {
  explicit NoGuard(int32_t) {}
};
namespace torch::stable::accelerator {
using ::NoGuard;
}
#define DeviceGuard NoGuard

static AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) { return TORCH_SUCCESS; }

#undef STD_CUDA_CHECK
#undef STD_CUDA_KERNEL_LAUNCH_CHECK
#define STD_CUDA_CHECK(call) (void)(call)
#define STD_CUDA_KERNEL_LAUNCH_CHECK()

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(library, key, m) \
  _STABLE_TORCH_LIBRARY_IMPL(advprune_emulated, CPU, m, C10_UID)

#include SOURCE
