// Formula    sums[r] (+)= sum_b panel[r][b].
// Mapping    four rows at a time, summed over their lanes by a tree of shuffles.
// Tile       `width` batch elements; the padding of a narrower batch is zero (pack.inl).
// Arithmetic sums in T.
// Alignment  none required.
// Contract   PanelKernels in kernels.h.
#pragma once

template <typename V>
struct SumRows {
  using T = typename V::Element;

  static void sum_rows(const T* panel, int64_t rows, int width, bool accumulate, T* sums) {
    for (int64_t r = 0; r < rows; r += 4) {
      typename V::Reg sum[4];
      for (int i = 0; i < 4; ++i) {
        const T* row =
            panel + (r + i < rows ? r + i : r) * width;  // what is too much is not stored
        sum[i] = V::load(row);
        for (int b = V::kWidth; b < width; b += V::kWidth)
          sum[i] = V::add(sum[i], V::load(row + b));
      }
      V::reduce4(sum, rows - r, accumulate, sums + r);
    }
  }
};
