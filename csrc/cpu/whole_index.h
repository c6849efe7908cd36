// What debug mode asks of an index: every number, before a kernel follows it. Too slow for each call
// otherwise; formats validate an index once, when it is built or loaded.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include "../common/check.h"
#include "../common/debug.h"

namespace sparsekern {

// Compressed rows; the names are those of the arguments.
struct IndexRows {
  const int32_t* crow;
  const int32_t* col;
  int64_t rows, cols, nnz;
  const char *crow_name, *col_name;

  IndexRows(const torch::stable::Tensor& crow_tensor, const torch::stable::Tensor& col_tensor,
            int64_t cols, const char* crow_name = "crow", const char* col_name = "col")
      : crow(static_cast<const int32_t*>(crow_tensor.data_ptr())),
        col(static_cast<const int32_t*>(col_tensor.data_ptr())),
        rows(crow_tensor.numel() - 1),
        cols(cols),
        nnz(col_tensor.numel()),
        crow_name(crow_name),
        col_name(col_name) {
    check_int32(crow_tensor, crow_name, rows + 1);
    check_int32(col_tensor, col_name, nnz);
  }

  void check() const {
    check_row_bounds(crow, rows, nnz, crow_name);
    for (int64_t row = 0; row < rows; ++row) {
      int64_t last = -1;
      for (int64_t j = crow[row]; j < crow[row + 1]; ++j) {
        SPARSEKERN_CHECK(last < col[j] && col[j] < cols, "Expected ", col_name,
                         " to rise within each row, from 0 to below ", cols, ". Got ", col[j],
                         " behind ", last, " in row ", row, ".");
        last = col[j];
      }
    }
  }
};

// That the second is the first by columns, `taps` of which make one of its rows: entry j of row c is
// the entry perm[j] at (col_t[j] / taps, c * taps + col_t[j] % taps). Both rise, so that perm is a
// permutation.
inline void check_transposed(const IndexRows& index, const IndexRows& transposed,
                             const torch::stable::Tensor& perm_tensor, int64_t taps) {
  index.check();
  transposed.check();
  check_int32(perm_tensor, "perm", index.nnz);
  const auto* perm = static_cast<const int32_t*>(perm_tensor.data_ptr());
  for (int64_t c = 0; c < transposed.rows; ++c) {
    for (int64_t j = transposed.crow[c]; j < transposed.crow[c + 1]; ++j) {
      const int64_t row = transposed.col[j] / taps, tap = transposed.col[j] % taps;
      const int64_t from = perm[j];
      SPARSEKERN_CHECK(index.crow[row] <= from && from < index.crow[row + 1] &&
                           index.col[from] == c * taps + tap,
                       "Expected perm to hold, for each entry of the transposed index, its place "
                       "in the index. Got ",
                       from, " for (", row, ", ", c * taps + tap, ").");
    }
  }
}

}  // namespace sparsekern
