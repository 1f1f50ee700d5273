// The operators on the CPU: threads over examples, vectors within one. Mirrors ops_cuda.cu.
#include "ops.h"

#include <algorithm>
#include <numeric>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace advprune {
namespace {

using torch::stable::contiguous;
using torch::stable::parallel_for;

constexpr int TILE = 768;         // elements whose noise is made at once; it stays in the L1 cache
constexpr int64_t GRAIN = 32768;  // elements worth a thread of their own

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

// --- selection ------------------------------------------------------------------------------------

// Two digits are fewest passes; where the scores are few, three have less to clear and add up.
constexpr Digit MANY[] = {{16, 16}, {0, 16}}, FEW[] = {{21, 11}, {10, 11}, {0, 10}};

// How many keys of a thread's share are above a sought key, and how many equal to it.
struct Share {
  int64_t above = 0, equal = 0;
};

// The scores as keys, a tile at a time, the same share of them for a thread in every pass.
struct Keys {
  const float* score;
  int64_t n;
  std::optional<double> centre;
  int64_t threads;

  // f(thread, first place, count, keys) over all tiles.
  template <class F>
  void each(const F& f) const {
    constexpr int64_t KEYS = 1024;  // with the ids of those that stay they fit the L1 cache
    int64_t tiles = (n + KEYS - 1) / KEYS;
    parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      uint32_t keys[KEYS];
      for (int64_t t = begin; t < end; t++)
        for (int64_t tile = t * tiles / threads; tile < (t + 1) * tiles / threads; tile++) {
          int64_t first = tile * KEYS, count = std::min(KEYS, n - first);
          const float* from = score + first;
          if (centre)
            for (int64_t i = 0; i < count; i++) keys[i] = score_key(from[i], true, *centre);
          else
            for (int64_t i = 0; i < count; i++) keys[i] = score_key(from[i], false, 0);
          f(t, first, (int)count, keys);
        }
    });
  }

  // Histograms [threads][sides][bins] of this digit, of the keys that begin as each side's.
  std::vector<uint32_t> histograms(const Seek* seeks, int sides, Digit digit) const {
    constexpr int WAYS = 2;  // one for even places, one for odd: equal neighbours need not wait
    size_t bins = (size_t)1 << digit.bits;
    std::vector<uint32_t> ways(threads * sides * WAYS * bins, 0), sums(threads * sides * bins);
    each([&](int64_t t, int64_t, int count, const uint32_t* keys) {
      for (int s = 0; s < sides; s++) {
        uint32_t *histogram = ways.data() + (t * sides + s) * WAYS * bins, start = seeks[s].prefix;
        for (int i = 0; i < count; i++)
          if (digit.before(keys[i]) == start) histogram[i % WAYS * bins + digit.of(keys[i])]++;
      }
    });
    for (size_t i = 0; i < sums.size(); i++) {
      const uint32_t* way = ways.data() + i / bins * WAYS * bins + i % bins;
      sums[i] = way[0] + way[bins];
    }
    return sums;
  }

  // One more digit of both sought keys. Returns how many scores are not finite, if it is the first.
  int64_t advance(Seek (&seeks)[2], std::vector<Share> (&shares)[2], Digit digit) const {
    int sides = seeks[0].prefix != seeks[1].prefix ? 2 : 1, bins = 1 << digit.bits;
    std::vector<uint32_t> counts = histograms(seeks, sides, digit);
    int64_t non_finite = 0;
    for (int s = 0; s < 2; s++) {
      std::vector<int64_t> sum(bins, 0);
      const uint32_t* own = counts.data() + s % sides * bins;  // thread t's is at t sides bins more
      for (int64_t t = 0; t < threads; t++)
        for (int bin = 0; bin < bins; bin++) sum[bin] += own[t * sides * bins + bin];
      for (int bin = 0; bin < bins && s == 0; bin++)
        non_finite += finite_key((uint32_t)bin << digit.shift) ? 0 : sum[bin];
      int chosen = seeks[s].advance(sum.data(), digit);
      for (int64_t t = 0; t < threads; t++) {
        const uint32_t* mine = own + t * sides * bins;
        shares[s][t].above += std::accumulate(mine + chosen + 1, mine + bins, int64_t(0));
        shares[s][t].equal = mine[chosen];
      }
    }
    return non_finite;
  }

  void write(const Cut& cut, const std::vector<Share> (&shares)[2], int64_t* ids) const {
    struct Place {
      int64_t in = 0, low = 0, high = 0;  // what came before, then what has been seen
      int64_t next = 0;
    };
    std::vector<Place> places(threads);
    Place before;
    for (int64_t t = 0; t < threads; t++) {
      before.next = before.in + std::min(before.low, cut.keep_low) +
                    std::min(before.high, cut.keep_high);
      places[t] = before;
      if (cut.low != cut.high) {
        before.in += shares[0][t].above - shares[1][t].above - shares[1][t].equal;
        before.high += shares[1][t].equal;
      }
      before.low += shares[0][t].equal;
    }
    each([&](int64_t t, int64_t first, int count, const uint32_t* keys) {
      int64_t staying[1024 + 1];  // one spare: a place is written before it is known to stay
      int kept = 0;
      Place& place = places[t];
      for (int i = 0; i < count; i++) {
        staying[kept] = first + i;
        bool stays = keys[i] > cut.low && keys[i] < cut.high;
        if (keys[i] == cut.low)
          stays = place.low++ < cut.keep_low;
        else if (keys[i] == cut.high)
          stays = place.high++ < cut.keep_high;
        kept += stays;
      }
      std::copy(staying, staying + kept, ids + place.next);
      place.next += kept;
    });
  }
};

std::tuple<Tensor, Tensor> select_kept(const Tensor& scores, int64_t low, int64_t high,
                                       std::optional<double> centre) {
  int64_t n = scores.numel(), kept = n - low - high;
  check_arguments(is_vector(scores, ScalarType::Float, n, scores) && low >= 0 && high >= 0 &&
                      kept >= 0,
                  "select_kept");
  Tensor ids = new_empty(scores, {kept}, ScalarType::Long);
  Tensor bad = new_zeros(scores, {}, ScalarType::Long);
  if (n == 0) return {ids, bad};
  int64_t threads = n < GRAIN ? 1 : torch::stable::get_num_threads();
  Keys keys{scores.const_data_ptr<float>(), n, centre, threads};
  // The first key that stays and the last; where none does, any, to count what is not finite.
  Seek seeks[2] = {{0, std::min(low, n - 1), 0}, {0, std::max<int64_t>(n - high - 1, 0), 0}};
  std::vector<Share> shares[2] = {std::vector<Share>(threads), std::vector<Share>(threads)};
  bool many = n > 1000000;
  int64_t non_finite = keys.advance(seeks, shares, many ? MANY[0] : FEW[0]);
  *(int64_t*)bad.mutable_data_ptr() = non_finite;
  if (kept == 0 || non_finite > 0) return {ids, bad};
  for (int pass = 1; pass < (many ? 2 : 3); pass++)
    keys.advance(seeks, shares, many ? MANY[pass] : FEW[pass]);
  keys.write(make_cut(seeks[0], seeks[1]), shares, ids.mutable_data_ptr<int64_t>());
  return {ids, bad};
}

// --- the first layer ------------------------------------------------------------------------------

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
  m.impl("rs_start", TORCH_BOX(&rs_start));
  m.impl("fgsm_step", TORCH_BOX(&fgsm_step));
  m.impl("augment", TORCH_BOX(&augment));
  m.impl("cross_entropy_scores", TORCH_BOX(&cross_entropy_scores));
  m.impl("select_kept", TORCH_BOX(&select_kept));
  m.impl("conv_input_grad", TORCH_BOX(&conv_input_grad));
}

}  // namespace advprune
