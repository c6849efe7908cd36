// Formula    the k largest scores as bits; among equal ones the first; NaN ranks lowest.
// Mapping    a sample of the scores brackets the k-th largest; one pass over pieces of a fixed size
//            writes which scores are above the bracket and lists those within; the exact threshold
//            is found among the listed keys, by histograms. A bracket that missed is followed by
//            the open interval on the side where the threshold is.
// Cost       one read of the scores (two after a miss), one write of the bits.
// Exact      whatever the sample says: the counts of the pass decide.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../../common/check.h"
#include "../../common/inline.h"
#include "../scratch.h"
#include "words.h"

namespace sparsekern {

inline int first_set(uint64_t word) { return __builtin_ctzll(word); }

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
inline float score_of(uint32_t key) {
  const uint32_t bits = (key >> 31) != 0 ? key ^ 0x80000000u : ~key;
  float score;
  std::memcpy(&score, &bits, sizeof score);
  return key == 0 ? -std::numeric_limits<float>::infinity() : score;
}
inline double score_of(uint64_t key) {
  const uint64_t bits = (key >> 63) != 0 ? key ^ (uint64_t(1) << 63) : ~key;
  double score;
  std::memcpy(&score, &bits, sizeof score);
  return key == 0 ? -std::numeric_limits<double>::infinity() : score;
}

// A key, and how many of those that are equal to it belong to the largest.
template <typename Key>
struct Threshold {
  Key key;
  int64_t ties;
};

// The `wanted`-th largest of `count` keys from low to high, 1 <= wanted <= count; `buffer` has room
// for all of them.
template <typename Key>
Threshold<Key> kth_largest(const Key* keys, int64_t count, int64_t wanted, Key low, Key high,
                           Key* buffer) {
  constexpr int kDigitBits = 11;
  std::vector<int64_t> occurs(size_t(1) << kDigitBits);
  while (low < high) {
    int shift = 0;
    while (((high - low) >> shift) >> kDigitBits != 0) ++shift;
    std::fill(occurs.begin(), occurs.end(), 0);
    for (int64_t i = 0; i < count; ++i) ++occurs[size_t((keys[i] - low) >> shift)];
    Key digit = (high - low) >> shift;
    for (; occurs[size_t(digit)] < wanted; --digit) wanted -= occurs[size_t(digit)];
    int64_t found = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Key key = keys[i];
      buffer[found] = key;  // PERF: written over unless it counts; no branch to predict
      found += (key - low) >> shift == digit;
    }
    keys = buffer;
    count = found;
    low += digit << shift;
    high = low + std::min(Key(high - low), Key((Key(1) << shift) - 1));
  }
  return {low, wanted};
}

// At most kPiece scores, in the order that decides between equal ones.
template <typename T>
struct ScorePiece {
  const T* scores;
  const uint64_t* among;  // candidates; null: all
  uint64_t* bits;         // which belong to the k largest
  int64_t count;

  bool has(int64_t i) const { return among == nullptr || ((among[i / 64] >> (i % 64)) & 1u) != 0; }
};

template <typename T>
class Largest {
 public:
  using Key = decltype(key_of(T()));
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

  Largest(std::vector<ScorePiece<T>> pieces, ScratchFrame& scratch)
      : pieces_(std::move(pieces)),
        scratch_(scratch),
        counts_(pieces_.size()),
        within_(scratch.take<uint64_t>(size() * kPiece / 64)),
        list_(scratch.take<T>(size() * kRoom)),
        at_(scratch.take<uint16_t>(size() * kRoom)) {
    for (const ScorePiece<T>& piece : pieces_) numel_ += piece.count;
  }

  void select(int64_t k) {
    Bracket bracket = numel_ < 4 * kSample ? Bracket{-kInfinity, kInfinity} : guess(k);
    while (true) {
      const BracketCounts total = measure(bracket);
      if (total.above < k && total.above + total.within >= k) {
        keep_of_bracket(bracket, k - total.above, total.within);
        return;
      }
      if (total.above >= k) {
        bracket = {bracket.high, kInfinity};
      } else if (bracket.low > -kInfinity) {
        bracket = {-kInfinity, bracket.low};
      } else {
        keep_with_nan(k);
        return;
      }
    }
  }

 private:
  static constexpr int64_t kRoom = kPiece / 8;  // listed scores of a piece
  static_assert(kPiece <= int64_t(1) << 16, "positions in a piece are stored in 16 bits");
  static constexpr int64_t kLine = 16;      // neighbours that are sampled together
  static constexpr int64_t kSample = 8192;  // scores of the smallest sample

  struct Bracket {
    T low, high;
  };
  struct Run {
    const ScorePiece<T>* piece;
    int64_t first, last;
  };

  int64_t size() const { return int64_t(pieces_.size()); }

  // An interval that holds the k-th largest score in all likelihood: three standard deviations of
  // its rank in a sample. The positions follow from the sizes alone, and are uneven, so that no
  // period of the scores (the columns of a matrix) hides behind them.
  Bracket guess(int64_t k) {
    const int64_t lines = std::clamp<int64_t>(numel_ / 128, kSample, 4 * kSample) / kLine;
    const int64_t step = numel_ / lines;
    std::vector<Run> runs;
    runs.reserve(size_t(lines));
    size_t at = 0;
    int64_t before = 0, sampled = 0;
    uint32_t random = 1;
    for (int64_t line = 0; line < lines; ++line) {
      random = random * 1664525u + 1013904223u;
      const int64_t wanted = line * step + int64_t((uint64_t(random) * uint64_t(step)) >> 32);
      while (wanted >= before + pieces_[at].count) before += pieces_[at++].count;
      const int64_t first = (wanted - before) / kLine * kLine;
      runs.push_back({&pieces_[at], first, std::min(pieces_[at].count, first + kLine)});
      sampled += runs.back().last - first;
    }
    std::vector<Key> keys, buffer(size_t(lines * kLine));
    keys.reserve(buffer.size());
    for (size_t i = 0; i < runs.size(); ++i) {
      // PERF: each run is a miss of cache and TLB; eight at a time take half as long.
      const Run& ahead = runs[std::min(i + 8, runs.size() - 1)];
      SPARSEKERN_PREFETCH(ahead.piece->scores + ahead.first);
      for (int64_t j = runs[i].first; j < runs[i].last; ++j)
        if (runs[i].piece->has(j)) keys.push_back(key_of(runs[i].piece->scores[j]));
    }
    const double rank = double(k) * double(sampled) / double(numel_);
    const double spread = 3 * std::sqrt(rank * std::max(0.0, 1 - rank / double(sampled))) + 2;
    const int64_t count = int64_t(keys.size());
    const int64_t upper = int64_t(rank - spread), lower = int64_t(rank + spread) + 1;
    const auto score = [&](int64_t wanted) {
      return score_of(
          kth_largest(keys.data(), count, wanted, Key(0), Key(~Key(0)), buffer.data()).key);
    };
    return {lower > count ? -kInfinity : score(lower),
            upper < 1 || upper > count ? kInfinity : score(upper)};
  }

  BracketCounts measure(const Bracket& bracket) {
    parallel_tasks(size(), numel_, [&](int64_t i, int64_t) {
      const ScorePiece<T>& piece = pieces_[size_t(i)];
      counts_[size_t(i)] = mask_kernels<T>().bracket(piece.scores, piece.among, piece.count,
                                                     bracket.low, bracket.high, piece.bits,
                                                     within(i), {list(i), at_ + i * kRoom, kRoom});
    });
    return total();
  }

  // With k beyond all numbers: NaNs are kept too.
  void keep_with_nan(int64_t k) {
    parallel_tasks(size(), numel_, [&](int64_t i, int64_t) {
      const ScorePiece<T>& piece = pieces_[size_t(i)];
      std::fill_n(piece.bits, ceil_div(piece.count, 64), 0);
      std::fill_n(within(i), ceil_div(piece.count, 64), 0);
      BracketCounts counts{0, 0};
      for (int64_t j = 0; j < piece.count; ++j) {
        const uint64_t candidate = piece.has(j), number = piece.scores[j] == piece.scores[j];
        piece.bits[j / 64] |= (candidate & number) << (j % 64);
        within(i)[j / 64] |= (candidate & ~number) << (j % 64);
        counts.above += int64_t(candidate & number);
        counts.within += int64_t(candidate & ~number);
      }
      counts_[size_t(i)] = counts;
    });
    const BracketCounts all = total();
    SPARSEKERN_CHECK(all.above + all.within >= k,
                     "Expected k to be at most the number of candidates. Got ", k, ".");
    keep_first(k - all.above);
  }

  // The `wanted` largest of the scores within the bracket.
  void keep_of_bracket(const Bracket& bracket, int64_t wanted, int64_t count) {
    if (bracket.low == bracket.high) {
      keep_first(wanted);
      return;
    }
    Key* keys = scratch_.template take<Key>(count);
    const std::vector<int64_t> begin = before([&](int64_t i) { return counts_[size_t(i)].within; });
    parallel_tasks(size(), count,
                   [&](int64_t i, int64_t) { list_keys(i, keys + begin[size_t(i)]); });
    const Threshold<Key> threshold =
        kth_largest(keys, count, wanted, key_of(bracket.low), key_of(bracket.high),
                    scratch_.template take<Key>(count));
    std::vector<int64_t> ties(pieces_.size());
    parallel_tasks(size(), count, [&](int64_t i, int64_t) {
      const Key* first = keys + begin[size_t(i)];
      ties[size_t(i)] = std::count(first, first + counts_[size_t(i)].within, threshold.key);
    });
    const std::vector<int64_t> ties_before = before([&](int64_t i) { return ties[size_t(i)]; });
    parallel_tasks(size(), count, [&](int64_t i, int64_t) {
      keep_keys(i, keys + begin[size_t(i)], threshold.key, threshold.ties - ties_before[size_t(i)]);
    });
  }

  // The keys of a piece's scores within the bracket.
  void list_keys(int64_t i, Key* keys) {
    const int64_t count = counts_[size_t(i)].within;
    if (is_listed(i)) {
      for (int64_t j = 0; j < count; ++j) keys[j] = key_of(list(i)[j]);
      return;
    }
    const ScorePiece<T>& piece = pieces_[size_t(i)];
    for (int64_t word = 0; word < ceil_div(piece.count, 64); ++word)
      for (uint64_t left = within(i)[word]; left != 0; left &= left - 1)
        *keys++ = key_of(piece.scores[64 * word + first_set(left)]);
  }

  // Those above the threshold, and the first `ties` that are equal to it.
  void keep_keys(int64_t i, const Key* keys, Key threshold, int64_t ties) {
    const ScorePiece<T>& piece = pieces_[size_t(i)];
    const auto is_kept = [&](Key key) {
      const bool tie = (key == threshold) & (ties > 0);
      ties -= tie;
      return uint64_t((key > threshold) | tie);
    };
    if (is_listed(i)) {
      const uint16_t* at = at_ + i * kRoom;
      for (int64_t j = 0; j < counts_[size_t(i)].within; ++j)
        piece.bits[at[j] / 64] |= is_kept(keys[j]) << (at[j] % 64);
      return;
    }
    for (int64_t word = 0; word < ceil_div(piece.count, 64); ++word)
      for (uint64_t left = within(i)[word]; left != 0; left &= left - 1)
        piece.bits[word] |= is_kept(*keys++) << first_set(left);
  }

  // The first `wanted` of all within the bracket, which are equal.
  void keep_first(int64_t wanted) {
    const std::vector<int64_t> ties_before =
        before([&](int64_t i) { return counts_[size_t(i)].within; });
    parallel_tasks(size(), numel_ / 64, [&](int64_t i, int64_t) {
      const ScorePiece<T>& piece = pieces_[size_t(i)];
      int64_t left = wanted - ties_before[size_t(i)];
      for (int64_t word = 0; word < ceil_div(piece.count, 64) && left > 0; ++word) {
        uint64_t kept = within(i)[word];
        int64_t count = __builtin_popcountll(kept);
        for (; count > left; --count) kept &= ~(uint64_t(1) << (63 - __builtin_clzll(kept)));
        piece.bits[word] |= kept;
        left -= count;
      }
    });
  }

  // Whether `bracket` had room for all scores of a piece within it.
  bool is_listed(int64_t i) const { return counts_[size_t(i)].within + 64 <= kRoom; }

  uint64_t* within(int64_t i) const { return within_ + i * (kPiece / 64); }
  T* list(int64_t i) const { return list_ + i * kRoom; }

  BracketCounts total() const {
    BracketCounts sum{0, 0};
    for (const BracketCounts& counts : counts_) {
      sum.above += counts.above;
      sum.within += counts.within;
    }
    return sum;
  }

  // Sums of count(piece) over the pieces in front of each, and over all.
  template <typename Count>
  std::vector<int64_t> before(const Count& count) const {
    std::vector<int64_t> sums(pieces_.size() + 1);
    for (int64_t i = 0; i < size(); ++i) sums[size_t(i) + 1] = sums[size_t(i)] + count(i);
    return sums;
  }

  const std::vector<ScorePiece<T>> pieces_;
  ScratchFrame& scratch_;
  int64_t numel_ = 0;
  std::vector<BracketCounts> counts_;
  uint64_t* within_;
  T* list_;       // the scores within the bracket
  uint16_t* at_;  // where they are in their piece
};

// Appends the pieces of one tensor.
template <typename T>
void add_pieces(const T* scores, const uint64_t* among, int64_t numel, uint64_t* bits,
                std::vector<ScorePiece<T>>& pieces) {
  for (int64_t first = 0; first < numel; first += kPiece)
    pieces.push_back({scores + first, among == nullptr ? nullptr : among + first / 64,
                      bits + first / 64, std::min(kPiece, numel - first)});
}

}  // namespace sparsekern
