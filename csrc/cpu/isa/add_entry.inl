// One non-zero times contiguous vectors, added to sums in registers.
#pragma once

// Sets of sums that take turns. PERF: one set of few vectors cannot feed two 512-bit multipliers of
// latency 4. A batch of 16 takes 0.73 ns an entry with two sets, 0.48 with four and whole rows
// (1024 x 1024 at density 0.25, Zen 5, one thread).
template <typename V, int NV>
constexpr int kChains = V::kMultiplies < 2 || NV >= 8 ? 1
                        : NV >= 4                     ? 2
                                                      : 4;
constexpr int32_t kChainsFrom = 6;  // entries of a row from which several sets pay

template <typename V, int NV>
static SPARSEKERN_INLINE void add_entry(typename V::Element value, const typename V::Element* x,
                                        typename V::Reg* sum) {
  const typename V::Reg weight = V::broadcast(value);
  SPARSEKERN_UNROLL(8)
  for (int v = 0; v < NV; ++v) sum[v] = V::mul_add(weight, V::load(x + v * V::kWidth), sum[v]);
}

// Adds entries [j, end) of a row to `sum`: value(j) times the vectors from place(j) on.
template <typename V, int NV, typename Value, typename Place>
static SPARSEKERN_INLINE void add_entries(int32_t j, int32_t end, const Value& value,
                                          const Place& place, typename V::Reg* sum) {
  if constexpr (kChains<V, NV> > 1) {
    if (end - j >= kChainsFrom) {
      constexpr int kMore = kChains<V, NV> - 1;
      typename V::Reg more[kMore][NV];
      SPARSEKERN_UNROLL(8)
      for (int c = 0; c < kMore; ++c) {
        SPARSEKERN_UNROLL(8)
        for (int v = 0; v < NV; ++v) more[c][v] = V::zero();
      }
      for (; end - j > kMore; j += kMore + 1) {
        add_entry<V, NV>(value(j), place(j), sum);
        SPARSEKERN_UNROLL(8)
        for (int c = 0; c < kMore; ++c)
          add_entry<V, NV>(value(j + c + 1), place(j + c + 1), more[c]);
      }
      SPARSEKERN_UNROLL(8)
      for (int c = 0; c < kMore; ++c) {
        SPARSEKERN_UNROLL(8)
        for (int v = 0; v < NV; ++v) sum[v] = V::add(sum[v], more[c][v]);
      }
    }
  }
  for (; j < end; ++j) add_entry<V, NV>(value(j), place(j), sum);
}
