// The two halves of RS+FGSM on the CPU: threads over tiles of examples, vectors within one.
#include "ops.h"

#include <algorithm>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace advprune {
namespace {

using torch::stable::parallel_for;

constexpr int TILE = 768;  // elements whose noise is made at once; it stays in the L1 cache

#ifdef __AVX2__
// Four counters' Philox at once. Each 32-bit word sits in a 64-bit lane whose upper half is
// whatever came there: the multiplication ignores it, and only the lower half leaves.
struct Lanes {
  __m256i c0, c1, c2, c3;
};

inline void round_of(Lanes& s, __m256i k0, __m256i k1) {
  const __m256i m0 = _mm256_set1_epi64x(M0), m1 = _mm256_set1_epi64x(M1);
  __m256i p0 = _mm256_mul_epu32(s.c0, m0), p1 = _mm256_mul_epu32(s.c2, m1);
  s.c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), s.c1), k0);
  s.c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), s.c3), k1);
  s.c1 = p1;
  s.c3 = p0;
}

// The 16 uniforms of four consecutive counters, in order.
inline void store(const Lanes& s, float* out) {
  const __m256i low = _mm256_set1_epi64x(0xFFFFFFFF);
  __m256i a = _mm256_or_si256(_mm256_and_si256(s.c0, low), _mm256_slli_epi64(s.c1, 32));
  __m256i b = _mm256_or_si256(_mm256_and_si256(s.c2, low), _mm256_slli_epi64(s.c3, 32));
  __m256i even = _mm256_unpacklo_epi64(a, b), odd = _mm256_unpackhi_epi64(a, b);
  const __m256 scale = _mm256_set1_ps(0x1p-23f), one = _mm256_set1_ps(1.0f);
  auto put = [&](__m256i bits, float* to) {
    __m256 u = _mm256_cvtepi32_ps(_mm256_srli_epi32(bits, 8));
    _mm256_storeu_ps(to, _mm256_sub_ps(_mm256_mul_ps(u, scale), one));
  };
  put(_mm256_permute2x128_si256(even, odd, 0x20), out);
  put(_mm256_permute2x128_si256(even, odd, 0x31), out + 8);
}
#endif

// The uniforms of elements [4 block, 4 block + count) of one example, filled up to four.
void fill(const Noise& noise, int64_t id, int64_t block, int64_t count, float* out) {
  int64_t b = 0, blocks = (count + 3) / 4;
#ifdef __AVX2__
  const __m256i step = _mm256_setr_epi64x(0, 1, 2, 3);
  for (; b + 16 <= blocks; b += 16) {  // four independent chains hide the multiplier's latency
    Lanes s[4];
    uint32_t k0 = (uint32_t)noise.seed, k1 = (uint32_t)(noise.seed >> 32);
    for (int i = 0; i < 4; i++)
      s[i] = {_mm256_add_epi64(_mm256_set1_epi64x(block + b + 4 * i), step),
              _mm256_set1_epi64x((uint32_t)id), _mm256_set1_epi64x(noise.epoch),
              _mm256_set1_epi64x(START)};
    for (int round = 0; round < 10; round++, k0 += W0, k1 += W1)
      for (int i = 0; i < 4; i++) round_of(s[i], _mm256_set1_epi64x(k0), _mm256_set1_epi64x(k1));
    for (int i = 0; i < 4; i++) store(s[i], out + 4 * b + 16 * i);
  }
#endif
  for (; b < blocks; b++) {
    Words words = philox(noise.seed, (uint32_t)(block + b), (uint32_t)id, noise.epoch, START);
    for (int w = 0; w < 4; w++) out[4 * b + w] = uniform(words.w[w]);
  }
}

// The uniforms of `count` places in memory of one example, from `first` on. Those of RGB in channels
// last are made colour by colour, as the counter goes, then interleaved.
void fill_tile(const Noise& noise, int64_t id, int64_t size, bool rgb, int64_t first, int64_t count,
               float* out) {
  if (!rgb) return fill(noise, id, first / 4, count, out);
  alignas(64) float colours[3][TILE / 3 + 8];
  const float* from[3];
  for (int c = 0; c < 3; c++) {
    int64_t element = c * (size / 3) + first / 3;
    fill(noise, id, element / 4, element % 4 + count / 3, colours[c]);
    from[c] = colours[c] + element % 4;
  }
  for (int64_t p = 0; p < count / 3; p++)
    for (int c = 0; c < 3; c++) out[3 * p + c] = from[c][p];
}

// f(example, first place, count, uniforms) over all examples, in tiles, on all threads.
template <class F>
void for_tiles(int64_t batch, int64_t size, bool rgb, const Noise& noise, const int64_t* ids,
               const F& f) {
  int64_t tiles = (size + TILE - 1) / TILE;
  parallel_for(0, batch * tiles, std::max<int64_t>(1, GRAIN / TILE), [&](int64_t begin, int64_t end) {
    alignas(64) float uniforms[TILE];
    for (int64_t t = begin; t < end; t++) {
      int64_t example = t / tiles, first = t % tiles * TILE;
      int64_t count = std::min<int64_t>(TILE, size - first);
      fill_tile(noise, ids[example], size, rgb, first, count, uniforms);
      f(example, first, count, uniforms);
    }
  });
}

Tensor rs_start(const Tensor& x, const Tensor& ids, double eps, const std::optional<Tensor>& eps_i,
                int64_t seed, int64_t epoch, bool clip_start, double noise_scale) {
  int64_t batch = batch_of("rs_start", x, ids);
  const float* radii = per_example("rs_start", eps_i, x);
  bool rgb = is_channels_last(x) && x.size(1) == 3;
  Tensor in = walkable(x, rgb), out = like_pixels(in);
  if (x.numel() == 0) return laid_out_like(x, out);
  int64_t size = x.numel() / batch;
  Noise noise{(uint64_t)seed, (uint32_t)epoch, (float)noise_scale, clip_start};
  with_pixels("rs_start", in, [&](auto* from, auto* type) {
    using Out = std::remove_pointer_t<decltype(type)>;
    Out* to = (Out*)out.mutable_data_ptr();
    for_tiles(batch, size, rgb, noise, ids.const_data_ptr<int64_t>(),
              [&](int64_t b, int64_t first, int64_t count, const float* u) {
                float radius = radii ? radii[b] : (float)eps;
                const auto* x = from + b * size + first;
                Out* y = to + b * size + first;
                for (int64_t i = 0; i < count; i++) {
                  float centre = pixel(x[i]);
                  y[i] = (Out)(centre + start_delta(centre, u[i], radius, noise));
                }
              });
  });
  return rgb ? out : laid_out_like(x, out);
}

Tensor fgsm_step(const Tensor& x, const Tensor& grad, const Tensor& ids, double eps,
                 const std::optional<Tensor>& eps_i, double alpha,
                 const std::optional<Tensor>& alpha_i, int64_t seed, int64_t epoch,
                 bool clip_start, double noise_scale, bool clip_ball) {
  int64_t batch = batch_of("fgsm_step", x, ids);
  const float* radii = per_example("fgsm_step", eps_i, x);
  const float* steps = per_example("fgsm_step", alpha_i, x);
  bool rgb = is_channels_last(x) && x.size(1) == 3;
  Tensor in = walkable(x, rgb), slope = walkable(grad, rgb), out = like_pixels(in);
  check_arguments(grad.numel() == x.numel() && grad.scalar_type() == out.scalar_type() &&
                      grad.is_cuda() == x.is_cuda(),
                  "fgsm_step");
  if (x.numel() == 0) return laid_out_like(x, out);
  int64_t size = x.numel() / batch;
  Noise noise{(uint64_t)seed, (uint32_t)epoch, (float)noise_scale, clip_start};
  with_pixels("fgsm_step", in, [&](auto* from, auto* type) {
    using Out = std::remove_pointer_t<decltype(type)>;
    Out* to = (Out*)out.mutable_data_ptr();
    const Out* grads = (const Out*)slope.const_data_ptr();
    for_tiles(batch, size, rgb, noise, ids.const_data_ptr<int64_t>(),
              [&](int64_t b, int64_t first, int64_t count, const float* u) {
                float radius = radii ? radii[b] : (float)eps;
                float length = steps ? steps[b] : (float)alpha;
                int64_t at = b * size + first;
                for (int64_t i = 0; i < count; i++) {
                  float centre = pixel(from[at + i]);
                  float delta = start_delta(centre, u[i], radius, noise);
                  to[at + i] = (Out)step(centre, delta, (float)grads[at + i], radius, length,
                                         clip_ball);
                }
              });
  });
  return rgb ? out : laid_out_like(x, out);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advprune, CPU, m) {
  m.impl("rs_start", TORCH_BOX(&rs_start));
  m.impl("fgsm_step", TORCH_BOX(&fgsm_step));
}

}  // namespace advprune
