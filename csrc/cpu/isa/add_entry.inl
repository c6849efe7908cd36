// One non-zero times contiguous vectors, added to sums in registers.
#pragma once

constexpr int32_t kPairsFrom = 6;  // entries of a row from which two sets of sums pay

template <typename V, int NV>
static SPARSEKERN_INLINE void add_entry(typename V::Element value, const typename V::Element* x,
                                        typename V::Reg* sum) {
  const typename V::Reg weight = V::broadcast(value);
  SPARSEKERN_UNROLL(8)
  for (int v = 0; v < NV; ++v) sum[v] = V::mul_add(weight, V::load(x + v * V::kWidth), sum[v]);
}
