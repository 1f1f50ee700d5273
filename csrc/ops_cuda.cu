// The operators on CUDA, compiled as one: torch's headers take nvcc longer than all the kernels.
#include "augment_cuda.cuh"
#include "cross_entropy_cuda.cuh"
#include "rs_fgsm_cuda.cuh"
#include "select_kept_cuda.cuh"

namespace advprune {

STABLE_TORCH_LIBRARY_IMPL(advprune, CUDA, m) {
  m.impl("rs_start", TORCH_BOX(&rs_start));
  m.impl("fgsm_step", TORCH_BOX(&fgsm_step));
  m.impl("augment", TORCH_BOX(&augment));
  m.impl("cross_entropy_scores", TORCH_BOX(&cross_entropy_scores));
  m.impl("select_kept", TORCH_BOX(&select_kept));
}

}  // namespace advprune
