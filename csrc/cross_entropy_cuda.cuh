// The loss of each example on CUDA, one launch. Mirrors cross_entropy_cpu.cpp.
#pragma once
#include "launch.h"

namespace advprune {
namespace {

// A warp a row.
template <class T>
__global__ void cross_entropy_kernel(const T* logits, const int64_t* labels, float* loss,
                                     bool* correct, int64_t batch, int classes, int* wrong) {
  int64_t b = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  int lane = threadIdx.x % 32;
  if (b >= batch) return;
  bool known = labels[b] >= 0 && labels[b] < classes;
  if (!known) atomicExch(wrong, 1);
  const T* row = logits + b * classes;
  int best = lane < classes ? lane : 0;
  for (int k = lane; k < classes; k += 32)
    if (beats((float)row[k], (float)row[best])) best = k;
  for (int offset = 16; offset; offset /= 2) {
    int other = __shfl_xor_sync(~0u, best, offset);
    bool wins = beats((float)row[other], (float)row[best]);
    bool loses = beats((float)row[best], (float)row[other]);
    if (wins || (!loses && other < best)) best = other;
  }
  double top = (float)row[best], rest = 0;
  for (int k = lane; k < classes; k += 32)
    if (k != best) rest += exp((double)(float)row[k] - top);
  for (int offset = 16; offset; offset /= 2) rest += __shfl_xor_sync(~0u, rest, offset);
  if (lane == 0) {
    loss[b] = known ? cross_entropy(top, rest, (float)row[labels[b]]) : NAN;
    correct[b] = best == labels[b] && top == top;
  }
}

std::tuple<Tensor, Tensor> cross_entropy_scores(const Tensor& logits, const Tensor& labels) {
  check_arguments(logits.dim() == 2 && logits.size(1) > 0 &&
                      is_vector(labels, ScalarType::Long, logits.size(0), logits),
                  "cross_entropy_scores");
  DeviceGuard guard(logits.get_device_index());
  static const Report report("cross_entropy_scores", "a label is no class");
  report.raise();
  int64_t batch = logits.size(0);
  Tensor in = contiguous(logits);
  Tensor loss = new_empty(logits, {batch}, ScalarType::Float);
  Tensor correct = new_empty(logits, {batch}, ScalarType::Bool);
  if (batch == 0) return {loss, correct};
  with_floats("cross_entropy_scores", in, [&]<class T>(const T* rows, auto*) {
    launch(cross_entropy_kernel<T>, (unsigned)((batch * 32 + THREADS - 1) / THREADS), THREADS,
           stream_of(logits), rows, labels.const_data_ptr<int64_t>(),
           loss.mutable_data_ptr<float>(), (bool*)correct.mutable_data_ptr(), batch,
           (int)logits.size(1), report.flag);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  report.raise();
  return {loss, correct};
}

}  // namespace
}  // namespace advprune
