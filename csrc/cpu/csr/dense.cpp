// Formula    csr_to_dense: dense[r, col[j]] = values[j], zero elsewhere;
//            csr_gather:   values[j] = dense[r, col[j]]. Each is the other's gradient.
// Mapping    a task is a group of rows.
// Arithmetic none: elements are copied by size, so every dtype of 1, 2, 4 or 8 bytes works.
// Contract   sparsekern/ops/csr/dense.py.
#include <torch/csrc/stable/library.h>

#include "batch.h"

namespace sparsekern {
namespace {

constexpr int64_t kGroup = 64;  // rows of a task

struct Index {
  const int32_t* crow;
  const int32_t* col;
  int64_t rows, nnz;

  Index(const Tensor& crow_tensor, const Tensor& col_tensor)
      : crow(static_cast<const int32_t*>(crow_tensor.data_ptr())),
        col(static_cast<const int32_t*>(col_tensor.data_ptr())),
        rows(crow_tensor.numel() - 1),
        nnz(col_tensor.numel()) {
    check_int32(crow_tensor, "crow", rows + 1);
    check_int32(col_tensor, "col", nnz);
    check_row_bounds(crow, rows, nnz);
  }
};

template <typename E>
void scatter(const Index& index, const void* values, int64_t cols, void* dense) {
  const E* source = static_cast<const E*>(values);
  E* target = static_cast<E*>(dense);
  parallel_tasks(ceil_div(index.rows, kGroup), index.rows * cols, [&](int64_t group, int64_t) {
    const int64_t last = std::min(index.rows, (group + 1) * kGroup);
    for (int64_t r = group * kGroup; r < last; ++r) {
      E* row = target + r * cols;
      std::fill_n(row, cols, E(0));
      for (int32_t j = index.crow[r]; j < index.crow[r + 1]; ++j)
        if (uint32_t(index.col[j]) < uint64_t(cols)) row[index.col[j]] = source[j];
    }
  });
}

template <typename E>
void gather(const Index& index, const void* dense, int64_t cols, void* values) {
  const E* source = static_cast<const E*>(dense);
  E* target = static_cast<E*>(values);
  parallel_tasks(ceil_div(index.rows, kGroup), 4 * index.nnz, [&](int64_t group, int64_t) {
    const int64_t last = std::min(index.rows, (group + 1) * kGroup);
    for (int64_t r = group * kGroup; r < last; ++r) {
      const E* row = source + r * cols;
      for (int32_t j = index.crow[r]; j < index.crow[r + 1]; ++j)
        target[j] = uint32_t(index.col[j]) < uint64_t(cols) ? row[index.col[j]] : E(0);
    }
  });
}

Tensor csr_to_dense_cpu(Tensor values, Tensor crow, Tensor col, int64_t cols) {
  const Index index(crow, col);
  const Tensor source = torch::stable::contiguous(values);
  SPARSEKERN_CHECK(values.numel() == index.nnz, "Expected values to have ", index.nnz,
                   " elements. Got ", values.numel(), ".");
  Tensor dense = torch::stable::empty({index.rows, cols}, values.scalar_type());
  const size_t size = values.element_size();
  SPARSEKERN_CHECK(size == 1 || size == 2 || size == 4 || size == 8,
                   "Expected elements of 1, 2, 4 or 8 bytes. Got ", size, ".");
  const auto copy = size == 8   ? scatter<uint64_t>
                    : size == 4 ? scatter<uint32_t>
                    : size == 2 ? scatter<uint16_t>
                                : scatter<uint8_t>;
  copy(index, source.data_ptr(), cols, dense.mutable_data_ptr());
  return dense;
}

Tensor csr_gather_cpu(Tensor dense, Tensor crow, Tensor col) {
  const Index index(crow, col);
  SPARSEKERN_CHECK(dense.dim() == 2 && dense.size(0) == index.rows,
                   "Expected dense to be a matrix "
                   "with ",
                   index.rows, " rows. Got ", dense.dim(), " dimensions.");
  const Tensor source = torch::stable::contiguous(dense);
  Tensor values = torch::stable::empty({index.nnz}, dense.scalar_type());
  const size_t size = dense.element_size();
  SPARSEKERN_CHECK(size == 1 || size == 2 || size == 4 || size == 8,
                   "Expected elements of 1, 2, 4 or 8 bytes. Got ", size, ".");
  const auto copy = size == 8   ? gather<uint64_t>
                    : size == 4 ? gather<uint32_t>
                    : size == 2 ? gather<uint16_t>
                                : gather<uint8_t>;
  copy(index, source.data_ptr(), dense.size(1), values.mutable_data_ptr());
  return values;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("csr_to_dense", TORCH_BOX(&csr_to_dense_cpu));
  m.impl("csr_gather", TORCH_BOX(&csr_gather_cpu));
}

}  // namespace sparsekern
