// The radix selection on the CPU: threads over scores.
#include "ops.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace advprune {
namespace {

using torch::stable::parallel_for;

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
  check_arguments(low >= 0 && high >= 0 && kept >= 0 &&
                      is_vector(scores, ScalarType::Float, n, scores),
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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(advprune, CPU, m) {
  m.impl("select_kept", TORCH_BOX(&select_kept));
}

}  // namespace advprune
