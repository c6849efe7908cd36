// Formula    y[r] = bias[r] + sum_j value_rj * x[col_rj], and tile[r][:] = sum_j value_rj * panel[col_rj][:].
// Mapping    several short rows at once, or one long row's entries in several sets of sums, so that
//            sums do not wait for each other.
// Tile       a batch of one, whose elements are gathered four at a time; or 4, 8 or 16 elements.
// Arithmetic in T (float or double), in the order of the columns; several sums are added at the end.
// Alignment  none required.
// Contract   CondensedKernels in condensed_kernels.h.
#pragma once
#include "add_entry.inl"

// PERF: four rows at once are four streams of entries. With 5 to 51 entries in a row they take 0.85 to
// 1 of the time of one row after the other, with 102 as long, with 205 and 410 1.05 to 1.15 (1024 and
// 4096 columns, batches of 4, 8 and 16, Zen 5, one thread).
constexpr int64_t kLongRow = 128;

// `kRows` rows of a tile as wide as the batch.
template <typename V, int kWidth, int kRows, typename T>
static SPARSEKERN_INLINE void condensed_spmm_rows(const CondensedRows<T>& matrix, int64_t row,
                                                  const T* panel, T* tile) {
  constexpr int NV = kWidth / V::kWidth;
  const CondensedRows<T> own = matrix.from(row, kRows);
  typename V::Reg sum[kRows][NV];
  SPARSEKERN_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) sum[r][v] = V::zero();
  }
  for (int64_t j = 0; j < own.fan_in; ++j) {
    SPARSEKERN_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const int64_t entry = r * own.fan_in + j;
      add_entry<V, NV>(own.values[entry], panel + int64_t(own.col[entry]) * kWidth, sum[r]);
    }
  }
  SPARSEKERN_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) V::store(tile + (row + r) * kWidth + v * V::kWidth, sum[r][v]);
  }
}

// One row whose entries take turns between several sets of sums.
template <typename V, int kWidth, typename T>
static void condensed_spmm_long(const CondensedRows<T>& matrix, const T* panel, T* tile) {
  constexpr int NV = kWidth / V::kWidth;
  for (int64_t r = 0; r < matrix.rows; ++r, tile += kWidth) {
    const CondensedRows<T> own = matrix.from(r, 1);
    typename V::Reg sum[NV];
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) sum[v] = V::zero();
    const auto value = [&](int32_t j) { return own.values[j]; };
    const auto place = [&](int32_t j) { return panel + int64_t(own.col[j]) * kWidth; };
    add_entries<V, NV>(0, int32_t(own.fan_in), value, place, sum);
    SPARSEKERN_UNROLL(8)
    for (int v = 0; v < NV; ++v) V::store(tile + v * V::kWidth, sum[v]);
  }
}

template <typename V, int kWidth, typename T>
static void condensed_spmm(const CondensedRows<T>& matrix, const T* panel, T* tile) {
  if (matrix.fan_in >= kLongRow) return condensed_spmm_long<V, kWidth>(matrix, panel, tile);
  int64_t r = 0;
  for (; r + 4 <= matrix.rows; r += 4) condensed_spmm_rows<V, kWidth, 4>(matrix, r, panel, tile);
  for (; r < matrix.rows; ++r) condensed_spmm_rows<V, kWidth, 1>(matrix, r, panel, tile);
}

template <typename V, int kRows, typename T>
static SPARSEKERN_INLINE void condensed_dot_rows(const CondensedRows<T>& matrix, int64_t row,
                                                 const T* x, const T* bias, T* y) {
  const CondensedRows<T> own = matrix.from(row, kRows);
  typename V::Reg sum[kRows];
  SPARSEKERN_UNROLL(8)
  for (int r = 0; r < kRows; ++r) sum[r] = V::zero();
  int64_t j = 0;
  for (; j + V::kWidth <= own.fan_in; j += V::kWidth) {
    SPARSEKERN_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const int64_t entry = r * own.fan_in + j;
      sum[r] = V::mul_add(V::load(own.values + entry), V::gather(x, own.col + entry), sum[r]);
    }
  }
  for (; j < own.fan_in; ++j) {
    SPARSEKERN_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const int64_t entry = r * own.fan_in + j;
      sum[r] = V::mul_add_one(own.values[entry], x[own.col[entry]], sum[r]);
    }
  }
  SPARSEKERN_UNROLL(8)
  for (int r = 0; r < kRows; ++r)
    y[row + r] = V::sum(sum[r]) + (bias != nullptr ? bias[row + r] : T(0));
}

template <typename V>
struct Condensed {
  using T = typename V::Element;

  static void dot(const CondensedRows<T>& matrix, const T* x, const T* bias, T* y) {
    int64_t r = 0;
    for (; r + 2 <= matrix.rows; r += 2)
      condensed_dot_rows<typename V::Four, 2>(matrix, r, x, bias, y);
    for (; r < matrix.rows; ++r) condensed_dot_rows<typename V::Four, 1>(matrix, r, x, bias, y);
  }

  static void spmm(const CondensedRows<T>& matrix, const T* panel, int width, T* tile) {
    if (width == 16) {
      condensed_spmm<V, 16>(matrix, panel, tile);
    } else if (width == 8) {
      condensed_spmm<typename V::Eight, 8>(matrix, panel, tile);
    } else {
      condensed_spmm<typename V::Four, 4>(matrix, panel, tile);
    }
  }
};

template <typename V>
constexpr CondensedKernels<typename V::Element> condensed_kernels() {
  CondensedKernels<typename V::Element> table{};
  table.dot = Condensed<V>::dot;
  table.spmm = Condensed<V>::spmm;
  return table;
}
