// The two halves of RS+FGSM on CUDA, one launch each. Mirrors rs_fgsm_cpu.cpp.
#pragma once
#include "launch.h"

#include <algorithm>
#include <type_traits>

namespace advprune {
namespace {

// How a kernel walks an example: FLAT contiguous, RGB channels last, both four elements an access;
// ANY one element an access. A quad is four consecutive elements.
enum Path { FLAT, RGB, ANY };
constexpr int QUADS = 64, RGB_THREADS = 3 * QUADS;  // an RGB block has QUADS quads of each channel

// Contiguous: element e of example b is at b size + e.
// Channels last: position p of channel c, that is element c area + p, is at b size + p channels + c.
struct Layout {
  int64_t batch, size, channels, area;
  bool channels_last;
  Path path;

  __device__ int64_t at(int64_t b, int64_t e) const {
    return b * size + (channels_last ? e % area * channels + e / area : e);
  }
};

struct Start {
  Noise noise;
  float eps;
  const float* eps_i;
  static constexpr bool READS_GRAD = false;

  __device__ void take(int64_t b) {  // the next example
    if (eps_i) eps = eps_i[b];
  }
  __device__ float operator()(float x, float, uint32_t bits) const {
    return x + start_delta(x, uniform(bits), eps, noise);
  }
};

struct Step {
  Noise noise;
  float eps, alpha;
  const float *eps_i, *alpha_i;
  bool clip_ball;
  static constexpr bool READS_GRAD = true;

  __device__ void take(int64_t b) {
    if (eps_i) eps = eps_i[b];
    if (alpha_i) alpha = alpha_i[b];
  }
  __device__ float operator()(float x, float grad, uint32_t bits) const {
    return step(x, start_delta(x, uniform(bits), eps, noise), grad, eps, alpha, clip_ball);
  }
};

// A thread has the same quad of memory in each of its examples: quads on x, examples on y. Its loads
// are under way while it draws. In RGB a quad of memory is of all channels, and a quad of noise of
// one: the threads draw for each other. QUADS is a power of two, so that nothing is divided.
template <Path PATH, class Move, class In, class Out>
__global__ void __launch_bounds__(PATH == RGB ? RGB_THREADS : THREADS)
    wide_kernel(Layout l, Move move, const int64_t* ids, const In* x, const Out* grad, Out* out) {
  int64_t quads = l.size / 4, quad = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (PATH == FLAT && quad >= quads) return;  // RGB's threads have to meet
  uint32_t channel = threadIdx.x / QUADS, position = threadIdx.x % QUADS, counter = (uint32_t)quad;
  if (PATH == RGB) counter = channel * (uint32_t)(l.area / 4) + blockIdx.x * QUADS + position;
  for (int64_t b = blockIdx.y; b < l.batch; b += gridDim.y) {
    move.take(b);
    int64_t at = b * quads + quad;
    Four<In> in{};
    Four<Out> slope{}, result;
    if (quad < quads) {
      in = ((const Four<In>*)x)[at];
      if constexpr (Move::READS_GRAD) slope = ((const Four<Out>*)grad)[at];
    }
    Words words = philox(move.noise.seed, counter, (uint32_t)ids[b], move.noise.epoch, START);
    if constexpr (PATH == RGB) {
      __shared__ Words drawn[RGB_THREADS];
      if (b != blockIdx.y) __syncthreads();  // what was drawn before has been read
#pragma unroll
      for (int i = 0; i < 4; i++) ((uint32_t*)drawn)[(4 * position + i) * 3 + channel] = words.w[i];
      __syncthreads();
      words = drawn[threadIdx.x];
    }
    if (quad >= quads) continue;
#pragma unroll
    for (int i = 0; i < 4; i++)
      result.v[i] = (Out)move(pixel(in.v[i]), (float)slope.v[i], words.w[i]);
    ((Four<Out>*)out)[at] = result;
  }
}

template <class Move, class In, class Out>
__global__ void any_kernel(Layout l, Move move, const int64_t* ids, const In* x, const Out* grad,
                           Out* out) {
  int64_t first = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x);
  int count = (int)min(l.size - first, (int64_t)4);
  for (int64_t b = blockIdx.y; b < l.batch; b += gridDim.y) {
    move.take(b);
    int64_t at[4];
    In in[4]{};
    Out slope[4]{};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i >= count) break;
      at[i] = l.at(b, first + i);
      in[i] = x[at[i]];
      if constexpr (Move::READS_GRAD) slope[i] = grad[at[i]];
    }
    Words words =
        philox(move.noise.seed, (uint32_t)(first / 4), (uint32_t)ids[b], move.noise.epoch, START);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i >= count) break;
      out[at[i]] = (Out)move(pixel(in[i]), (float)slope[i], words.w[i]);
    }
  }
}

template <class Move, class In, class Out>
void launch_move(const Layout& l, const Move& move, const int64_t* ids, const In* x,
                 const Out* grad, Out* out, cudaStream_t stream) {
  int64_t quads = (l.size + 3) / 4;
  int threads = (int)std::min<int64_t>(THREADS, (quads + 31) / 32 * 32);
  if (l.path == RGB) threads = RGB_THREADS;
  dim3 blocks((unsigned)((quads + threads - 1) / threads),
              (unsigned)std::min<int64_t>(l.batch, TALLEST));
  auto* kernel = any_kernel<Move, In, Out>;
  if (l.path == FLAT) kernel = wide_kernel<FLAT, Move, In, Out>;
  if constexpr (!std::is_same_v<In, uint8_t>)  // walkable() makes uint8 contiguous
    if (l.path == RGB) kernel = wide_kernel<RGB, Move, In, Out>;
  launch(kernel, blocks, threads, stream, l, move, ids, x, grad, out);
}

template <class... Tensors>
Layout layout_of(const Tensor& x, bool channels_last, const Tensors&... tensors) {
  int64_t batch = x.size(0), size = x.numel() / batch, channels = channels_last ? x.size(1) : 1;
  Layout l{batch, size, channels, size / channels, channels_last, ANY};
  if (channels_last ? channels != 3 || l.area % 4 != 0 : size % 4 != 0) return l;
  for (const Tensor* t : {&x, &tensors...})
    if ((size_t)t->const_data_ptr() % (4 * t->element_size()) != 0) return l;
  l.path = channels_last ? RGB : FLAT;
  return l;
}

Tensor rs_start(const Tensor& x, const Tensor& ids, double eps, const std::optional<Tensor>& eps_i,
                int64_t seed, int64_t epoch, bool clip_start, double noise_scale) {
  batch_of("rs_start", x, ids);
  const float* radii = per_example("rs_start", eps_i, x);
  DeviceGuard guard(x.get_device_index());
  bool last = is_channels_last(x);
  Tensor in = walkable(x, last), out = like_pixels(in);
  if (x.numel() == 0) return laid_out_like(x, out);
  Noise noise{(uint64_t)seed, (uint32_t)epoch, (float)noise_scale, clip_start};
  Start move{noise, (float)eps, radii};
  with_pixels("rs_start", in, [&]<class In, class Out>(const In* from, Out* none) {
    launch_move(layout_of(in, last, out), move, ids.const_data_ptr<int64_t>(), from, none,
                (Out*)out.mutable_data_ptr(), stream_of(x));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return last ? out : laid_out_like(x, out);
}

Tensor fgsm_step(const Tensor& x, const Tensor& grad, const Tensor& ids, double eps,
                 const std::optional<Tensor>& eps_i, double alpha,
                 const std::optional<Tensor>& alpha_i, int64_t seed, int64_t epoch,
                 bool clip_start, double noise_scale, bool clip_ball) {
  batch_of("fgsm_step", x, ids);
  const float* radii = per_example("fgsm_step", eps_i, x);
  const float* steps = per_example("fgsm_step", alpha_i, x);
  DeviceGuard guard(x.get_device_index());
  bool last = is_channels_last(x);
  Tensor in = walkable(x, last), slope = walkable(grad, last), out = like_pixels(in);
  check_arguments(grad.numel() == x.numel() && grad.scalar_type() == out.scalar_type() &&
                      grad.is_cuda() == x.is_cuda(),
                  "fgsm_step");
  if (x.numel() == 0) return laid_out_like(x, out);
  Noise noise{(uint64_t)seed, (uint32_t)epoch, (float)noise_scale, clip_start};
  Step move{noise, (float)eps, (float)alpha, radii, steps, clip_ball};
  with_pixels("fgsm_step", in, [&]<class In, class Out>(const In* from, Out*) {
    launch_move(layout_of(in, last, slope, out), move, ids.const_data_ptr<int64_t>(), from,
                (const Out*)slope.const_data_ptr(), (Out*)out.mutable_data_ptr(), stream_of(x));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return last ? out : laid_out_like(x, out);
}

}  // namespace
}  // namespace advprune
