// Formula    mask = the k largest scores; among equal ones the lowest positions; NaN ranks lowest.
// Mapping    radix select on order-preserving integer keys: a histogram of their first 11 bits over
//            chunks of a fixed size, then only keys that share the threshold's first 11 bits are
//            looked at; one pass writes the mask.
// Cost       3 reads of the scores, no sort; a copy of the keys that share the first 11 bits.
// Contract   sparsekern/ops/mask/topk.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
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
// PERF: without branches, because signs are random.
inline uint32_t key_of(float score) {
  const float value = score + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t key = bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u);
  return score == score ? key : 0;
}
inline uint64_t key_of(double score) {
  const double value = score + 0.0;
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint64_t key = bits ^ (uint64_t(int64_t(bits) >> 63) | (uint64_t(1) << 63));
  return score == score ? key : 0;
}

template <typename T>
struct Candidates {
  const T* scores;
  const uint8_t* among;  // may be null: all
  int64_t numel;

  int64_t chunks() const { return ceil_div(numel, kChunk); }
  int64_t begin(int64_t chunk) const { return chunk * kChunk; }
  int64_t end(int64_t chunk) const { return std::min(numel, (chunk + 1) * kChunk); }
  bool has(int64_t i) const { return among == nullptr || among[i] != 0; }
};

// The k-th largest key; how many candidates equal to it are in each chunk, and how many of all of
// them belong to the k largest.
template <typename Key>
struct Threshold {
  Key key;
  int64_t kept_ties;
  std::vector<int64_t> ties;
};

// How often each value of a digit occurs, one row a chunk.
using Counts = std::vector<int64_t>;

// The digit at which `wanted` of the largest are reached, or -1; takes those above it off `wanted`.
int64_t find_digit(const Counts& counts, int64_t& wanted) {
  std::vector<int64_t> total(kBins);
  for (size_t row = 0; row < counts.size(); row += kBins)
    for (int64_t digit = 0; digit < kBins; ++digit) total[digit] += counts[row + digit];
  for (int64_t digit = kBins - 1; digit >= 0; --digit) {
    if (total[digit] >= wanted) return digit;
    wanted -= total[digit];
  }
  return -1;
}

template <typename Key, typename T>
Threshold<Key> select(const Candidates<T>& c, int64_t k) {
  const int64_t chunks = c.chunks();
  int64_t wanted = k;
  int shift = int(sizeof(Key)) * 8 - kDigitBits;
  Counts counts(size_t(chunks * kBins));
  parallel_tasks(chunks, c.numel, [&](int64_t chunk, int64_t) {
    int64_t* mine = counts.data() + chunk * kBins;
    for (int64_t i = c.begin(chunk); i < c.end(chunk); ++i)
      mine[key_of(c.scores[i]) >> shift] += c.has(i);
  });
  const int64_t first = find_digit(counts, wanted);
  SPARSEKERN_CHECK(first >= 0, "Expected k to be at most the number of candidates. Got ", k, ".");
  Key prefix = Key(first) << shift;

  // The keys of the digit that was found, by chunk: all that the other digits have to look at.
  std::vector<std::vector<Key>> keys(static_cast<size_t>(chunks));
  parallel_tasks(chunks, c.numel, [&](int64_t chunk, int64_t) {
    auto& mine = keys[chunk];
    mine.resize(size_t(counts[chunk * kBins + first]) + 1);
    size_t found = 0;
    for (int64_t i = c.begin(chunk); i < c.end(chunk); ++i) {
      const Key key = key_of(c.scores[i]);
      mine[found] = key;  // PERF: written over unless it counts; no branch to predict
      found += size_t(key >> shift == Key(first)) & size_t(c.has(i));
    }
    mine.resize(found);
  });
  while (shift > 0) {
    const int bits = std::min(kDigitBits, shift);
    const int above = shift;
    shift -= bits;
    const Key digit_mask = (Key(1) << bits) - 1;
    parallel_tasks(chunks, c.numel, [&](int64_t chunk, int64_t) {
      int64_t* mine = counts.data() + chunk * kBins;
      std::memset(mine, 0, size_t(kBins) * sizeof(int64_t));
      for (const Key key : keys[chunk])
        if (key >> above == prefix >> above) ++mine[(key >> shift) & digit_mask];
    });
    prefix |= Key(find_digit(counts, wanted)) << shift;
  }
  Threshold<Key> threshold{prefix, wanted, std::vector<int64_t>(size_t(chunks))};
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    threshold.ties[chunk] = std::count(keys[chunk].begin(), keys[chunk].end(), prefix);
  return threshold;
}

// Candidates above the threshold, or from it on.
template <bool kWithTies, typename Key, typename T>
void write_chunk(const Candidates<T>& c, int64_t chunk, Key key, uint8_t* mask) {
  const int64_t begin = c.begin(chunk), end = c.end(chunk);
  for (int64_t i = begin; i < end; ++i) {
    const Key own = key_of(c.scores[i]);
    mask[i] = kWithTies ? own >= key : own > key;
  }
  if (c.among != nullptr)
    for (int64_t i = begin; i < end; ++i) mask[i] &= uint8_t(c.among[i] != 0);
}

template <typename Key, typename T>
void write_mask(const Candidates<T>& c, const Threshold<Key>& threshold, uint8_t* mask) {
  std::vector<int64_t> before(size_t(c.chunks()) + 1);  // ties in front of a chunk
  for (int64_t chunk = 0; chunk < c.chunks(); ++chunk)
    before[chunk + 1] = before[chunk] + threshold.ties[chunk];
  parallel_tasks(c.chunks(), c.numel, [&](int64_t chunk, int64_t) {
    const int64_t left = threshold.kept_ties - before[chunk];
    if (threshold.ties[chunk] <= left) {
      write_chunk<true>(c, chunk, threshold.key, mask);
      return;
    }
    write_chunk<false>(c, chunk, threshold.key, mask);
    for (int64_t i = c.begin(chunk), kept = 0; i < c.end(chunk) && kept < left; ++i)
      if (key_of(c.scores[i]) == threshold.key && c.has(i)) mask[i] = 1, ++kept;
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
