// Crop and flip on the CPU, a line of an image at a time.
#include "ops.h"

#include <algorithm>

namespace advprune {
namespace {

using torch::stable::parallel_for;

using Three = std::integral_constant<int64_t, 3>;  // so that a pixel's loop is unrolled

// A line of an image that has its colours, `depth` of them, in planes. turn is 1, or -1 leftwards.
template <class Depth>
void interleave(const uint8_t* from, int64_t turn, int64_t plane, Depth depth, int64_t count,
                const float* shades, float* to) {
  for (int64_t w = 0; w < count; w++)
    for (int64_t c = 0; c < depth; c++) *to++ = shades[from[turn * w + c * plane]];
}

Tensor augment(const Tensor& images, const Tensor& ids, int64_t seed, int64_t epoch, int64_t pad,
               bool flip, bool channels_last, const std::optional<Tensor>& rows) {
  const int64_t* row = rows_of("augment", images, ids, rows);
  int64_t n = images.size(0), batch = ids.numel(), channels = images.size(1);
  int64_t height = images.size(2), width = images.size(3);
  Tensor out = torch::stable::empty({batch, channels, height, width}, ScalarType::Float,
                                    std::nullopt, std::nullopt, std::nullopt,
                                    channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                                  : torch::headeronly::MemoryFormat::Contiguous);
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; b++)
    check(row[b] >= 0 && row[b] < n, "augment", "an id is outside the images");
  if (out.numel() == 0) return out;
  float shades[256];  // for what cannot be moved as a vector
  for (int v = 0; v < 256; v++) shades[v] = pixel((uint8_t)v);
  const uint8_t* from = images.const_data_ptr<uint8_t>();
  float* to = out.mutable_data_ptr<float>();
  int64_t size = channels * height * width, depth = channels_last ? channels : 1;
  parallel_for(0, batch, std::max<int64_t>(1, GRAIN / size), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b++) {
      Crop place = crop(seed, (uint32_t)epoch, id[b], (int)pad, flip);
      if (pad == 0 && !place.flip && depth == 1) {  // the image as it is
        for (int64_t i = 0; i < size; i++) to[b * size + i] = pixel(from[row[b] * size + i]);
        continue;
      }
      int64_t shift = place.flip ? -place.dx : place.dx, turn = place.flip ? -1 : 1;
      int64_t corner = place.flip ? width - 1 + place.dx : place.dx;
      int64_t left = std::clamp<int64_t>(-shift, 0, width);
      int64_t right = std::clamp<int64_t>(width - shift, left, width);
      for (int64_t part = 0; part < channels / depth; part++)
        for (int64_t h = 0; h < height; h++) {
          int64_t y = h + place.dy;
          bool outside = y < 0 || y >= height;  // [first, first + count) of the line is in the image
          int64_t first = outside ? width : left, count = outside ? 0 : right - left;
          const uint8_t* shade =
              from + ((row[b] * channels + part) * height + y) * width + corner + turn * first;
          float* line = to + b * size + (part * height + h) * width * depth;
          float* inside = std::fill_n(line, first * depth, 0.0f);
          if (depth == 3)
            interleave(shade, turn, height * width, Three(), count, shades, inside);
          else if (depth > 1)
            interleave(shade, turn, height * width, depth, count, shades, inside);
          else if (place.flip)
            for (int64_t w = 0; w < count; w++) inside[w] = pixel(shade[-w]);
          else
            for (int64_t w = 0; w < count; w++) inside[w] = pixel(shade[w]);
          std::fill_n(inside + count * depth, (width - first - count) * depth, 0.0f);
        }
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advprune, CPU, m) {
  m.impl("augment", TORCH_BOX(&augment));
}

}  // namespace advprune
