// What the bodies of the update ops share: walking a span word by word of its mask.
#pragma once

// Bits of weights [0, count), count <= 64; never reads behind the last byte.
static SPARSEKERN_INLINE uint64_t mask_word(const uint8_t* bits, int64_t count) {
  uint64_t word = 0;
  std::memcpy(&word, bits, size_t(count + 7) / 8);
  return word;
}

static SPARSEKERN_INLINE uint64_t first_bits(int64_t count) {
  return count >= kWordBits ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
}

// A copy of the last `count` < 64 elements of an array, padded to a whole word; null stays null.
template <typename E>
struct PaddedTail {
  E data[kWordBits] = {};
  E* origin;
  int64_t count;

  PaddedTail(E* origin, int64_t count) : origin(origin), count(count) {
    if (origin != nullptr) std::memcpy(data, origin, size_t(count) * sizeof(E));
  }
  E* get() { return origin == nullptr ? nullptr : data; }
  void write_back() {
    if (origin != nullptr) std::memcpy(origin, data, size_t(count) * sizeof(E));
  }
};

constexpr int64_t kGroupWords = 8;
constexpr int64_t kGroup = kGroupWords * kWordBits;  // weights

static SPARSEKERN_INLINE bool is_empty_group(const uint8_t* bits) {
  uint64_t any = 0;
  for (int64_t i = 0; i < kGroupWords; ++i) any |= mask_word(bits + 8 * i, kWordBits);
  return any == 0;
}

template <typename V, typename E>
static SPARSEKERN_INLINE void clear_group(E* p) {
  for (int64_t k = 0; k < kGroup; k += V::kWidth) V::store(p + k, V::zero());
}

// Weights from p on, rounded; whole words are vectors.
template <typename V, typename C>
static void copy_weights(const float* p, C* target, int64_t count) {
  if (count < kWordBits) {
    for (int64_t i = 0; i < count; ++i) narrow(p[i], target + i);
    return;
  }
  for (int64_t i = 0; i < count; i += V::kWidth) V::store(target + i, V::load(p + i));
}

// Weights [first, first + count) of a span into its copy, while they are in the cache; `count` is
// below kWordBits or a multiple of it.
template <typename V, typename E>
static SPARSEKERN_INLINE void copy_part(const UpdateSpan& span, int64_t first, int64_t count) {
  if constexpr (sizeof(E) == sizeof(float)) {
    if (span.copy == nullptr) return;
    const float* const p = static_cast<const float*>(span.param) + first;
    if (span.copy_dtype == Dtype::kHalf) {
      copy_weights<V>(p, static_cast<Half*>(span.copy) + first, count);
    } else {
      copy_weights<V>(p, static_cast<BFloat16*>(span.copy) + first, count);
    }
  }
}

// Calls Body::word(p, g, first, second, word) for every 64 weights of the span. A group of 512
// weights that are all masked is skipped: its weights are cleared or not touched at all.
// PERF: nothing smaller is skipped, as a branch that is guessed wrong costs more than 64 weights
// from memory: 10M weights at density 0.01, half of whose words are empty, take 6.2 ms with a branch
// on words and 4.7 ms without (one thread, Zen 5).
template <typename V, typename E, typename G, typename Body, bool kMasked>
static void walk_words(const UpdateSpan& span, const typename Body::Constants& constants) {
  using T = typename V::Element;
  E* const p = static_cast<E*>(span.param);
  G* const g = static_cast<G*>(const_cast<void*>(span.grad));
  T* const first = static_cast<T*>(span.first);
  T* const second = static_cast<T*>(span.second);
  const Body body(constants);
  const auto at = [](T* state, int64_t i) { return state == nullptr ? state : state + i; };
  const auto words = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kWordBits) {
      const uint64_t word = kMasked ? mask_word(span.bits + i / 8, kWordBits) : ~uint64_t(0);
      body.template word<E, G, kMasked>(p + i, g + i, at(first, i), at(second, i), word);
    }
  };
  int64_t i = 0;
  for (; i + kGroup <= span.count; i += kGroup) {
    if (kMasked && is_empty_group(span.bits + i / 8)) {
      if (constants.clear) clear_group<V>(p + i);
    } else {
      words(i, i + kGroup);
    }
    copy_part<V, E>(span, i, kGroup);
  }
  const int64_t whole = span.count - span.count % kWordBits;
  words(i, whole);
  copy_part<V, E>(span, i, whole - i);
  const int64_t left = span.count - whole;
  if (left == 0) return;
  const uint64_t word =
      first_bits(left) & (kMasked ? mask_word(span.bits + whole / 8, left) : ~uint64_t(0));
  PaddedTail<E> tail_p(p + whole, left);
  PaddedTail<G> tail_g(g + whole, left);
  PaddedTail<T> tail_first(at(first, whole), left), tail_second(at(second, whole), left);
  body.template word<E, G, true>(tail_p.get(), tail_g.get(), tail_first.get(), tail_second.get(),
                                 word);
  tail_p.write_back();
  tail_first.write_back();
  tail_second.write_back();
  copy_part<V, E>(span, whole, left);
}

template <typename V, typename E, typename G, typename Body>
static void walk(const UpdateSpan& span, const typename Body::Constants& constants) {
  if (span.bits == nullptr) {
    walk_words<V, E, G, Body, false>(span, constants);
  } else {
    walk_words<V, E, G, Body, true>(span, constants);
  }
}

template <typename V, typename Body>
static void walk_dtype(const UpdateSpan& span, const typename Body::Constants& constants) {
  if constexpr (sizeof(typename V::Element) == sizeof(double)) {
    walk<V, double, double, Body>(span, constants);
  } else if (span.dtype == Dtype::kBFloat16) {
    walk<V, BFloat16, BFloat16, Body>(span, constants);
  } else if (span.dtype == Dtype::kHalf) {
    walk<V, Half, Half, Body>(span, constants);
  } else if (span.grad_dtype == Dtype::kBFloat16) {
    walk<V, float, BFloat16, Body>(span, constants);
  } else if (span.grad_dtype == Dtype::kHalf) {
    walk<V, float, Half, Body>(span, constants);
  } else {
    walk<V, float, float, Body>(span, constants);
  }
}
