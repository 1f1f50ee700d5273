// Crop and flip on CUDA, one launch. Mirrors augment_cpu.cpp.
#pragma once
#include "launch.h"

#include <algorithm>

namespace advprune {
namespace {

// Blocks of one example on x, of its rows on y; the crop is drawn once a block. A thread makes four
// columns of all channels of a row, so that nothing is divided and writes coalesce.
__global__ void augment_kernel(const uint8_t* images, int64_t n, const int64_t* ids,
                               const int64_t* rows, float* out, int channels, int height,
                               int width, uint64_t seed, uint32_t epoch, int pad, bool flip,
                               bool channels_last, int* wrong) {
  __shared__ Crop place;
  int64_t row = rows[blockIdx.x], area = (int64_t)height * width, size = channels * area;
  bool known = row >= 0 && row < n;
  if (!known) atomicExch(wrong, 1);
  if (threadIdx.x == 0 && threadIdx.y == 0) place = crop(seed, epoch, ids[blockIdx.x], pad, flip);
  __syncthreads();
  out += blockIdx.x * size;
  int step = place.flip ? -1 : 1, corner = (place.flip ? width - 1 : 0) + place.dx;
  for (int h = blockIdx.y * blockDim.y + threadIdx.y; h < height; h += gridDim.y * blockDim.y) {
    int y = h + place.dy;
    bool within = y >= 0 && y < height;
    auto value = [&](int c, int w) {
      int x = corner + step * w;
      if (!known) return NAN;
      return within && x >= 0 && x < width ? pixel(images[row * size + c * area + y * width + x])
                                           : 0.0f;
    };
    for (int w = 4 * threadIdx.x; w < width; w += 4 * blockDim.x) {
      if (channels_last && channels == 3 && width % 4 == 0) {
        Four<float>* to = (Four<float>*)(out + ((int64_t)h * width + w) * 3);
#pragma unroll
        for (int i = 0; i < 12; i += 4)
          to[i / 4] = {{value(i % 3, w + i / 3), value((i + 1) % 3, w + (i + 1) / 3),
                        value((i + 2) % 3, w + (i + 2) / 3), value(i % 3, w + i / 3 + 1)}};
      } else {
        for (int c = 0; c < channels; c++)
          for (int v = w; v < min(w + 4, width); v++)
            out[channels_last ? ((int64_t)h * width + v) * channels + c
                              : c * area + (int64_t)h * width + v] = value(c, v);
      }
    }
  }
}

Tensor augment(const Tensor& images, const Tensor& ids, int64_t seed, int64_t epoch, int64_t pad,
               bool flip, bool channels_last, const std::optional<Tensor>& rows) {
  const int64_t* row = rows_of("augment", images, ids, rows);
  DeviceGuard guard(images.get_device_index());
  static const Report report("augment", "an id is outside the images");
  report.raise();
  int64_t batch = ids.numel(), channels = images.size(1);
  int64_t height = images.size(2), width = images.size(3);
  Tensor out = torch::stable::empty({batch, channels, height, width}, ScalarType::Float,
                                    std::nullopt, images.device(), std::nullopt,
                                    channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                                  : torch::headeronly::MemoryFormat::Contiguous);
  if (out.numel() == 0) return out;
  int across = (int)std::min<int64_t>((width + 3) / 4, THREADS), down = THREADS / across;
  dim3 blocks((unsigned)batch, (unsigned)std::min<int64_t>((height + down - 1) / down, TALLEST));
  launch(augment_kernel, blocks, dim3(across, down), stream_of(images),
         images.const_data_ptr<uint8_t>(), images.size(0), ids.const_data_ptr<int64_t>(), row,
         out.mutable_data_ptr<float>(), (int)channels, (int)height, (int)width, (uint64_t)seed,
         (uint32_t)epoch, (int)pad, flip, channels_last, report.flag);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  report.raise();
  return out;
}

}  // namespace
}  // namespace advprune
