// Formula    y[r] = activation(bias[r] + sum_j values[j] * x[col[j]])   over row r's entries.
// Mapping    row after row; lanes are entries, whose elements of x are gathered, in two sets of sums.
// Tile       a batch of one.
// Arithmetic accumulated in T (float or double); lanes are added at the end of the row.
// Alignment  none required; the last entries of a row go through masks.
// Contract   PanelKernels in kernels.h.
#pragma once
#include "activation.inl"

template <typename V>
struct Dot {
  using T = typename V::Element;
  static constexpr int W = V::kWidth;

  static void dot(const int32_t* crow, const int32_t* col, const T* values, const T* x,
                  const T* bias, int64_t rows, Activation activation, T* y) {
    for (int64_t r = 0; r < rows; ++r) {
      typename V::Reg even = V::zero(), odd = V::zero();
      int64_t j = crow[r];
      const int64_t end = crow[r + 1];
      for (; j + 2 * W <= end; j += 2 * W) {
        even = V::mul_add(V::load(values + j), V::gather(x, col + j), even);
        odd = V::mul_add(V::load(values + j + W), V::gather(x, col + j + W), odd);
      }
      for (; j < end; j += W) {
        const int left = int(end - j < W ? end - j : W);
        const typename V::Lanes lanes = V::lanes(0, left);
        even = V::mul_add(V::load(values + j, lanes), V::gather(x, col + j, left), even);
      }
      y[r] = V::sum(V::add(even, odd)) + (bias != nullptr ? bias[r] : T(0));
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
