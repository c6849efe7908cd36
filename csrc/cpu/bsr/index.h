// Checked views of the tensors that bsr kernels take.
#pragma once
#include "../csr/batch.h"
#include "../csr/index.h"
#include "../isa/block_kernels.h"

namespace sparsekern {

template <typename T>
const BlockKernels<T>& block_kernels();
template <>
inline const BlockKernels<float>& block_kernels<float>() {
  return float_block_kernels();
}
template <>
inline const BlockKernels<double>& block_kernels<double>() {
  return double_block_kernels();
}

// Every number in [0, size). One pass over an index that is as many times smaller than the values
// as a block is large, so each call makes it.
inline bool all_below(const int32_t* numbers, int64_t count, int64_t size) {
  uint32_t most = 0;
  for (int64_t j = 0; j < count; ++j) most = std::max(most, uint32_t(numbers[j]));
  return count == 0 || int64_t(most) < size;
}

// Rows of blocks: crow, col (and perm) of `cols` columns of blocks.
inline void check_block_index(const Tensor& crow, const Tensor& col, int64_t cols) {
  const int64_t rows = crow.numel() - 1, count = col.numel();
  SPARSEKERN_CHECK(rows >= 0, "Expected crow to have one element more than rows. Got 0 elements.");
  check_int32(crow, "crow", rows + 1);
  check_int32(col, "col", count);
  check_row_bounds(static_cast<const int32_t*>(crow.data_ptr()), rows, count);
  SPARSEKERN_CHECK(all_below(static_cast<const int32_t*>(col.data_ptr()), count, cols),
                   "Expected col to be in [0, ", cols, "). Got a column that is not.");
}

// In debug mode, the whole of an index.
inline void check_both_ways(const Tensor& crow, const Tensor& col, const Tensor& crow_t,
                            const Tensor& col_t, const Tensor& perm) {
  if (!is_debugging()) return;
  check_transposed(IndexRows(crow, col, crow_t.numel() - 1),
                   IndexRows(crow_t, col_t, crow.numel() - 1, "crow_t", "col_t"), perm, 1);
}

// A block matrix [O, I] as its values and both of its indices say it; refuses what does not fit.
template <typename T>
struct Blocks {
  BlockMatrix<T> plain;       // y = x W^T: rows of blocks give outputs
  BlockMatrix<T> transposed;  // dx = dy W
  int64_t rows, cols, count, height, width;

  Blocks(const Tensor& values, const Tensor& crow, const Tensor& col, int64_t cols)
      : rows(crow.numel() - 1), cols(cols), count(col.numel()) {
    SPARSEKERN_CHECK(values.dim() == 3 && values.size(1) > 0 && values.size(2) > 0,
                     "Expected values to be [blocks, height, width]. Got ", values.dim(),
                     " dimensions, or blocks without elements.");
    height = values.size(1);
    width = values.size(2);
    check_block_index(crow, col, cols);
    if (is_debugging()) IndexRows(crow, col, cols).check();
    check_values<T>(values, "values", count * height * width);
    plain = {data(crow), data(col), nullptr, static_cast<const T*>(values.data_ptr()), rows, height,
             width,      width,     1};
  }

  void add_transposed(const Tensor& crow_t, const Tensor& col_t, const Tensor& perm) {
    SPARSEKERN_CHECK(crow_t.numel() == cols + 1 && col_t.numel() == count,
                     "Expected crow_t and col_t to be those of ", cols, " columns and ", count,
                     " blocks. Got ", crow_t.numel(), " and ", col_t.numel(), " elements.");
    check_block_index(crow_t, col_t, rows);
    check_int32(perm, "perm", count);
    SPARSEKERN_CHECK(all_below(data(perm), count, count), "Expected perm to be in [0, ", count,
                     "). Got a position that is not.");
    transposed = {data(crow_t), data(col_t), data(perm), plain.values, cols,
                  width,        height,      1,          width};
  }

  int64_t out_features() const { return rows * height; }
  int64_t in_features() const { return cols * width; }
  int64_t nnz() const { return count * height * width; }

 private:
  static const int32_t* data(const Tensor& t) { return static_cast<const int32_t*>(t.data_ptr()); }
};

// Rows of blocks that are multiplied by one tile of the batch before the result is written.
template <typename T>
struct RowGroups {
  static constexpr int64_t kOutputs = 64;  // of a group, where blocks are not larger
  int64_t rows, size, count;

  explicit RowGroups(const BlockMatrix<T>& m)
      : rows(m.rows), size(std::max<int64_t>(1, kOutputs / m.out)), count(ceil_div(m.rows, size)) {}

  int64_t scratch(const BlockMatrix<T>& m) const { return size * m.out * kTileWidth; }
};

// y[b, o] = sum_i W[o, i] x[b, i] (+ bias[o]) for one tile of the batch and one group of rows.
template <typename T>
void multiply_blocks(const BlockMatrix<T>& matrix, const RowGroups<T>& groups, const T* bias,
                     const Tile& tile, const T* panel, int64_t group, T* scratch, const Output& y) {
  const int64_t first = group * groups.size, last = std::min(groups.rows, first + groups.size);
  block_kernels<T>().spmm(matrix, first, last, panel, matrix.in * tile.width, tile.width,
                          tile.width, scratch);
  const int64_t output = first * matrix.out;
  kernels<T>().unpack(scratch, bias != nullptr ? bias + output : nullptr,
                      (last - first) * matrix.out, tile.batch, tile.width, Activation::kNone,
                      y.at(tile.first, output), y.dtype, y.stride);
}

}  // namespace sparsekern
