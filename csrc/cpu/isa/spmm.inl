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
    // SAFETY: the buffer of starts ends in kPrefetchRows spare elements (panel_starts.h).
    if constexpr (kIndirect) {
      prefetch_row(perm, col, cell.starts[r + kPrefetchRows], cell.lines);
    } else {
      prefetch_row(values, col, cell.starts[r + kPrefetchRows], cell.lines);
    }
    typename V::Reg sum[NV];
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) sum[v] = kFirst ? V::zero() : V::load(tile + v * V::kWidth);
    const int32_t end = cell.ends[r];
    int32_t j = cell.starts[r];
    if (NV <= 4 && end - j >= kPairsFrom) {
      // PERF: four chains of additions cannot feed two 512-bit multipliers of latency 4 (Zen 5).
      typename V::Reg odd[NV];
      SPARSEKERN_UNROLL(8)
      for (int v = 0; v < NV; ++v) odd[v] = V::zero();
      for (; j + 2 <= end; j += 2) {
        add_entry<V, NV>(kIndirect ? values[perm[j]] : values[j], panel + int64_t(col[j]) * kWidth,
                         sum);
        add_entry<V, NV>(kIndirect ? values[perm[j + 1]] : values[j + 1],
                         panel + int64_t(col[j + 1]) * kWidth, odd);
      }
      SPARSEKERN_UNROLL(8)
      for (int v = 0; v < NV; ++v) sum[v] = V::add(sum[v], odd[v]);
    }
    for (; j < end; ++j)
      add_entry<V, NV>(kIndirect ? values[perm[j]] : values[j], panel + int64_t(col[j]) * kWidth,
                       sum);
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
    if (width == 64) {
      run<64>(cell, values, col, perm, panel, first, tile);
    } else if (width == 32) {
      run<32>(cell, values, col, perm, panel, first, tile);
    } else {
      run<16>(cell, values, col, perm, panel, first, tile);
    }
  }
};
