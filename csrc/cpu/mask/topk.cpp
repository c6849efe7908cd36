// Formula    mask = the k largest scores; among equal ones the lowest positions; NaN ranks lowest.
// Mapping    radix select on order-preserving integer keys: histograms of 11 bits, most significant
//            first, over chunks of a fixed size; then one pass writes the mask.
// Cost       about 4 reads of the scores (float32), no sort, no copy of them.
// Contract   sparsekern/ops/mask/topk.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <optional>
#include <vector>

#include "../../common/ceil_div.h"
#include "../../common/check.h"
#include "../parallel.h"

namespace sparsekern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int kDigitBits = 11;
constexpr int64_t kBins = int64_t(1) << kDigitBits;
constexpr int64_t kChunk = int64_t(1) << 16;

// Integers in the order of the floats; zeros of both signs are equal, NaN is below everything.
inline uint32_t key_of(float score) {
  if (score != score) return 0;
  uint32_t bits;
  const float value = score + 0.0f;
  std::memcpy(&bits, &value, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
inline uint64_t key_of(double score) {
  if (score != score) return 0;
  uint64_t bits;
  const double value = score + 0.0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits >> 63 ? ~bits : bits | (uint64_t(1) << 63);
}

template <typename T>
struct Candidates {
  const T* scores;
  const uint8_t* among;  // may be null: all
  int64_t numel;

  int64_t chunks() const { return ceil_div(numel, kChunk); }

  // Calls visit(position, key) for the candidates of one chunk, in order.
  template <typename Callback>
  void for_each(int64_t chunk, const Callback& visit) const {
    const int64_t end = std::min(numel, (chunk + 1) * kChunk);
    for (int64_t i = chunk * kChunk; i < end; ++i)
      if (among == nullptr || among[i] != 0) visit(i, key_of(scores[i]));
  }
};

// The k-th largest key, and how many candidates equal to it belong to the k largest.
template <typename Key>
struct Threshold {
  Key key;
  int64_t ties;
};

template <typename Key, typename T>
Threshold<Key> select(const Candidates<T>& c, int64_t k) {
  Key prefix = 0;
  Key prefix_mask = 0;
  int64_t wanted = k;
  for (int shift = int(sizeof(Key)) * 8; shift > 0;) {
    const int bits = std::min(kDigitBits, shift);
    shift -= bits;
    const Key digit_mask = (Key(1) << bits) - 1;
    std::vector<int64_t> counts(size_t(c.chunks() * kBins));
    parallel_tasks(c.chunks(), c.numel, [&](int64_t chunk, int64_t) {
      int64_t* mine = counts.data() + chunk * kBins;
      c.for_each(chunk, [&](int64_t, Key key) {
        if ((key & prefix_mask) == prefix) ++mine[(key >> shift) & digit_mask];
      });
    });
    Key digit = digit_mask;
    for (;; --digit) {
      int64_t count = 0;
      for (int64_t chunk = 0; chunk < c.chunks(); ++chunk) count += counts[chunk * kBins + digit];
      if (count >= wanted) break;
      wanted -= count;
      SPARSEKERN_CHECK(digit > 0, "Expected k to be at most the number of candidates. Got ", k,
                       ".");
    }
    prefix |= digit << shift;
    prefix_mask |= digit_mask << shift;
  }
  return {prefix, wanted};
}

template <typename Key, typename T>
void write_mask(const Candidates<T>& c, const Threshold<Key>& threshold, uint8_t* mask) {
  std::vector<int64_t> ties(size_t(c.chunks()) + 1);
  parallel_tasks(c.chunks(), c.numel, [&](int64_t chunk, int64_t) {
    int64_t count = 0;
    c.for_each(chunk, [&](int64_t, Key key) { count += key == threshold.key; });
    ties[chunk + 1] = count;
  });
  for (int64_t chunk = 0; chunk < c.chunks(); ++chunk) ties[chunk + 1] += ties[chunk];
  parallel_tasks(c.chunks(), c.numel, [&](int64_t chunk, int64_t) {
    const int64_t begin = chunk * kChunk;
    std::memset(mask + begin, 0, size_t(std::min(c.numel, begin + kChunk) - begin));
    int64_t tie = ties[chunk];
    c.for_each(chunk, [&](int64_t i, Key key) {
      mask[i] = key > threshold.key || (key == threshold.key && tie++ < threshold.ties);
    });
  });
}

template <typename Key, typename T>
Tensor topk(const Tensor& scores, int64_t k, const std::optional<Tensor>& among) {
  const Candidates<T> candidates{static_cast<const T*>(scores.data_ptr()),
                                 among ? static_cast<const uint8_t*>(among->data_ptr()) : nullptr,
                                 scores.numel()};
  Tensor mask = torch::stable::empty(scores.sizes(), ScalarType::Bool);
  uint8_t* data = static_cast<uint8_t*>(mask.mutable_data_ptr());
  if (k == 0) {
    std::memset(data, 0, size_t(scores.numel()));
  } else {
    write_mask(candidates, select<Key>(candidates, k), data);
  }
  return mask;
}

Tensor mask_topk_cpu(Tensor scores, int64_t k, std::optional<Tensor> among) {
  SPARSEKERN_CHECK(k >= 0 && k <= scores.numel(), "Expected k to be between 0 and ", scores.numel(),
                   ". Got ", k, ".");
  const Tensor contiguous = torch::stable::contiguous(scores);
  std::optional<Tensor> filter;
  if (among) {
    SPARSEKERN_CHECK(among->scalar_type() == ScalarType::Bool && among->numel() == scores.numel(),
                     "Expected among to be a bool tensor of the shape of scores. Got ",
                     among->numel(), " elements.");
    filter = torch::stable::contiguous(*among);
  }
  if (scores.scalar_type() == ScalarType::Double)
    return topk<uint64_t, double>(contiguous, k, filter);
  SPARSEKERN_CHECK(scores.scalar_type() == ScalarType::Float,
                   "Expected scores to be float32 or float64. Got another dtype.");
  return topk<uint32_t, float>(contiguous, k, filter);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) { m.impl("mask_topk", TORCH_BOX(&mask_topk_cpu)); }

}  // namespace sparsekern
