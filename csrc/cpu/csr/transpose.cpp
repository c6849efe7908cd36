// Formula    compressed columns of a CSR matrix: crow_t, col_t (rows, ascending), and perm with
//            values_t[j] = values[perm[j]]: csr_transpose. With several taps (the weight of a
//            convolution), `taps` neighbouring columns form one row of the result, whose columns
//            are row * taps + tap.
// Mapping    a task owns a range of columns and walks, in every row, the entries that fall into it:
//            a counting sort without atomics, the same order for any number of threads.
// Cost       three reads of `col`, one write of col_t and perm.
// Contract   sparsekern/ops/csr/transpose.py.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "batch.h"

namespace sparsekern {
namespace {

struct Matrix {
  const int32_t* crow;
  const int32_t* col;
  int64_t rows, cols, nnz, taps;
};

// Calls visit(row, position, col) for the entries with first <= col < last, row by row.
template <typename Callback>
void for_each_entry(const Matrix& m, int64_t first, int64_t last, const Callback& visit) {
  for (int64_t row = 0; row < m.rows; ++row) {
    const int32_t* end = m.col + m.crow[row + 1];
    const int32_t* c = m.col + m.crow[row];
    if (first > 0) c = std::lower_bound(c, end, int32_t(first));
    for (; c < end && *c < last; ++c) visit(row, int32_t(c - m.col), *c);
  }
}

void transpose(const Matrix& m, int32_t* crow_t, int32_t* col_t, int32_t* perm) {
  const int64_t lists = m.cols / m.taps;  // rows of the result
  const int64_t ranges = std::max<int64_t>(1, std::min(thread_count(), lists / 64));
  const auto border = [&](int64_t range) { return lists * range / ranges; };
  const auto list_of = [&](int32_t col) { return m.taps == 1 ? col : col / m.taps; };

  std::fill_n(crow_t, lists + 1, 0);
  parallel_tasks(ranges, m.nnz, [&](int64_t range, int64_t) {
    const int64_t first = border(range) * m.taps;
    for_each_entry(m, first, border(range + 1) * m.taps,
                   [&](int64_t, int32_t, int32_t col) { ++crow_t[list_of(col) + 1]; });
  });
  for (int64_t c = 0; c < lists; ++c) crow_t[c + 1] += crow_t[c];

  parallel_tasks(ranges, m.nnz, [&](int64_t range, int64_t) {
    const int64_t first = border(range), last = border(range + 1);
    std::vector<int32_t> next(crow_t + first, crow_t + last);
    for_each_entry(m, first * m.taps, last * m.taps,
                   [&](int64_t row, int32_t position, int32_t col) {
                     const int64_t list = list_of(col);
                     const int32_t target = next[size_t(list - first)]++;
                     col_t[target] = int32_t(row * m.taps + (col - list * m.taps));
                     perm[target] = position;
                   });
  });
}

std::tuple<Tensor, Tensor, Tensor> csr_transpose_cpu(Tensor crow, Tensor col, int64_t cols,
                                                     int64_t taps) {
  SPARSEKERN_CHECK(taps >= 1 && cols % taps == 0, "Expected taps to divide ", cols,
                   " columns. Got ", taps, ".");
  const Matrix m{static_cast<const int32_t*>(crow.data_ptr()),
                 static_cast<const int32_t*>(col.data_ptr()),
                 crow.numel() - 1,
                 cols,
                 col.numel(),
                 taps};
  SPARSEKERN_CHECK(m.rows * taps < int64_t(1) << 31, "Expected rows times taps below 2^31. Got ",
                   m.rows, " and ", taps, ".");
  check_int32(crow, "crow", m.rows + 1);
  check_int32(col, "col", m.nnz);
  check_row_bounds(m.crow, m.rows, m.nnz);
  std::atomic<bool> columns_ok{true};
  constexpr int64_t kGroup = 64;  // rows of a task
  parallel_tasks(ceil_div(m.rows, kGroup), m.nnz, [&](int64_t group, int64_t) {
    for (int64_t r = group * kGroup; r < std::min(m.rows, (group + 1) * kGroup); ++r)
      if (!columns_rise(m.col, m.crow[r], m.crow[r + 1], cols)) columns_ok = false;
  });
  SPARSEKERN_CHECK(columns_ok, "Expected col to rise within each row, from 0 to below ", cols,
                   ". Got columns that do not.");
  Tensor crow_t = torch::stable::empty({cols / taps + 1}, ScalarType::Int);
  Tensor col_t = torch::stable::empty({m.nnz}, ScalarType::Int);
  Tensor perm = torch::stable::empty({m.nnz}, ScalarType::Int);
  transpose(m, static_cast<int32_t*>(crow_t.mutable_data_ptr()),
            static_cast<int32_t*>(col_t.mutable_data_ptr()),
            static_cast<int32_t*>(perm.mutable_data_ptr()));
  return {crow_t, col_t, perm};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_transpose", TORCH_BOX(&csr_transpose_cpu));
}

}  // namespace sparsekern
