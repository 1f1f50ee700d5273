// The gradient of a convolution's grey input, on the CPU.
#include "ops.h"

#include <algorithm>
#include <vector>

namespace advprune {
namespace {

using torch::stable::parallel_for;

// The taps [SIDE][SIDE], filled up to whole vectors, that a row of output gradients contributes.
// A block of places shares the loads of the weights, and its sums are independent chains.
template <int TAPS>
void taps_of_row(const float* grad, const float* weight, int64_t channels, int64_t places,
                 float (*taps)[TAPS]) {
  constexpr int BLOCK = 4;
  for (int64_t p = 0; p < places; p += BLOCK) {
    int64_t count = std::min<int64_t>(BLOCK, places - p);
    const float* from[BLOCK];
    for (int b = 0; b < BLOCK; b++) from[b] = grad + (p + std::min<int64_t>(b, count - 1)) * channels;
    float sum[BLOCK][TAPS] = {};
    for (int64_t k = 0; k < channels; k++)
      for (int b = 0; b < BLOCK; b++)
        for (int t = 0; t < TAPS; t++) sum[b][t] += from[b][k] * weight[k * TAPS + t];
    for (int64_t b = 0; b < count; b++) std::copy_n(sum[b], TAPS, taps[p + b]);
  }
}

template <int SIDE>
void conv_input_grads(const Tensor& grad, const Tensor& weight, Tensor& out, int64_t stride,
                      int64_t padding) {
  constexpr int TAPS = (SIDE * SIDE + 15) / 16 * 16;
  int64_t rows = grad.size(1), columns = grad.size(2), channels = grad.size(3);
  int64_t height = out.size(2), width = out.size(3), work = rows * columns * channels;
  std::vector<float> weights(channels * TAPS, 0.0f);
  for (int64_t k = 0; k < channels; k++)
    std::copy_n(weight.const_data_ptr<float>() + k * SIDE * SIDE, SIDE * SIDE, &weights[k * TAPS]);
  const float* from = grad.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  parallel_for(0, grad.size(0), std::max<int64_t>(1, GRAIN / work), [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(columns * TAPS);
    auto* taps = (float(*)[TAPS])buffer.data();
    for (int64_t b = begin; b < end; b++) {
      float* image = to + b * height * width;
      std::fill_n(image, height * width, 0.0f);
      for (int64_t i = 0; i < rows; i++) {
        taps_of_row<TAPS>(from + (b * rows + i) * columns * channels, weights.data(), channels,
                          columns, taps);
        for (int64_t r = 0; r < SIDE; r++) {
          int64_t y = i * stride - padding + r;
          if (y < 0 || y >= height) continue;
          for (int64_t j = 0; j < columns; j++) {
            int64_t x = j * stride - padding;
            float* line = image + y * width + x;
            const float* tap = taps[j] + r * SIDE;
            if (x >= 0 && x + SIDE <= width)
              for (int s = 0; s < SIDE; s++) line[s] += tap[s];
            else
              for (int s = 0; s < SIDE; s++)
                if (x + s >= 0 && x + s < width) line[s] += tap[s];
          }
        }
      }
    }
  });
}

Tensor conv_input_grad(const Tensor& grad, const Tensor& weight, int64_t height, int64_t width,
                       int64_t stride, int64_t padding) {
  check(grad.dim() == 4 && grad.scalar_type() == ScalarType::Float && grad.is_contiguous(),
        "conv_input_grad", "grad must be contiguous float32 [B, OH, OW, K]");
  check(weight.dim() == 4 && weight.scalar_type() == ScalarType::Float &&
            weight.is_contiguous() && weight.size(0) == grad.size(3) && weight.size(1) == 1 &&
            weight.size(2) == weight.size(3) && weight.size(2) <= 7,
        "conv_input_grad", "weight must be contiguous float32 [K, 1, R, R], R up to 7");
  int64_t side = weight.size(2);
  check((height + 2 * padding - side) / stride + 1 == grad.size(1) &&
            (width + 2 * padding - side) / stride + 1 == grad.size(2),
        "conv_input_grad", "grad is not of this input's size");
  Tensor out = new_empty(grad, {grad.size(0), 1, height, width}, ScalarType::Float);
  if (out.numel() == 0) return out;
  switch (side) {
    case 1: conv_input_grads<1>(grad, weight, out, stride, padding); break;
    case 2: conv_input_grads<2>(grad, weight, out, stride, padding); break;
    case 3: conv_input_grads<3>(grad, weight, out, stride, padding); break;
    case 4: conv_input_grads<4>(grad, weight, out, stride, padding); break;
    case 5: conv_input_grads<5>(grad, weight, out, stride, padding); break;
    case 6: conv_input_grads<6>(grad, weight, out, stride, padding); break;
    default: conv_input_grads<7>(grad, weight, out, stride, padding);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advprune, CPU, m) {
  m.impl("conv_input_grad", TORCH_BOX(&conv_input_grad));
}

}  // namespace advprune
