// Formula    gradient[j] (+)= sum_b x_panel[col[j]][b] * y_panel[r][b]   over row r's entries.
// Mapping    row after row; the row of y_panel stays in registers while its entries are walked four
//            at a time; the four sums are folded over their lanes by one tree of shuffles.
// Tile       `width` batch elements = NV vectors, by the rows of one block.
// Arithmetic products and sums in T (float or double); a batch of several tiles adds tile by tile.
// Alignment  none required.
// Contract   PanelKernels in kernels.h.
//
// PERF: the last group of a row computes what lies behind the row and stores only its own: branches
// on the number of entries left cost up to 15 % (Zen 4, 6 to 20 entries a row and panel).

#pragma once
#include "prefetch.inl"

// sum[j] = lanes of y . x_panel[col[j]] for four entries.
template <typename V, int kWidth>
static SPARSEKERN_INLINE void sddmm_four(const typename V::Reg* y, const int32_t* col,
                                         const typename V::Element* x_panel, typename V::Reg* sum) {
  using T = typename V::Element;
  constexpr int NV = kWidth / V::kWidth;
  SPARSEKERN_UNROLL(4)
  for (int j = 0; j < 4; ++j) {
    const T* x = x_panel + int64_t(col[j]) * kWidth;
    sum[j] = V::mul_add(y[0], V::load(x), V::zero());
    SPARSEKERN_UNROLL(8)
    for (int v = 1; v < NV; ++v) sum[j] = V::mul_add(y[v], V::load(x + v * V::kWidth), sum[j]);
  }
}

template <typename V, int kWidth>
static void sddmm_rows(const CellRows& cell, const int32_t* col, const typename V::Element* x_panel,
                       const typename V::Element* y_panel, bool accumulate,
                       typename V::Element* gradient) {
  constexpr int NV = kWidth / V::kWidth;
  for (int64_t r = 0; r < cell.rows; ++r, y_panel += kWidth) {
    // SAFETY: the buffer of starts ends in kPrefetchRows spare elements (panel_starts.h).
    prefetch_row(gradient, col, cell.starts[r + kPrefetchRows], cell.lines);
    typename V::Reg y[NV];
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) y[v] = V::load(y_panel + v * V::kWidth);
    const int64_t end = cell.ends[r];
    for (int64_t j = cell.starts[r]; j < end; j += 4) {
      typename V::Reg sum[4];
      if (j + 4 <= cell.nnz) {
        sddmm_four<V, kWidth>(y, col + j, x_panel, sum);
      } else {
        // SAFETY: behind the last entry of the matrix there is nothing to read.
        const int32_t* c = col + j;
        const int64_t left = cell.nnz - j;
        const int32_t last[4] = {c[0], c[left > 1 ? 1 : 0], c[left > 2 ? 2 : 0], c[0]};
        sddmm_four<V, kWidth>(y, last, x_panel, sum);
      }
      V::reduce4(sum, end - j, accumulate, gradient + j);
    }
  }
}

template <typename V>
struct Sddmm {
  using T = typename V::Element;

  static void sddmm(const CellRows& cell, const int32_t* col, const T* x_panel, const T* y_panel,
                    int width, bool accumulate, T* gradient) {
    const auto body = width == 128  ? sddmm_rows<V, 128>
                      : width == 64 ? sddmm_rows<V, 64>
                      : width == 32 ? sddmm_rows<V, 32>
                                    : sddmm_rows<V, 16>;
    body(cell, col, x_panel, y_panel, accumulate, gradient);
  }
};
