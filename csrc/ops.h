// The arithmetic of the operators, shared by their CPU and CUDA files, and the guards of their memory.
// An operator's files are NAME_cpu.cpp and NAME_cuda.cuh, side by side. ops.py says what each computes; its plain-torch references are matched bit for bit
// wherever there is no reduction, so these files are compiled without contracting a * b + c.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#ifdef __CUDACC__
#define HD __host__ __device__ __forceinline__
#else
#define HD inline __attribute__((always_inline))
#endif

namespace advprune {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t GRAIN = 32768;  // elements worth a CPU thread of their own

// --- randomness: Philox4x32-10, key = seed, counter = (element / 4, id, epoch, stream) -------------

enum Stream : uint32_t { START = 0, CROP = 1 };
constexpr uint32_t M0 = 0xD2511F53, M1 = 0xCD9E8D57, W0 = 0x9E3779B9, W1 = 0xBB67AE85;

struct alignas(16) Words {
  uint32_t w[4];
};

struct Product {
  uint32_t upper, lower;
};

HD Product product(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  return {__umulhi(a, b), a * b};  // nvcc makes more than this of a 64-bit product
#else
  uint64_t whole = (uint64_t)a * b;
  return {(uint32_t)(whole >> 32), (uint32_t)whole};
#endif
}

HD Words philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < 10; round++) {
    Product p0 = product(c0, M0), p1 = product(c2, M1);
    c0 = p1.upper ^ c1 ^ k0, c2 = p0.upper ^ c3 ^ k1;
    c1 = p1.lower, c3 = p0.lower;
    k0 += W0, k1 += W1;
  }
  return {{c0, c1, c2, c3}};
}

// Uniform on [-1, 1): 2u - 1 with u = (bits >> 8) 2^-24, exact in float32.
HD float uniform(uint32_t bits) { return (float)(int32_t)(bits >> 8) * 0x1p-23f - 1.0f; }

// --- RS+FGSM, one element (Algorithm 1, lines 26-28) ---------------------------------------------

struct Noise {  // everything of a start but the element: passed by value to kernels
  uint64_t seed;
  uint32_t epoch;
  float scale;
  bool clip_start;
};

HD float clamp(float v, float low, float high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}

HD float start_delta(float x, float u, float eps, const Noise& noise) {
  float delta = (eps * noise.scale) * u;
  return noise.clip_start ? clamp(delta, -x, 1.0f - x) : delta;
}

HD float step(float x, float delta, float grad, float eps, float alpha, bool clip_ball) {
  float sign = (float)((grad > 0) - (grad < 0));  // 0 for zeros and NaN
  delta += alpha * sign;
  if (clip_ball) delta = clamp(delta, -eps, eps);
  return clamp(x + delta, 0.0f, 1.0f);
}

template <class T>
HD float pixel(T v) {
  return (float)v;
}
template <>
HD float pixel<uint8_t>(uint8_t v) {
  // v / 255.0f to the bit without a division: a product, and one step of Newton's.
  constexpr float inverse = 1 / 255.0f;
  float q = (float)v * inverse;
  return fmaf(fmaf(q, -255.0f, (float)v), inverse, q);
}

// --- augmentation: the place of an example's crop, and its side ----------------------------------

struct Crop {
  int dy, dx;  // of the output's corner, in the unpadded image
  bool flip;
};

HD Crop crop(uint64_t seed, uint32_t epoch, int64_t id, int pad, bool flip) {
  Words words = philox(seed, 0, (uint32_t)id, epoch, CROP);
  uint64_t shift = 2 * (uint64_t)pad + 1;
  return {(int)((words.w[0] * shift) >> 32) - pad, (int)((words.w[1] * shift) >> 32) - pad,
          flip && (words.w[2] >> 31)};
}

// --- cross-entropy of a row: its largest logit apart, so that small losses keep all their digits ----

HD bool beats(float value, float best) {  // as torch.argmax: the first of the largest, or of the NaNs
  return value > best || (value != value && best == best);
}

HD float cross_entropy(double top, double rest, double picked) {
  return (float)(log1p(rest) + (top - picked));
}

// --- selection: keys that order as the scores do, and the cut between kept and dropped -----------

HD uint32_t score_key(float score, bool centred, double centre) {
  if (centred) score = (float)fabs((double)score - centre);
  score += 0.0f;  // -0 and 0 are one score
  uint32_t bits;
  memcpy(&bits, &score, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

HD bool finite_key(uint32_t key) { return key > 0x007FFFFFu && key < 0xFF800000u; }

// Below `low` and above `high` all is dropped; of the keys equal to one, the first few are kept.
struct Cut {
  uint32_t low, high;
  int64_t keep_low, keep_high;
};

enum Side { OUT, TIE_LOW, TIE_HIGH, IN };

HD Side side(uint32_t key, const Cut& cut) {
  if (key == cut.low) return TIE_LOW;
  if (key == cut.high) return TIE_HIGH;
  return key > cut.low && key < cut.high ? IN : OUT;
}

// A pass of the radix selection looks at one digit of the key, the highest first.
struct Digit {
  int shift, bits;

  HD int of(uint32_t key) const { return (int)(key >> shift & ((1u << bits) - 1)); }
  HD uint32_t before(uint32_t key) const { return (uint32_t)((uint64_t)key >> (shift + bits)); }
};

// A rank's progress through the passes: which keys still compete, and the rank among them.
struct Seek {
  uint32_t prefix;
  int64_t rank;   // how many of the competitors are below the key sought
  int64_t equal;  // how many competitors there are

  // With one more digit, `bin`: `below` competitors have a lower one there, `count` the same.
  HD Seek next(Digit digit, int bin, int64_t below, int64_t count) const {
    return {prefix << digit.bits | (uint32_t)bin, rank - below, count};
  }

  template <class Count>
  HD int advance(const Count* histogram, Digit digit) {  // returns the digit it chose
    int bin = 0;
    int64_t below = 0;
    while (rank >= below + (int64_t)histogram[bin]) below += (int64_t)histogram[bin++];
    *this = next(digit, bin, below, (int64_t)histogram[bin]);
    return bin;
  }
};

struct Seeks {  // of the first key that stays, and of the last
  Seek side[2];
};

// From the two sought keys: `low` the first key that stays, `high` the last one.
HD Cut make_cut(const Seek& low, const Seek& high) {
  // Of the keys equal to low's, low.rank are dropped from below; of those equal to high's,
  // high.rank + 1 are at or below the last one kept.
  int64_t keep_low = low.equal - low.rank, keep_high = high.rank + 1;
  if (low.prefix == high.prefix) keep_low = keep_high - low.rank;
  return {low.prefix, high.prefix, keep_low, keep_high};
}

// The passes of CUDA, which has to fit two histograms into the shared memory of a block.
HD Digit digit_of(int pass) {
  if (pass == 0) return {21, 11};
  return pass == 1 ? Digit{10, 11} : Digit{0, 10};
}

struct Tally {  // of a run of keys, by side
  int64_t in, low, high;
};

struct Add {
  HD Tally operator()(const Tally& a, const Tally& b) const {
    return {a.in + b.in, a.low + b.low, a.high + b.high};
  }
};

HD Tally tally_of(const uint32_t* keys, int count, const Cut& cut) {
  Tally tally{0, 0, 0};
  for (int i = 0; i < count; i++) {
    Side where = side(keys[i], cut);
    tally.in += where == IN, tally.low += where == TIE_LOW, tally.high += where == TIE_HIGH;
  }
  return tally;
}

// --- arguments: ops.py checks what a user gives; this keeps memory safe from other callers ---------

inline void check(bool ok, const char* op, const char* what) {
  if (!ok) throw std::runtime_error(std::string(op) + ": " + what);
}

inline void check_arguments(bool ok, const char* op) {
  check(ok, op, "these arguments are not what advprune.ops gives");
}

inline bool is_vector(const Tensor& v, ScalarType type, int64_t count, const Tensor& x) {
  return v.dim() == 1 && v.scalar_type() == type && v.is_contiguous() && v.numel() == count &&
         v.is_cuda() == x.is_cuda() && v.get_device_index() == x.get_device_index();
}

inline int64_t batch_of(const char* op, const Tensor& x, const Tensor& ids) {
  check_arguments(x.dim() > 0 && is_vector(ids, ScalarType::Long, x.size(0), x), op);
  return x.size(0);
}

// An optional value per example; null where the scalar serves for all.
inline const float* per_example(const char* op, const std::optional<Tensor>& v, const Tensor& x) {
  check_arguments(!v || is_vector(*v, ScalarType::Float, x.size(0), x), op);
  return v ? v->const_data_ptr<float>() : nullptr;
}

// Where each id's image is: in `rows`, else at the id itself.
inline const int64_t* rows_of(const char* op, const Tensor& images, const Tensor& ids,
                              const std::optional<Tensor>& rows) {
  const Tensor& places = rows ? *rows : ids;
  check_arguments(images.dim() == 4 && images.scalar_type() == ScalarType::Byte &&
                      images.is_contiguous() &&
                      is_vector(ids, ScalarType::Long, ids.numel(), images) &&
                      is_vector(places, ScalarType::Long, ids.numel(), images),
                  op);
  return places.const_data_ptr<int64_t>();
}

// Calls f(T*, Out*) for x's element type; the output's type is float32 for uint8, else x's own.
template <class F>
void with_floats(const char* op, const Tensor& x, const F& f) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return f((const float*)x.const_data_ptr(), (float*)nullptr);
    case ScalarType::Half: return f((const Half*)x.const_data_ptr(), (Half*)nullptr);
    case ScalarType::BFloat16: return f((const BFloat16*)x.const_data_ptr(), (BFloat16*)nullptr);
    default: check_arguments(false, op);
  }
}

template <class F>
void with_pixels(const char* op, const Tensor& x, const F& f) {
  if (x.scalar_type() != ScalarType::Byte) return with_floats(op, x, f);
  f((const uint8_t*)x.const_data_ptr(), (float*)nullptr);
}

// Floats in channels last; uint8 has contiguous results, and so is walked contiguously.
inline bool is_channels_last(const Tensor& x) {
  return x.dim() == 4 && !x.is_contiguous() && x.scalar_type() != ScalarType::Byte &&
         x.stride(1) == 1 && x.stride(3) == x.size(1) && x.stride(2) == x.size(3) * x.size(1) &&
         x.stride(0) == x.size(2) * x.size(3) * x.size(1);
}

// x in a layout that the kernels walk: channels last, else contiguous.
inline Tensor walkable(const Tensor& x, bool channels_last) {
  return contiguous(x, channels_last ? torch::headeronly::MemoryFormat::ChannelsLast
                                     : torch::headeronly::MemoryFormat::Contiguous);
}

inline Tensor like_pixels(const Tensor& x) {
  bool integers = x.scalar_type() == ScalarType::Byte;
  return integers ? new_empty(x, x.sizes(), ScalarType::Float) : empty_like(x);
}

// The contiguous result in the memory layout of x, as the references give it.
inline Tensor laid_out_like(const Tensor& x, Tensor result) {
  if (x.is_contiguous() || x.scalar_type() == ScalarType::Byte) return result;
  Tensor out = empty_like(x);
  return out.is_contiguous() ? result : copy_(out, result);
}

}  // namespace advprune
