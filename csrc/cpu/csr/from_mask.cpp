// Formula    crow[r] = number of True above row r; col = the True columns of each row, ascending.
// Mapping    a task is a group of rows; rows are read eight bytes at a time.
// Cost       two reads of the mask, one write of col.
// Contract   sparsekern/ops/csr/from_mask.py.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <tuple>

#include "batch.h"

namespace sparsekern {
namespace {

// Calls visit(column) for the True entries of one row.
template <typename Callback>
void for_each_true(const uint8_t* row, int64_t cols, const Callback& visit) {
  int64_t c = 0;
  for (; c + 8 <= cols; c += 8) {
    uint64_t eight;
    std::memcpy(&eight, row + c, sizeof eight);
    if (eight == 0) continue;
    for (int64_t i = c; i < c + 8; ++i)
      if (row[i] != 0) visit(i);
  }
  for (; c < cols; ++c)
    if (row[c] != 0) visit(c);
}

std::tuple<Tensor, Tensor> csr_from_mask_cpu(Tensor mask, int64_t nnz) {
  SPARSEKERN_CHECK(mask.scalar_type() == ScalarType::Bool && mask.dim() == 2,
                   "Expected mask to be a bool matrix. Got another dtype or ", mask.dim(),
                   " dimensions.");
  const Tensor contiguous = torch::stable::contiguous(mask);
  const int64_t rows = mask.size(0);
  const int64_t cols = mask.size(1);
  Tensor crow = torch::stable::empty({rows + 1}, ScalarType::Int);
  Tensor col = torch::stable::empty({nnz}, ScalarType::Int);
  const uint8_t* bits = static_cast<const uint8_t*>(contiguous.data_ptr());
  int32_t* crow_data = static_cast<int32_t*>(crow.mutable_data_ptr());
  int32_t* col_data = static_cast<int32_t*>(col.mutable_data_ptr());

  constexpr int64_t kGroup = 64;  // rows of a task
  const int64_t groups = ceil_div(rows, kGroup);
  crow_data[0] = 0;
  parallel_tasks(groups, rows * cols, [&](int64_t group, int64_t) {
    for (int64_t r = group * kGroup; r < std::min(rows, (group + 1) * kGroup); ++r) {
      int32_t count = 0;
      for_each_true(bits + r * cols, cols, [&](int64_t) { ++count; });
      crow_data[r + 1] = count;
    }
  });
  int64_t total = 0;
  for (int64_t r = 0; r < rows; ++r) {
    total += crow_data[r + 1];
    crow_data[r + 1] = int32_t(total);
  }
  SPARSEKERN_CHECK(total == nnz, "Expected nnz to be the number of True entries of mask, ", total,
                   ". Got ", nnz, ".");
  parallel_tasks(groups, rows * cols, [&](int64_t group, int64_t) {
    for (int64_t r = group * kGroup; r < std::min(rows, (group + 1) * kGroup); ++r) {
      int32_t* next = col_data + crow_data[r];
      for_each_true(bits + r * cols, cols, [&](int64_t c) { *next++ = int32_t(c); });
    }
  });
  return {crow, col};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_from_mask", TORCH_BOX(&csr_from_mask_cpu));
}

}  // namespace sparsekern
