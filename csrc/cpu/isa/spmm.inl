// Formula    tile[r][:] (+)= sum_j values[j] * panel[col[j]][:]   over row r's entries of one panel.
// Mapping    row after row; the row's accumulators stay in registers while its entries are walked:
//            one broadcast, one load and one multiply-add per vector, no store per non-zero.
// Tile       `width` batch elements = NV vectors, by the rows of one block.
// Arithmetic accumulated in T (float or double), in the order of the columns.
// Alignment  none required.
// Contract   PanelKernels in kernels.h.
//
// PERF: the loop over a row's entries is a plain one. Rows sorted by length with a body unrolled for
// each length (the lab's design) are 3 to 20 % slower on Zen 4, and their code does not stay in L1.

#pragma once
#include "add_entry.inl"
#include "prefetch.inl"

template <typename V, int kWidth, bool kFirst, bool kIndirect>
static void spmm_rows(const CellRows& cell, const typename V::Element* values, const int32_t* col,
                      const int32_t* perm, const typename V::Element* panel,
                      typename V::Element* tile) {
  constexpr int NV = kWidth / V::kWidth;
  for (int64_t r = 0; r < cell.rows; ++r, tile += kWidth) {
    // SAFETY: the buffer of starts ends in kPrefetchRows spare elements (panel_starts.h); where it
    // does not, there is nothing to prefetch.
    if (cell.lines > 0) {
      if constexpr (kIndirect) {
        prefetch_row(perm, col, cell.starts[r + kPrefetchRows], cell.lines);
      } else {
        prefetch_row(values, col, cell.starts[r + kPrefetchRows], cell.lines);
      }
    }
    typename V::Reg sum[NV];
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) sum[v] = kFirst ? V::zero() : V::load(tile + v * V::kWidth);
    const auto value = [&](int32_t j) { return kIndirect ? values[perm[j]] : values[j]; };
    const auto place = [&](int32_t j) { return panel + int64_t(col[j]) * kWidth; };
    add_entries<V, NV>(cell.starts[r], cell.ends[r], value, place, sum);
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) V::store(tile + v * V::kWidth, sum[v]);
  }
}

template <typename V>
struct Spmm {
  using T = typename V::Element;

  template <int kWidth>
  static void run(const CellRows& cell, const T* values, const int32_t* col, const int32_t* perm,
                  const T* panel, bool first, T* tile) {
    if (perm == nullptr) {
      const auto body =
          first ? spmm_rows<V, kWidth, true, false> : spmm_rows<V, kWidth, false, false>;
      body(cell, values, col, perm, panel, tile);
    } else {
      const auto body =
          first ? spmm_rows<V, kWidth, true, true> : spmm_rows<V, kWidth, false, true>;
      body(cell, values, col, perm, panel, tile);
    }
  }

  static void spmm(const CellRows& cell, const T* values, const int32_t* col, const int32_t* perm,
                   const T* panel, int width, bool first, T* tile) {
    if (width == 128) {
      run<128>(cell, values, col, perm, panel, first, tile);
    } else if (width == 64) {
      run<64>(cell, values, col, perm, panel, first, tile);
    } else if (width == 32) {
      run<32>(cell, values, col, perm, panel, first, tile);
    } else {
      run<16>(cell, values, col, perm, panel, first, tile);
    }
  }
};
