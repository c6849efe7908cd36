// Formula    y[r] = activation(bias[r] + sum_j values[j] * x[col[j]])   over row r's entries.
// Mapping    row after row; a row's entries four at a time, whose elements of x are loaded one by one,
//            in four sets of sums.
// Tile       a batch of one.
// Arithmetic accumulated in T (float or double); the sums are added at the end of the row.
// Alignment  none required.
// Contract   PanelKernels in kernels.h.
#pragma once
#include "activation.inl"

// sum_j values[j] * x[col[j]], j < count; V is a vector of few lanes.
template <typename V, typename T>
static SPARSEKERN_INLINE T dot_entries(const T* values, const int32_t* col, int64_t count,
                                       const T* x) {
  constexpr int W = V::kWidth, kSums = 4;
  typename V::Reg sum[kSums];
  SPARSEKERN_UNROLL(8)
  for (int s = 0; s < kSums; ++s) sum[s] = V::zero();
  int64_t j = 0;
  for (; j + kSums * W <= count; j += kSums * W) {
    SPARSEKERN_UNROLL(8)
    for (int s = 0; s < kSums; ++s)
      sum[s] = V::mul_add(V::load(values + j + s * W), V::gather(x, col + j + s * W), sum[s]);
  }
  for (; j + W <= count; j += W)
    sum[0] = V::mul_add(V::load(values + j), V::gather(x, col + j), sum[0]);
  for (; j < count; ++j) sum[1] = V::mul_add_one(values[j], x[col[j]], sum[1]);
  return V::sum(V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3])));
}

template <typename V>
struct Dot {
  using T = typename V::Element;
  static constexpr int W = V::kWidth;

  static void dot(const int32_t* crow, const int32_t* col, const T* values, const T* x,
                  const T* bias, int64_t rows, Activation activation, T* y) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t j = crow[r];
      const T total = dot_entries<typename V::Four>(values + j, col + j, crow[r + 1] - j, x);
      y[r] = total + (bias != nullptr ? bias[r] : T(0));
    }
    if (activation == Activation::kNone) return;
    for (int64_t r = 0; r < rows; r += W) {
      const int left = int(rows - r < W ? rows - r : W);
      typename V::Reg sums = V::load(y + r, V::lanes(0, left));
      Activate<V>::apply(&sums, 1, activation);
      V::store_first(y + r, sums, left);
    }
  }
};
