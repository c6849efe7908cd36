// Formula    sum of (factor g)^2 where the bit is 1.
// Mapping    64 gradients a word, one vector of sums for each vector of the word.
// Tile       a span of one tensor; lanes are added up in double after every kFoldWords words.
// Arithmetic squares and short sums in float (double for double), everything longer in double.
// Alignment  none required.
// Contract   sparsekern/ops/update/masked_norm.py. 4 bytes and a bit a float gradient are read.
#pragma once
#include "update.inl"

constexpr int64_t kFoldWords = 32;

template <typename V, typename E>
struct Squares {
  using T = typename V::Element;
  using Reg = typename V::Reg;
  static constexpr int kVectors = kWordBits / V::kWidth;

  // PERF: the sum is selected, not the gradient: compilers make a masked load of the latter, which
  // no hardware prefetcher follows (10M gradients: 2.9 ms instead of 1.3, one thread, Zen 5).
  template <bool kScaled>
  static SPARSEKERN_INLINE void add(const E* g, uint64_t word, Reg factor, Reg* sum) {
    SPARSEKERN_UNROLL(8)
    for (int k = 0; k < kVectors; ++k) {
      Reg x = V::load(g + k * V::kWidth);
      if (kScaled) x = V::mul(x, factor);
      sum[k] = V::select(V::chosen(word >> (k * V::kWidth)), V::mul_add(x, x, sum[k]), sum[k]);
    }
  }

  // Vectors by a tree, then their lanes one by one in double.
  static SPARSEKERN_INLINE void fold(Reg* sum, CarriedSum* total) {
    SPARSEKERN_UNROLL(3)
    for (int n = kVectors / 2; n > 0; n /= 2) {
      SPARSEKERN_UNROLL(4)
      for (int k = 0; k < n; ++k) sum[k] = V::add(sum[k], sum[k + n]);
    }
    T lane[V::kWidth];
    V::store(lane, sum[0]);
    for (int l = 0; l < V::kWidth; ++l) total->add(double(lane[l]));
  }

  template <bool kMasked, bool kScaled>
  static double run(const UpdateSpan& span, double scale) {
    const Reg factor = V::broadcast(T(scale));
    const E* g = static_cast<const E*>(span.grad);
    CarriedSum total;
    const int64_t whole = span.count - span.count % kWordBits;
    Reg sum[kVectors];
    for (int64_t i = 0; i < whole;) {
      for (int k = 0; k < kVectors; ++k) sum[k] = V::zero();
      const int64_t end = whole - i < kFoldWords * kWordBits ? whole : i + kFoldWords * kWordBits;
      for (; i < end; i += kWordBits)
        add<kScaled>(g + i, kMasked ? mask_word(span.bits + i / 8, kWordBits) : ~uint64_t(0),
                     factor, sum);
      fold(sum, &total);
    }
    const int64_t left = span.count - whole;
    if (left == 0) return total.value;
    for (int k = 0; k < kVectors; ++k) sum[k] = V::zero();
    PaddedTail<E> tail(const_cast<E*>(g + whole), left);
    add<kScaled>(tail.get(), kMasked ? mask_word(span.bits + whole / 8, left) : ~uint64_t(0),
                 factor, sum);
    fold(sum, &total);
    return total.value;
  }

  template <bool kScaled>
  static double of(const UpdateSpan& span, double factor) {
    return span.bits == nullptr ? run<false, kScaled>(span, factor)
                                : run<true, kScaled>(span, factor);
  }

  static double squares(const UpdateSpan& span, double factor) {
    return factor == 1 ? of<false>(span, factor) : of<true>(span, factor);
  }
};

template <typename V>
static double squares_dtype(const UpdateSpan& span, double factor) {
  if constexpr (sizeof(typename V::Element) == sizeof(double)) {
    return Squares<V, double>::squares(span, factor);
  } else if (span.dtype == Dtype::kBFloat16) {
    return Squares<V, BFloat16>::squares(span, factor);
  } else if (span.dtype == Dtype::kHalf) {
    return Squares<V, Half>::squares(span, factor);
  } else {
    return Squares<V, float>::squares(span, factor);
  }
}
