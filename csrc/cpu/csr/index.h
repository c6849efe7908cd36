// Checked views of the tensors that csr kernels take, and one block of their work.
#pragma once
#include "../output.h"
#include "../whole_index.h"
#include "batch.h"
#include "panel_starts.h"

namespace sparsekern {

// What csr_panel_starts would make of these rows.
inline void check_starts(const PanelGeometry& g, const int32_t* starts, const IndexRows& index,
                         const char* name) {
  index.check();
  for (int64_t r = 0; r < g.rows; ++r) {
    int64_t j = index.crow[r];
    for (int64_t p = 0; p <= g.panels; ++p) {
      while (j < index.crow[r + 1] && (p == g.panels || index.col[j] < p * g.panel)) ++j;
      SPARSEKERN_CHECK(starts[p * g.rows + r] == j, "Expected ", name, " to have ", j,
                       " for panel ", p, " of row ", r, ". Got ", starts[p * g.rows + r], ".");
    }
  }
}

// The panel starts of a matrix with `cols` columns (of its transpose); refuses a buffer built for
// another matrix.
inline PanelStarts checked_starts(const Tensor& buffer, const Tensor& crow, const Tensor& col,
                                  int64_t cols, bool transposed = false) {
  const PanelGeometry g(crow.numel() - 1, cols, col.numel());
  check_int32(col, "col", g.nnz);
  check_int32(buffer, "panel starts", g.numel());
  const int32_t* starts = static_cast<const int32_t*>(buffer.data_ptr());
  const int32_t* tail = starts + g.tail();
  SPARSEKERN_CHECK(tail[0] == PanelGeometry::kFormat && tail[1] == g.rows && tail[2] == g.cols &&
                       tail[3] == g.nnz,
                   "Expected panel starts of a [", g.rows, ", ", g.cols, "] matrix with ", g.nnz,
                   " non-zeros. Got those of a [", tail[1], ", ", tail[2], "] matrix with ",
                   tail[3], " (format ", tail[0], ").");
  if (is_debugging()) {
    const IndexRows index =
        transposed ? IndexRows(crow, col, cols, "crow_t", "col_t") : IndexRows(crow, col, cols);
    check_starts(g, starts, index, transposed ? "starts_t" : "starts");
  }
  return {g, starts};
}

template <typename T>
void check_values(const Tensor& t, const char* name, int64_t numel) {
  SPARSEKERN_CHECK(t.scalar_type() == scalar_type<T>(), "Expected ", name,
                   " to have the dtype of values, float32 or float64. Got another dtype.");
  SPARSEKERN_CHECK(t.is_contiguous() && t.numel() == numel, "Expected ", name,
                   " to be contiguous with ", numel, " elements. Got ", t.numel(), ".");
}

// Where a kernel writes: [batch, features] rows of any activation dtype.
struct Output {
  char* data;
  Dtype dtype;
  int64_t stride, element_size;

  Output(const Tensor& t, Dtype dtype, int64_t features)
      : data(static_cast<char*>(t.mutable_data_ptr())),
        dtype(dtype),
        stride(features),
        element_size(int64_t(t.element_size())) {}

  void* at(int64_t row, int64_t feature) const {
    return data + (row * stride + feature) * element_size;
  }
};

// Uninitialised, like `t` but with another last dimension.
inline Tensor empty_with_features(const Tensor& t, int64_t features) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) sizes.push_back(t.size(d));
  sizes.push_back(features);
  return empty_output(sizes, t.scalar_type());
}

// Tiles of a batch for a matrix. PERF: in tiles of 128 two vectors share the work of a row's borders. The
// forward pass takes 0.87 to 1 of the time at density 0.2, 0.93 to 1.08 at 0.05, more below, where packed
// panels outgrow the caches (docs/cpu_kernels.md).
template <typename T>
int widest_tile(const PanelGeometry& g) {
  return 32 * g.nnz >= g.rows * g.cols ? kernels<T>().widest : kTileWidth;
}

// A CSR matrix as the kernels take it; values are read through `perm` where it is not null.
template <typename T>
struct Matrix {
  PanelStarts starts;
  const T* values;
  const int32_t* col;
  const int32_t* perm;
};

// y[b, r] = activation(sum_c W[r, c] x[b, c] (+ bias[r])) for one tile of the batch and one block of
// rows.
template <typename T>
void multiply_tile(const Matrix<T>& matrix, const T* bias, Activation activation, const Tile& tile,
                   const T* panel, int64_t block, T* scratch, const Output& y);

}  // namespace sparsekern
