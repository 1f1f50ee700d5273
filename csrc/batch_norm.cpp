// Batch normalisation with the ReLU after it, on the CPU. Images are [B, H, W, C]: rows of channels.
// A band of rows stays in the cache. In it, a vector of channels keeps its sums in registers.
#include "ops.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace advprune {
namespace {

using torch::stable::parallel_for;

// Channels in a vector of this CPU: GCC takes a longer one apart, and some of its steps one by one.
constexpr int64_t LANES = std::max(16, __BIGGEST_ALIGNMENT__) / sizeof(float);
constexpr int64_t BAND = 16384;  // elements of a band

// Vectors of GCC and Clang.
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

template <class Lanes>
void load(Floats& to, const float* from, Lanes lanes) {
  to = Floats{};
  std::memcpy(&to, from, lanes * sizeof(float));
}

template <class Lanes>
void load(Floats& to, const BFloat16* from, Lanes lanes) {
  Halves bits = {};
  std::memcpy(&bits, from, lanes * sizeof(uint16_t));
  to = (Floats)(__builtin_convertvector(bits, Words) << 16);
}

template <class Lanes>
void store(const Floats& from, float* to, Lanes lanes) {
  std::memcpy(to, &from, lanes * sizeof(float));
}

template <class Lanes>
void store(const Floats& from, BFloat16* to, Lanes lanes) {
  Words word = (Words)from;  // rounded to the nearest, of two equally near to the even one
  word = (from == from) ? (word + 0x7FFF + ((word >> 16) & 1)) >> 16 : Words{} + 0x7FC0;
  Halves bits = __builtin_convertvector(word, Halves);
  std::memcpy(to, &bits, lanes * sizeof(uint16_t));
}

// Images as rows of channels, in bands.
struct Rows {
  int64_t rows, channels, height = std::max<int64_t>(1, BAND / channels);
  int64_t bands = (rows + height - 1) / height;

  // f(band, first row, last row, first channel, lanes). The compiler knows the lanes if all are used.
  template <class F>
  void each(const F& f) const {
    parallel_for(0, bands, 2, [&](int64_t begin, int64_t end) {
      for (int64_t band = begin; band < end; band++) {
        int64_t first = band * height, last = std::min(first + height, rows), c = 0;
        for (; c + LANES <= channels; c += LANES)
          f(band, first, last, c, std::integral_constant<size_t, LANES>());
        if (c < channels) f(band, first, last, c, (size_t)(channels - c));
      }
    });
  }

  // Two sums [2][channels] over all rows; f(first row, last row, channel, lanes, sum, sum) adds those
  // of a band. Bands are added in order, in float64: the number of threads makes no difference.
  template <class F>
  std::vector<double> sums(const F& f) const {
    std::vector<float> parts(bands * 2 * channels);
    each([&](int64_t band, int64_t first, int64_t last, int64_t c, auto lanes) {
      Floats one = {}, two = {};
      f(first, last, c, lanes, one, two);
      store(one, &parts[band * 2 * channels + c], lanes);
      store(two, &parts[(band * 2 + 1) * channels + c], lanes);
    });
    std::vector<double> total(2 * channels, 0.0);
    for (int64_t band = 0; band < bands; band++)
      for (int64_t i = 0; i < 2 * channels; i++) total[i] += parts[band * 2 * channels + i];
    return total;
  }
};

// Normalisation as a line: scale x + shift.
struct Line {
  std::vector<float> scale, shift;
  Line(const Tensor& weight, const Tensor& bias, const float* mean, const float* var, double eps)
      : scale(weight.numel()), shift(weight.numel()) {
    for (size_t c = 0; c < scale.size(); c++) {
      scale[c] = (float)(weight.const_data_ptr<float>()[c] / std::sqrt((double)var[c] + eps));
      shift[c] = bias.const_data_ptr<float>()[c] - mean[c] * scale[c];
    }
  }
};

Rows rows_of(const Tensor& x, std::initializer_list<const Tensor*> vectors) {
  check(x.dim() == 4 && x.is_contiguous() && x.numel() > 0, "batch_norm_relu",
        "x must be contiguous [B, H, W, C]");
  for (const Tensor* v : vectors)
    check(v->dim() == 1 && v->scalar_type() == ScalarType::Float && v->is_contiguous() &&
              v->numel() == x.size(3),
          "batch_norm_relu", "weight, bias, mean and var must be contiguous float32 [C]");
  return {x.numel() / x.size(3), x.size(3)};
}

// Calls f(T*) for the type of x.
template <class F>
void with_floats(const Tensor& x, const F& f) {
  if (x.scalar_type() == ScalarType::Float) return f((const float*)x.const_data_ptr());
  check(x.scalar_type() == ScalarType::BFloat16, "batch_norm_relu", "x must be float32 or bfloat16");
  f((const BFloat16*)x.const_data_ptr());
}

// The mean and variance of each channel. Sums of what differs from the first row keep their digits
// where the mean is large.
template <class T>
void moments(const Rows& rows, const T* from, float* mean, float* var) {
  int64_t channels = rows.channels;
  std::vector<double> sums =
      rows.sums([&](int64_t first, int64_t last, int64_t c, auto lanes, Floats& one, Floats& two) {
        Floats zero, x;
        load(zero, from + c, lanes);
        for (int64_t r = first; r < last; r++) {
          load(x, from + r * channels + c, lanes);
          x -= zero;
          one += x;
          two += x * x;
        }
      });
  for (int64_t c = 0; c < channels; c++) {
    double shift = sums[c] / rows.rows;
    mean[c] = (float)((double)(float)from[c] + shift);
    var[c] = (float)std::max(sums[channels + c] / rows.rows - shift * shift, 0.0);
  }
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_relu(const Tensor& x, const Tensor& weight,
                                                   const Tensor& bias,
                                                   const std::optional<Tensor>& mean,
                                                   const std::optional<Tensor>& var, double eps) {
  bool batch = !mean || !var;  // normalise with the batch's own
  Rows rows = rows_of(x, {&weight, &bias, batch ? &weight : &*mean, batch ? &bias : &*var});
  Tensor out = empty_like(x), centre = empty_like(weight), spread = empty_like(weight);
  float *means = centre.mutable_data_ptr<float>(), *vars = spread.mutable_data_ptr<float>();
  with_floats(x, [&](auto* from) {
    if (batch) {
      moments(rows, from, means, vars);
    } else {
      std::copy_n(mean->const_data_ptr<float>(), rows.channels, means);
      std::copy_n(var->const_data_ptr<float>(), rows.channels, vars);
    }
    Line line(weight, bias, means, vars, eps);
    auto* to = (std::remove_const_t<std::remove_pointer_t<decltype(from)>>*)out.mutable_data_ptr();
    rows.each([&](int64_t, int64_t first, int64_t last, int64_t c, auto lanes) {
      Floats scale, shift, value;
      load(scale, &line.scale[c], lanes);
      load(shift, &line.shift[c], lanes);
      for (int64_t i = first * rows.channels + c; i < last * rows.channels; i += rows.channels) {
        load(value, from + i, lanes);
        value = scale * value + shift;
        store(value <= 0 ? Floats{} : value, to + i, lanes);
      }
    });
  });
  return {out, centre, spread};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_relu_grad(const Tensor& grad, const Tensor& x,
                                                        const Tensor& weight, const Tensor& bias,
                                                        const Tensor& mean, const Tensor& var,
                                                        double eps, bool batch) {
  Rows rows = rows_of(x, {&weight, &bias, &mean, &var});
  int64_t channels = rows.channels;
  check(grad.numel() == x.numel() && grad.scalar_type() == x.scalar_type() && grad.is_contiguous(),
        "batch_norm_relu", "grad must have the shape and type of x");
  Tensor out = empty_like(x), weights = empty_like(weight), biases = empty_like(weight);
  const float *means = mean.const_data_ptr<float>(), *vars = var.const_data_ptr<float>();
  Line line(weight, bias, means, vars, eps);
  with_floats(x, [&](auto* from) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
    const T* grads = (const T*)grad.const_data_ptr();
    T* to = (T*)out.mutable_data_ptr();
    // f(place, lanes, x - mean, the gradient before the ReLU, scale)
    auto walk = [&](int64_t first, int64_t last, int64_t c, auto lanes, const auto& f) {
      Floats centre, scale, shift, x, g;
      load(centre, means + c, lanes);
      load(scale, &line.scale[c], lanes);
      load(shift, &line.shift[c], lanes);
      for (int64_t i = first * channels + c; i < last * channels; i += channels) {
        load(x, from + i, lanes);
        load(g, grads + i, lanes);
        g = scale * x + shift <= 0 ? Floats{} : g;
        x -= centre;
        f(i, x, g, scale);
      }
    };
    std::vector<double> sums =
        rows.sums([&](int64_t first, int64_t last, int64_t c, auto lanes, Floats& one, Floats& two) {
          walk(first, last, c, lanes, [&](int64_t, const Floats& x, const Floats& g, const Floats&) {
            one += g;
            two += g * x;
          });
        });
    std::vector<float> flat(channels, 0.0f), slope(channels, 0.0f);  // through mean and variance
    for (int64_t c = 0; c < channels; c++) {
      double precision = 1 / ((double)vars[c] + eps);
      biases.mutable_data_ptr<float>()[c] = (float)sums[c];
      weights.mutable_data_ptr<float>()[c] = (float)(sums[channels + c] * std::sqrt(precision));
      if (batch) {
        flat[c] = (float)(sums[c] / rows.rows);
        slope[c] = (float)(sums[channels + c] * precision / rows.rows);
      }
    }
    rows.each([&](int64_t, int64_t first, int64_t last, int64_t c, auto lanes) {
      Floats level, tilt;
      load(level, &flat[c], lanes);
      load(tilt, &slope[c], lanes);
      walk(first, last, c, lanes,
           [&](int64_t i, const Floats& x, const Floats& g, const Floats& scale) {
             store(scale * (g - level - x * tilt), to + i, lanes);
           });
    });
  });
  return {out, weights, biases};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advprune, CPU, m) {
  m.impl("batch_norm_relu", TORCH_BOX(&batch_norm_relu));
  m.impl("batch_norm_relu_grad", TORCH_BOX(&batch_norm_relu_grad));
}

}  // namespace advprune
