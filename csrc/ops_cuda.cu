// The operators on CUDA: one launch each, but for the few passes of the selection. Mirrors ops_cpu.cpp.
#include "launch.h"

#include <algorithm>
#include <type_traits>

namespace advprune {
namespace {

using torch::stable::contiguous;
using torch::stable::accelerator::DeviceGuard;

constexpr int THREADS = 256;

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
  static const Report report("augment", "an id is outside the images");
  const int64_t* row = rows_of("augment", images, ids, rows);
  DeviceGuard guard(images.get_device_index());
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
  static const Report report("cross_entropy_scores", "a label is no class");
  DeviceGuard guard(logits.get_device_index());
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

// --- selection ------------------------------------------------------------------------------------

// Scores whose keys fit the shared memory of one block take one launch of ALONE threads, others
// a few passes over memory. SPARE is more than such a block has of shared memory beside the keys.
constexpr int ALONE = 1024, SPARE = 4096, ITEMS = 16, CHUNK = THREADS * ITEMS;
constexpr int BINS = 2048, PASSES = 3;  // two histograms fit in shared memory

struct Scores {
  const float* score;
  int64_t n;
  double centre;
  bool centred;

  __device__ uint32_t key(int64_t i) const { return score_key(score[i], centred, centre); }
};

template <class T, int SIZE>
using Scan = cub::BlockScan<T, SIZE, cub::BLOCK_SCAN_WARP_SCANS>;  // it needs little shared memory

__device__ void count(uint32_t key, const Seeks& seeks, Digit digit, uint32_t* counts) {
  uint32_t prefix = digit.before(key), low = seeks.side[0].prefix, high = seeks.side[1].prefix;
  if (prefix == low) atomicAdd(&counts[digit.of(key)], 1u);
  if (prefix == high && high != low) atomicAdd(&counts[BINS + digit.of(key)], 1u);
}

// The next digit of one side, by a whole block. `to` is not `from`, so nobody waits to write it.
template <int SIZE, class Count>
__device__ void advance(const Seeks& from, Seeks& to, int side, const Count* counts, Digit digit) {
  __shared__ typename Scan<int64_t, SIZE>::TempStorage storage;
  constexpr int OWN = BINS / SIZE;
  Seek seek = from.side[side];
  if (from.side[0].prefix != from.side[1].prefix) counts += side * BINS;
  int64_t own[OWN], sum = 0, below;
  for (int i = 0; i < OWN; i++) sum += own[i] = (int64_t)counts[threadIdx.x * OWN + i];
  Scan<int64_t, SIZE>(storage).ExclusiveSum(sum, below);
  for (int i = 0; i < OWN; below += own[i++])
    if (seek.rank >= below && seek.rank < below + own[i])
      to.side[side] = seek.next(digit, threadIdx.x * OWN + i, below, own[i]);
}

// Each thread has a run of keys, from id `first` on; the runs of a block follow one another.
template <int SIZE>
__device__ void write_ids(const uint32_t* keys, int64_t first, int count, const Cut& cut,
                          const Tally& before_block, int64_t* ids) {
  __shared__ typename Scan<Tally, SIZE>::TempStorage storage;
  Tally before;
  Scan<Tally, SIZE>(storage).ExclusiveScan(tally_of(keys, count, cut), before, Tally{0, 0, 0}, Add());
  before = Add()(before_block, before);
  int64_t place = before.in + min(before.low, cut.keep_low) + min(before.high, cut.keep_high);
  for (int i = 0; i < count; i++) {
    Side where = side(keys[i], cut);
    bool stays = where == IN || (where == TIE_LOW && before.low++ < cut.keep_low) ||
                 (where == TIE_HIGH && before.high++ < cut.keep_high);
    if (stays) ids[place++] = first + i;
  }
}

__global__ void __launch_bounds__(ALONE)
    select_kernel(Scores s, Seeks start, int64_t kept, int64_t* ids, int64_t* bad) {
  __shared__ Seeks seeks[PASSES + 1];
  __shared__ unsigned non_finite;
  uint32_t *counts = dynamic_shared(), *keys = counts + 2 * BINS;
  int n = (int)s.n;
  if (threadIdx.x == 0) seeks[0] = start, non_finite = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += ALONE) {
    keys[i] = s.key(i);
    if (!finite_key(keys[i])) atomicAdd(&non_finite, 1u);
  }
  __syncthreads();
  if (threadIdx.x == 0) *bad = non_finite;
  if (kept == 0) return;  // what is not finite has been counted
  for (int pass = 0; pass < PASSES; pass++) {
    for (int bin = threadIdx.x; bin < 2 * BINS; bin += ALONE) counts[bin] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += ALONE) count(keys[i], seeks[pass], digit_of(pass), counts);
    for (int s = 0; s < 2; s++) {
      __syncthreads();
      advance<ALONE>(seeks[pass], seeks[pass + 1], s, counts, digit_of(pass));
    }
    __syncthreads();
  }
  Cut cut = make_cut(seeks[PASSES].side[0], seeks[PASSES].side[1]);
  int run = (n + ALONE - 1) / ALONE | 1;  // odd, so that a warp reads from 32 banks
  int first = min((int)threadIdx.x * run, n);
  write_ids<ALONE>(keys + first, first, min(run, n - first), cut, Tally{0, 0, 0}, ids);
}

__global__ void begin_kernel(Seeks* seeks, Seeks start) { seeks[0] = start; }

__global__ void histogram_kernel(Scores s, const Seeks* seeks, int pass,
                                 unsigned long long* counts, unsigned long long* bad) {
  __shared__ uint32_t local[2 * BINS];
  for (int bin = threadIdx.x; bin < 2 * BINS; bin += blockDim.x) local[bin] = 0;
  __syncthreads();
  Seeks now = seeks[pass];
  unsigned long long non_finite = 0;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < s.n;
       i += (int64_t)gridDim.x * blockDim.x) {
    uint32_t key = s.key(i);
    if (pass == 0) non_finite += !finite_key(key);
    count(key, now, digit_of(pass), local);
  }
  if (non_finite) atomicAdd(bad, non_finite);
  __syncthreads();
  for (int bin = threadIdx.x; bin < 2 * BINS; bin += blockDim.x)
    if (local[bin]) atomicAdd(&counts[bin], (unsigned long long)local[bin]);
}

__global__ void advance_kernel(Seeks* seeks, int pass, const unsigned long long* counts) {
  advance<THREADS>(seeks[pass], seeks[pass + 1], blockIdx.x, counts, digit_of(pass));
}

// The block's chunk of keys, read together. A thread's run is ITEMS long and one bank further on.
struct Run {
  int64_t first;
  int count;
  const uint32_t* keys;
};

__device__ Run run_of(const Scores& s) {
  __shared__ uint32_t keys[CHUNK + THREADS];
  int64_t chunk = (int64_t)blockIdx.x * CHUNK, first = chunk + threadIdx.x * ITEMS;
  for (int i = threadIdx.x; i < CHUNK && chunk + i < s.n; i += THREADS)
    keys[i + i / ITEMS] = s.key(chunk + i);
  __syncthreads();
  int64_t count = max(min(s.n - first, (int64_t)ITEMS), (int64_t)0);
  return {first, (int)count, keys + threadIdx.x * (ITEMS + 1)};
}

__global__ void tally_kernel(Scores s, const Seeks* found, Tally* tallies) {
  using Reduce = cub::BlockReduce<Tally, THREADS>;
  __shared__ typename Reduce::TempStorage storage;
  Run run = run_of(s);
  Cut cut = make_cut(found->side[0], found->side[1]);
  Tally sum = Reduce(storage).Reduce(tally_of(run.keys, run.count, cut), Add());
  if (threadIdx.x == 0) tallies[blockIdx.x] = sum;
}

// In place: what comes before each chunk. One block walks over all chunks.
__global__ void scan_kernel(Tally* tallies, int64_t chunks) {
  __shared__ typename Scan<Tally, THREADS>::TempStorage storage;
  Tally before{0, 0, 0};
  for (int64_t first = 0; first < chunks; first += THREADS) {
    int64_t chunk = first + threadIdx.x;
    Tally own = chunk < chunks ? tallies[chunk] : Tally{0, 0, 0}, exclusive, all;
    Scan<Tally, THREADS>(storage).ExclusiveScan(own, exclusive, Tally{0, 0, 0}, Add(), all);
    if (chunk < chunks) tallies[chunk] = Add()(before, exclusive);
    before = Add()(before, all);
    __syncthreads();
  }
}

__global__ void write_kernel(Scores s, const Seeks* found, const Tally* tallies, int64_t* ids) {
  Run run = run_of(s);
  Cut cut = make_cut(found->side[0], found->side[1]);
  write_ids<THREADS>(run.keys, run.first, run.count, cut, tallies[blockIdx.x], ids);
}

std::tuple<Tensor, Tensor> select_kept(const Tensor& scores, int64_t low, int64_t high,
                                       std::optional<double> centre) {
  int64_t n = scores.numel(), kept = n - low - high;
  check_arguments(is_vector(scores, ScalarType::Float, n, scores) && low >= 0 && high >= 0 &&
                      kept >= 0,
                  "select_kept");
  DeviceGuard guard(scores.get_device_index());
  cudaStream_t stream = stream_of(scores);
  Tensor ids = new_empty(scores, {kept}, ScalarType::Long);
  int64_t* to = ids.mutable_data_ptr<int64_t>();
  Scores s{scores.const_data_ptr<float>(), n, centre.value_or(0), centre.has_value()};
  Seeks start{{{0, low, 0}, {0, n - high - 1, 0}}};

  int most = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                        scores.get_device_index()));
  if (int64_t bytes = (2 * BINS + n) * sizeof(uint32_t); bytes + SPARE <= most) {
    Tensor bad = new_empty(scores, {}, ScalarType::Long);
    STD_CUDA_CHECK(cudaFuncSetAttribute(select_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        most - SPARE));
    launch_with(bytes, select_kernel, 1, ALONE, stream, s, start, kept, to,
                bad.mutable_data_ptr<int64_t>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return {ids, bad};
  }
  int64_t chunks = (n + CHUNK - 1) / CHUNK;
  Tensor bad = new_zeros(scores, {}, ScalarType::Long);
  Tensor counts = new_zeros(scores, {PASSES * 2 * BINS}, ScalarType::Long);
  Tensor sought = new_empty(scores, {(PASSES + 1) * (int64_t)sizeof(Seeks) / 8}, ScalarType::Long);
  Tensor tallies = new_empty(scores, {3 * chunks}, ScalarType::Long);
  auto* count = (unsigned long long*)counts.mutable_data_ptr();
  auto* seeks = (Seeks*)sought.mutable_data_ptr();
  auto* tally = (Tally*)tallies.mutable_data_ptr();
  unsigned wide = (unsigned)std::min<int64_t>(chunks, 2048);

  launch(begin_kernel, 1, 1, stream, seeks, start);
  for (int pass = 0; pass < PASSES; pass++, count += 2 * BINS) {
    launch(histogram_kernel, wide, THREADS, stream, s, seeks, pass, count,
           (unsigned long long*)bad.mutable_data_ptr());
    if (kept == 0) break;  // what is not finite has been counted
    launch(advance_kernel, 2, THREADS, stream, seeks, pass, count);
  }
  if (kept > 0) {
    launch(tally_kernel, (unsigned)chunks, THREADS, stream, s, seeks + PASSES, tally);
    launch(scan_kernel, 1, THREADS, stream, tally, chunks);
    launch(write_kernel, (unsigned)chunks, THREADS, stream, s, seeks + PASSES, tally, to);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {ids, bad};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advprune, CUDA, m) {
  m.impl("rs_start", TORCH_BOX(&rs_start));
  m.impl("fgsm_step", TORCH_BOX(&fgsm_step));
  m.impl("augment", TORCH_BOX(&augment));
  m.impl("cross_entropy_scores", TORCH_BOX(&cross_entropy_scores));
  m.impl("select_kept", TORCH_BOX(&select_kept));
}

}  // namespace advprune
