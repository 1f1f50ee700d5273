// The loss of each example on the CPU: threads over rows.
#include "ops.h"

#include <algorithm>

namespace advprune {
namespace {

using torch::stable::parallel_for;

std::tuple<Tensor, Tensor> cross_entropy_scores(const Tensor& logits, const Tensor& labels) {
  check_arguments(logits.dim() == 2 && logits.size(1) > 0 &&
                      is_vector(labels, ScalarType::Long, logits.size(0), logits),
                  "cross_entropy_scores");
  int64_t batch = logits.size(0), classes = logits.size(1);
  Tensor in = contiguous(logits);
  Tensor loss = new_empty(logits, {batch}, ScalarType::Float);
  Tensor correct = new_empty(logits, {batch}, ScalarType::Bool);
  const int64_t* label = labels.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; b++)
    check(label[b] >= 0 && label[b] < classes, "cross_entropy_scores", "a label is no class");
  float* losses = loss.mutable_data_ptr<float>();
  bool* hits = (bool*)correct.mutable_data_ptr();
  with_floats("cross_entropy_scores", in, [&](auto* rows, auto*) {
    parallel_for(0, batch, std::max<int64_t>(1, 4096 / classes), [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; b++) {
        const auto* row = rows + b * classes;
        int64_t best = 0;
        for (int64_t k = 1; k < classes; k++)
          if (beats((float)row[k], (float)row[best])) best = k;
        double top = (float)row[best], rest = 0;
        for (int64_t k = 0; k < classes; k++)
          if (k != best) rest += std::exp((double)(float)row[k] - top);
        losses[b] = cross_entropy(top, rest, (float)row[label[b]]);
        hits[b] = best == label[b] && top == top;  // no NaN
      }
    });
  });
  return {loss, correct};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advprune, CPU, m) {
  m.impl("cross_entropy_scores", TORCH_BOX(&cross_entropy_scores));
}

}  // namespace advprune
